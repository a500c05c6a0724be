// SPDX-License-Identifier: Apache-2.0

package vitals

import (
	"encoding/binary"
	"fmt"
	"time"
)

// HeartbeatSize is the length of a heartbeat's body in bytes (SARA 24, the paper's figure 6).
const HeartbeatSize = 11

// Flag is the event that a heartbeat announces (SARA 25). The paper names three values and not their numbers; 0 is none of them, so
// that an empty body means nothing.
type Flag uint8

// Flags.
const (
	// Available: the node and its application are up.
	Available Flag = 1
	// ApplicationDown: the node is up, its application is not.
	ApplicationDown Flag = 2
	// PlannedFailure: the node will be gone at Stamp.
	PlannedFailure Flag = 3
)

// String returns the flag in words.
func (f Flag) String() string {
	switch f {
	case Available:
		return "available"
	case ApplicationDown:
		return "application down"
	case PlannedFailure:
		return "planned failure"
	}
	return fmt.Sprintf("flag %d", uint8(f))
}

// Heartbeat says that a node is alive (SARA 24).
type Heartbeat struct {
	// Host is the paper's Host_Identity.
	Host uint32
	// Seq is the paper's Seq_Nber: one more than the last heartbeat's, modulo 65536.
	Seq uint16
	// Flag is the event announced.
	Flag Flag
	// Stamp is the paper's Timestamp: with PlannedFailure the time of the failure, else that of sending. See StampOf.
	Stamp uint32
}

// StampOf returns t as a heartbeat carries it: milliseconds since 1970 UTC, modulo 2^32. The paper gives no unit. Seconds would be
// too coarse for a period of 10 ms; milliseconds come round every 49.7 days, so that TimeOf needs to know t to 24.8 days.
func StampOf(t time.Time) uint32 { return uint32(t.UnixMilli()) }

// TimeOf returns the time that a stamp means: of all that have this stamp the one nearest to near, such as the time of sending. A
// planned failure can therefore be announced for at most MaxPlan ahead.
func TimeOf(stamp uint32, near time.Time) time.Time {
	at := near.UnixMilli()
	return time.UnixMilli(at + int64(int32(stamp-uint32(at))))
}

// MaxPlan is how far ahead a failure can be announced: less than half of the time in which stamps come round.
const MaxPlan = 24 * 24 * time.Hour

func (h Heartbeat) appendBody(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, h.Host)
	b = binary.BigEndian.AppendUint16(b, h.Seq)
	b = append(b, byte(h.Flag))
	return binary.BigEndian.AppendUint32(b, h.Stamp)
}

// ParseHeartbeat decodes a heartbeat's body.
func ParseHeartbeat(body []byte) (Heartbeat, error) {
	if len(body) != HeartbeatSize {
		return Heartbeat{}, fmt.Errorf("%w: heartbeat of %d bytes, want %d", ErrMalformed, len(body), HeartbeatSize)
	}
	h := Heartbeat{
		Host: binary.BigEndian.Uint32(body), Seq: binary.BigEndian.Uint16(body[4:]),
		Flag: Flag(body[6]), Stamp: binary.BigEndian.Uint32(body[7:]),
	}
	if h.Flag < Available || h.Flag > PlannedFailure {
		return Heartbeat{}, fmt.Errorf("%w: heartbeat with %v", ErrMalformed, h.Flag)
	}
	return h, nil
}
