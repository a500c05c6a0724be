// SPDX-License-Identifier: Apache-2.0

// Package wire is rehome's protocol on the wire: the frames that travel between agents, between an agent and the
// entry of a service, and between an agent and the applications on its host.
//
// # Frames
//
// All integers are big-endian.
//
//	frame  = length(4) kind(1) id(8) field*     length counts what follows it: at least 9, at most MaxFrame
//	field  = tag(1) size(uvarint) value(size)   in any order, each tag at most once
//
// The id names the migration (or the request) that a frame belongs to; an answer carries the id of what it answers.
// A field that holds its zero value is left out. A receiver skips a field it does not know, unless the tag has
// its top bit set: such a field is critical, and the frame is refused with ErrCritical. Kinds and tags are
// append-only: a number, once used, never changes its meaning.
//
// # Versions
//
// Each side opens with Hello, which carries the lowest and the highest version it speaks; both then use the highest
// that both know (Negotiate). There is one version so far.
//
// # Large values
//
// A State or a snapshot can be larger than a frame. What does not fit travels ahead in Chunk frames of the same id;
// the frame that names the value carries its last part. See Assembly.
//
// # File descriptors
//
// Between agent and application, a socket accompanies its frame by SCM_RIGHTS. Descriptors arrive in the
// order of the frames that carry one (Carries); see Unix.
//
// The package holds no state of a migration and no policy: that is package migration's.
package wire
