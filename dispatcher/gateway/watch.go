// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"time"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// limits bound what a watch keeps.
type limits struct {
	hold   time.Duration // of one frame
	frames int           // held of one flow
	bytes  int           // held of all flows
	flows  int           // that are read at a time
	idle   time.Duration // after which a flow without packets is forgotten; it is taken up again in its middle
	gap    time.Duration // after which bytes that are missing are given up
}

// report is what a server has said in one packet, for the dispatcher.
type report struct {
	id     uint64
	flow   session.Key
	halves [][]byte
}

// held is one frame, and what it waits for.
type held struct {
	frame    []byte
	tap      int
	deadline time.Time
	end      uint32 // TCP: the sequence number after its payload
	report   uint64 // that must be confirmed; 0: none
	last     bool   // FIN or RST
}

// line is the queue of one flow.
type line struct {
	flow   session.Key
	parser Parser  // of datagrams
	stream *stream // of TCP; nil: the stream is not read
	queue  []held
	seen   time.Time
	behind time.Time // since when bytes have been missing; zero: none are
	ended  bool
	exempt bool
}

// maxExempt bounds the flows that are exempt from being diverted; it is the size of the programs' table.
const maxExempt = 16384

// counts are what a watch counts. Prometheus and Stats have the names.
type counts struct {
	Packets, Released, Late, Behind, Unread, Overflow, Reports, Halves, Failed uint64
}

// watch decides when each diverted frame may go on. It is pure: frames, confirmations and the time come in; what is to be done is in
// released, reports, exempt and resume, which the caller empties; resume goes before released.
type watch struct {
	limits   limits
	service  func(session.Key) (Mode, bool)
	parsers  Protocols
	reader   *frameReader
	assembly *assembly
	lines    map[session.Key]*line
	waiting  map[*line]struct{}  // those with a queue
	pending  map[uint64]struct{} // reports that are not confirmed, and that a frame waits for
	bytes    int
	reportID uint64
	counts   counts

	exempted map[session.Key]struct{}

	released []held
	reports  []report
	exempt   []session.Key
	resume   []session.Key
}

func newWatch(l limits, service func(session.Key) (Mode, bool), parsers Protocols) *watch {
	return &watch{
		limits: l, service: service, parsers: parsers, reader: newFrameReader(), assembly: newAssembly(),
		lines: make(map[session.Key]*line), waiting: make(map[*line]struct{}), pending: make(map[uint64]struct{}),
		exempted: make(map[session.Key]struct{}),
	}
}

// frame takes a frame from a tap. The frame is the watch's from here on.
func (w *watch) frame(now time.Time, tap int, frame []byte) {
	w.counts.Packets++
	h := held{frame: frame, tap: tap, deadline: now.Add(w.limits.hold)}
	p, ok := w.reader.read(frame)
	if !ok {
		w.pass(h)
		return
	}
	l := w.line(now, p)
	if l == nil {
		w.pass(h)
		return
	}
	l.seen = now
	halves := w.parse(now, l, p, &h)
	if len(halves) > 0 {
		h.report = w.report(l, halves)
	}
	if len(l.queue) >= w.limits.frames || w.bytes+len(frame) > w.limits.bytes {
		// Order matters more than what the rest of the queue waits for.
		w.counts.Overflow++
		w.flush(l)
		w.release(l, h)
		return
	}
	l.queue = append(l.queue, h)
	w.bytes += len(frame)
	w.waiting[l] = struct{}{}
	w.advance(now, l)
}

// line returns the packet's flow; nil when it is not to be read.
func (w *watch) line(now time.Time, p packet) *line {
	l := w.lines[p.flow]
	if l != nil && p.tcp != nil && p.tcp.SYN && !l.stream.beganWith(p.tcp) {
		// The next connection of the same addresses.
		w.flush(l)
		w.forget(now, l)
		l = nil
	}
	if l != nil {
		return l
	}
	mode, ok := w.service(p.flow)
	if !ok {
		return nil
	}
	if _, ok := w.exempted[p.flow]; ok && p.tcp != nil && p.tcp.SYN {
		delete(w.exempted, p.flow)
		w.resume = append(w.resume, p.flow)
	}
	if len(w.lines) >= w.limits.flows {
		w.counts.Overflow++
		return nil
	}
	parser := w.parsers(mode, p.flow)
	if parser == nil {
		return nil
	}
	l = &line{flow: p.flow}
	if p.tcp == nil {
		l.parser = parser
	} else {
		l.stream = w.assembly.open(p, parser)
	}
	w.lines[p.flow] = l
	return l
}

// parse reads the packet and fills in what the frame waits for.
func (w *watch) parse(now time.Time, l *line, p packet, h *held) [][]byte {
	if l.flow.Protocol == protocolUDP {
		return l.parser.Parse(p.payload)
	}
	h.end, h.last = p.end(), p.tcp.FIN || p.tcp.RST
	if p.tcp.RST && len(p.payload) == 0 { // its sequence number may be anything
		h.end = l.stream.next
	}
	if l.stream.failed != nil {
		return nil
	}
	halves := w.assembly.add(l.stream, p, now)
	switch {
	case l.stream.failed != nil:
		w.counts.Failed++
	case l.stream.parser.Opaque():
		if !l.exempt && len(w.exempted) < maxExempt {
			l.exempt = true
			w.exempted[l.flow] = struct{}{}
			w.exempt = append(w.exempt, l.flow)
		}
	case l.stream.read(h.end):
		l.behind = time.Time{}
	case l.behind.IsZero():
		l.behind = now
	case now.Sub(l.behind) > w.limits.gap:
		// What is missing passed while nobody read, or was lost for good. Begin again with this packet.
		mode, _ := w.service(l.flow)
		parser := w.parsers(mode, l.flow)
		w.assembly.end(l.stream, now)
		l.stream, l.behind = w.assembly.open(p, parser), time.Time{}
		halves = append(halves, w.assembly.add(l.stream, p, now)...)
	}
	return halves
}

// report makes reports of halves, as many as their bounds make necessary, and returns the id of the last, which is answered last.
func (w *watch) report(l *line, halves [][]byte) uint64 {
	w.counts.Halves += uint64(len(halves))
	for len(halves) > 0 {
		n, size := 0, 0
		for n < len(halves) && n < maxHalves && (n == 0 || size+len(halves[n]) <= maxHalfBytes) {
			size += len(halves[n])
			n++
		}
		w.reportID++
		w.counts.Reports++
		w.reports = append(w.reports, report{id: w.reportID, flow: l.flow, halves: halves[:n:n]})
		halves = halves[n:]
	}
	w.pending[w.reportID] = struct{}{}
	return w.reportID
}

// confirmed lets go what waits for a report: it has been answered, or given up.
func (w *watch) confirmed(now time.Time, id uint64) {
	if _, ok := w.pending[id]; !ok {
		return
	}
	delete(w.pending, id)
	for l := range w.waiting {
		if l.queue[0].report == id {
			w.advance(now, l)
			return
		}
	}
}

// advance releases what may go from the front of a line.
func (w *watch) advance(now time.Time, l *line) {
	for len(l.queue) > 0 {
		h := l.queue[0]
		if !w.ready(l, h) {
			if now.Before(h.deadline) {
				return
			}
			w.late(h)
		}
		w.pop(l)
	}
	if l.parser != nil || l.ended {
		w.forget(now, l)
	}
}

// ready reports whether a frame waits for nothing.
func (w *watch) ready(l *line, h held) bool {
	if h.report != 0 {
		if _, pending := w.pending[h.report]; pending {
			return false
		}
	}
	s := l.stream
	return s == nil || s.failed != nil || s.read(h.end) || s.parser.Opaque()
}

// late counts a frame whose time is over.
func (w *watch) late(h held) {
	if _, pending := w.pending[h.report]; pending {
		w.counts.Late++
	} else {
		w.counts.Behind++
	}
}

// pop releases the first frame of a line.
func (w *watch) pop(l *line) {
	h := l.queue[0]
	l.queue[0] = held{}
	l.queue = l.queue[1:]
	w.bytes -= len(h.frame)
	w.release(l, h)
	if len(l.queue) == 0 {
		l.queue = nil
		delete(w.waiting, l)
	}
}

func (w *watch) release(l *line, h held) {
	delete(w.pending, h.report)
	l.ended = l.ended || h.last
	w.counts.Released++
	w.released = append(w.released, h)
}

// pass releases a frame that was not read.
func (w *watch) pass(h held) {
	w.counts.Unread++
	w.released = append(w.released, h)
}

// flush releases all that a line holds.
func (w *watch) flush(l *line) {
	for len(l.queue) > 0 {
		w.late(l.queue[0])
		w.pop(l)
	}
}

// forget removes a line without frames.
func (w *watch) forget(now time.Time, l *line) {
	if l.stream != nil {
		w.assembly.end(l.stream, now)
	}
	if w.lines[l.flow] == l {
		delete(w.lines, l.flow)
	}
}

// tick releases what has waited too long, and returns when the next frame will have; zero when none waits.
func (w *watch) tick(now time.Time) (next time.Time) {
	for l := range w.waiting {
		w.advance(now, l)
		if len(l.queue) > 0 && (next.IsZero() || l.queue[0].deadline.Before(next)) {
			next = l.queue[0].deadline
		}
	}
	return next
}

// sweep forgets idle flows. It looks at every flow: call it now and then.
func (w *watch) sweep(now time.Time) {
	for _, l := range w.lines {
		if len(l.queue) == 0 && now.Sub(l.seen) > w.limits.idle {
			w.forget(now, l)
		}
	}
}
