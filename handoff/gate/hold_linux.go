// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// drainRounds is how often the tap is emptied at once; then, with a pause before each time, as long as there is patience. Draining
	// until nothing comes could chase live traffic for ever (KERNEL 27).
	drainRounds = 16
	// quietFrames is the longest queue delivered without muting the host.
	quietFrames = 4
	// drainFrames bounds one round.
	drainFrames = 4096
	// lapseGrace is how much later the kernel ends a hold than the process, which can do it in order.
	lapseGrace = 50 * time.Millisecond
)

// Hold keeps the packets of a flow from both ends, or one of them, for at most ttl: what the client sends is queued, what
// this host sends is dropped. At ttl the process releases what it holds; if it is dead, the kernel lets packets through
// 50 ms later. Holding again renews ttl and may add a direction. Packets that passed the gate before Hold
// returned may still be on their way through the stack: a snapshot has to look whether the socket is at rest.
//
// Freeze the socket right after an Egress hold: a data segment refused at egress stays unsent, but costs the socket some
// of its congestion window. (Acknowledgements are swallowed without that.)
func (g *Gate) Hold(f tcprepair.Flow, d Direction, ttl time.Duration) error {
	return g.HoldAll(d, ttl, f)
}

// HoldAll is Hold for many flows. On an error those not named by it may be held; Unhold them or let ttl pass.
func (g *Gate) HoldAll(d Direction, ttl time.Duration, flows ...tcprepair.Flow) error {
	return g.hold(d, ttl, 0, flows...)
}

// Serve says that this host serves the flow from now on: a Forward left by an earlier move is cancelled, as by Release, and the hold on
// the client's packets, which goes on for the sake of their order, ends after ttl at the latest. So if the process dies before
// Release, the flow is not led astray.
func (g *Gate) Serve(f tcprepair.Flow, ttl time.Duration) error { return g.hold(Ingress, ttl, 1, f) }

func (g *Gate) hold(d Direction, ttl time.Duration, serves uint64, flows ...tcprepair.Flow) error {
	if d == 0 || d&^(Ingress|Egress) != 0 || ttl <= 0 {
		return &OpError{Op: "hold", Err: fmt.Errorf("direction %d for %v: want Ingress, Egress or both, for some time", d, ttl)}
	}
	ops := make([]gateOperation, len(flows))
	for i, f := range flows {
		if !f.IsValid() {
			return &OpError{Op: "hold", Flow: f, Err: errors.New("flow is not valid")}
		}
		ops[i] = newOperation(gateCodeOP_HOLD, f)
		ops[i].Direction, ops[i].Ttl, ops[i].Frames = uint8(d), uint64(ttl+lapseGrace), serves
	}
	if err := g.enter(flows...); err != nil {
		return &OpError{Op: "hold", Err: err}
	}
	defer g.mu.Unlock()
	// The queues come first: a held packet must find one.
	deadline := time.Now().Add(ttl)
	for _, f := range flows {
		g.queue(f).deadline = deadline
	}
	if err := g.table.run(ops); err != nil {
		return &OpError{Op: "hold", Err: err}
	}
	for i := range ops {
		if err := answer(&ops[i]); err != nil {
			g.leave(flows[i])
			return &OpError{Op: "hold", Flow: flows[i], Err: err}
		}
	}
	return nil
}

func (g *Gate) queue(f tcprepair.Flow) *queue {
	q := g.queues[f]
	if q == nil {
		q = &queue{maxPackets: g.config.HoldPackets, maxBytes: g.config.HoldBytes, room: &g.room}
		g.queues[f] = q
	}
	return q
}

// leave drops a flow's queue, with what is still in it.
func (g *Gate) leave(f tcprepair.Flow) {
	if q := g.queues[f]; q != nil {
		q.take()
		delete(g.queues, f)
	}
}

// Release gives what is held to the local stack, in order, and ends the hold. The host then serves the flow: a Forward
// left by an earlier move is cancelled. ErrNoFlow when nothing is known of the flow.
func (g *Gate) Release(f tcprepair.Flow) (Held, error) {
	if err := g.enter(f); err != nil {
		return Held{}, &OpError{Op: "release", Flow: f, Err: err}
	}
	defer g.mu.Unlock()
	held, err := g.release(f)
	if err != nil {
		return held, &OpError{Op: "release", Flow: f, Err: err}
	}
	return held, nil
}

// release opens the gate only when the kernel's count of held packets agrees with what has been delivered: only then is
// it certain that a packet let through cannot overtake a held one. Those that are counted and have not come yet it waits for: the
// kernel counts a packet first, and then cuts it to frames and queues them, on a processor that may have more to do.
//
// A client at full rate sends new packets as fast as delivered ones are acknowledged, and on a virtual network it does so
// before the write that delivered them returns. So a longer queue is delivered mute: the host's acknowledgements go to
// the tap, the client stops at its window, everything held is delivered, the gate opens, and the latest acknowledgement
// goes out for all of them.
func (g *Gate) release(f tcprepair.Flow) (Held, error) {
	q, known := g.queues[f]
	if !known {
		q = &queue{}
	}
	var failed error
	try := func(code gateCode, frames uint64) *gateOperation {
		o := []gateOperation{newOperation(code, f)}
		o[0].Frames = frames
		failed = errors.Join(failed, g.table.run(o))
		return &o[0]
	}
	var o *gateOperation
	muted := false
	wait := g.patience(q)
	for pass := 0; ; pass++ {
		if pass > 0 || len(q.frames) > quietFrames {
			muted = true
			if try(gateCodeOP_MUTE, 0).Flow.Held != q.seen {
				failed = errors.Join(failed, g.drain(drainFrames))
			}
		}
		failed = errors.Join(failed, g.deliver(q))
		o = try(gateCodeOP_RELEASE, q.seen)
		if !errors.Is(answer(o), ErrBusy) || !g.goOn(pass, &wait, q) {
			break
		}
	}
	if errors.Is(answer(o), ErrBusy) {
		o = try(gateCodeOP_RELEASE, releaseAlways)
	}
	if muted {
		// Acknowledgements, and what was on its way to the tap if the gate had to be opened untimely.
		failed = errors.Join(failed, g.drain(drainFrames), g.deliver(q))
		if q.acknowledgement != nil {
			failed = errors.Join(failed, g.taps[q.tap].send(q.acknowledgement))
		}
	}
	g.leave(f)
	if err := answer(o); err != nil && (!known || !errors.Is(err, ErrNoFlow)) {
		failed = errors.Join(failed, err)
	}
	return g.outcome(q, o), failed
}

// patience is for a queue's frames on their way, until shortly before the kernel ends the hold by itself.
func (g *Gate) patience(q *queue) patience {
	return newPatience(time.Now(), q.deadline.Add(lapseGrace/2), g.vain)
}

// goOn reports whether to look once more for a queue's frames. It gives the gate's lock away between two looks, but not the flow: whoever
// reads the tap meanwhile puts the flow's frames into its queue, in order.
func (g *Gate) goOn(pass int, wait *patience, q *queue) bool {
	if pass+1 < drainRounds {
		return true
	}
	now := time.Now()
	if !g.closed && wait.more(now, q.seen) {
		g.rest(q, waitPause)
		return true
	}
	if wait.vain(now, q.seen) {
		g.vain = now
	}
	return false
}

// outcome adds what the kernel counted to what the queue did.
func (g *Gate) outcome(q *queue, o *gateOperation) Held {
	held := q.kept
	held.Suppressed = int(o.Flow.Dropped)
	if o.Flow.Held > q.seen {
		held.Dropped += int(o.Flow.Held - q.seen) // the tap was full
	}
	return held
}

// deliver gives a queue's frames to the local stack.
func (g *Gate) deliver(q *queue) error {
	if len(q.frames) == 0 {
		return nil
	}
	return g.inject(q.tap, q.take(), toStack)
}

func (g *Gate) inject(tap int, frames [][]byte, to string) error {
	n, err := g.taps[tap].inject(frames, to)
	if err != nil {
		return fmt.Errorf("%d of %d held frames lost: %w", len(frames)-n, len(frames), err)
	}
	return nil
}

// drain sorts what waits in the taps into the queues. It handles at most limit frames of each tap.
func (g *Gate) drain(limit int) error {
	var errs []error
	for i, t := range g.taps {
		_, err := t.drain(limit, func(frame []byte) { g.keep(i, frame) })
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// keep puts a frame into its flow's queue. A frame without one was held by a former process, or its hold has just ended;
// the kernel knows which.
func (g *Gate) keep(tap int, frame []byte) {
	f, ok := frameFlow(frame)
	if !ok {
		return
	}
	q := g.queues[f]
	if q == nil && g.acknowledges(f, frame) {
		return
	}
	if door := g.doors[f.Local]; q == nil && door != nil && opens(frame) {
		if !door.add(frame, tap) {
			g.overflow++
		}
		return
	}
	if q == nil {
		ops := []gateOperation{newOperation(gateCodeOP_QUERY, f)}
		if err := g.table.run(ops); err != nil {
			g.overflow++
			return
		}
		r := routeInfo(&ops[0])
		if answer(&ops[0]) != nil || r.Hold&Ingress == 0 {
			if g.inject(tap, [][]byte{frame}, toTable) != nil {
				g.overflow++
			}
			return
		}
		q = g.queue(f)
		q.deadline = time.Now().Add(r.Left)
	}
	if !q.add(frame, tap) {
		g.overflow++
	}
}

// acknowledges keeps the host's own acknowledgement for a flow being released, in place of the one before.
func (g *Gate) acknowledges(f tcprepair.Flow, frame []byte) bool {
	q := g.queues[tcprepair.Flow{Local: f.Remote, Remote: f.Local}]
	if q == nil {
		return false
	}
	q.acknowledgement = append(q.acknowledgement[:0], frame...)
	return true
}

// lapse ends holds whose time is over, before the kernel does: so what was held comes before what is let through. Where
// the host itself has the flow that is a release; else the frames go where the flow's route says.
func (g *Gate) lapse(now time.Time) {
	g.lapseDoors(now)
	for f, q := range g.queues {
		if now.Before(q.deadline) || q.resting {
			continue
		}
		g.lapsed++
		var held Held
		ops := []gateOperation{newOperation(gateCodeOP_QUERY, f)}
		err := errors.Join(g.table.run(ops), answer(&ops[0]))
		if r := routeInfo(&ops[0]); err == nil && r.Node == 0 {
			held, err = g.release(f)
		} else if err == nil {
			ops[0].Code = gateCodeOP_UNHOLD
			err = errors.Join(g.table.run(ops), g.drain(drainFrames), g.inject(q.tap, q.take(), toTable))
			held = g.outcome(q, &ops[0])
		}
		g.leave(f)
		g.config.Logger.Warn("hold ended by its deadline", "flow", f, "packets", held.Packets, "error", err)
	}
}

// Yield ends the hold of a flow that this host turned out not to serve. What was held goes where the flow's route says; with no other
// host on record it is dropped, and its sender sends it again: the local stack would answer it with a RST.
func (g *Gate) Yield(f tcprepair.Flow) error { return g.letGo("yield", f, false) }

// Requeue ends the hold and gives what was held to the interface anew, in order: it goes where the packet path leads now, also by another
// program in front of the gate's. With nobody there who sends it on, that is the local stack.
func (g *Gate) Requeue(f tcprepair.Flow) error { return g.letGo("requeue", f, true) }

func (g *Gate) letGo(op string, f tcprepair.Flow, anyway bool) error {
	if err := g.enter(f); err != nil {
		return &OpError{Op: op, Flow: f, Err: err}
	}
	defer g.mu.Unlock()
	ops := []gateOperation{newOperation(gateCodeOP_UNHOLD, f)}
	err := errors.Join(g.table.run(ops), g.drain(drainFrames))
	if err == nil {
		err = answer(&ops[0])
	}
	if q := g.queues[f]; q != nil {
		if (anyway || routeInfo(&ops[0]).Node != 0) && len(q.frames) > 0 {
			err = errors.Join(err, g.inject(q.tap, q.take(), toTable))
		}
		g.leave(f)
	}
	if err != nil {
		return &OpError{Op: op, Flow: f, Err: err}
	}
	return nil
}

// Divert brings the frames before, and then what is held, to another host, in order, ends the hold and sends the flow's packets there for ttl, as
// Forward does. The hold stays until everything is sent, so that nothing overtakes: what the host's acknowledgements make the client send is
// held and sent, too, as long as that does not go on for ever. ErrFrame is as with Replay.
func (g *Gate) Divert(f tcprepair.Flow, to Node, ttl time.Duration, before ...[]byte) error {
	for _, frame := range before {
		if of, ok := frameFlow(frame); !ok || of != f || len(frame) > maxFrame {
			return &OpError{Op: "divert", Flow: f, Err: ErrFrame}
		}
	}
	if err := g.enter(f); err != nil {
		return &OpError{Op: "divert", Flow: f, Err: err}
	}
	defer g.mu.Unlock()
	if err := g.divert(f, to, ttl, before); err != nil {
		return &OpError{Op: "divert", Flow: f, Err: err}
	}
	return nil
}

func (g *Gate) divert(f tcprepair.Flow, to Node, ttl time.Duration, frames [][]byte) error {
	q := g.queues[f]
	if q == nil {
		return ErrNoFlow
	}
	defer g.leave(f)
	t, mac, err := g.wayTo(to)
	if err != nil {
		return err
	}
	ops := []gateOperation{newOperation(gateCodeOP_FORWARD, f)}
	ops[0].Node, ops[0].Ttl, ops[0].Direction = uint16(to), uint64(ttl), uint8(Ingress)
	wait := g.patience(q)
	for round, last := 0, false; ; round++ {
		if err := t.forward(append(frames, q.take()...), mac); err != nil {
			return err
		}
		frames = nil
		if ops[0].Frames = q.seen; last {
			ops[0].Frames = releaseAlways
		}
		if err := g.table.run(ops); err != nil {
			return err
		}
		err := answer(&ops[0])
		if err == nil && ops[0].Flow.Held == q.seen || err != nil && !errors.Is(err, ErrBusy) {
			return err
		}
		if err := g.drain(drainFrames); err != nil {
			return err
		}
		if err == nil || last {
			break
		}
		last = !g.goOn(round, &wait, q)
	}
	return t.forward(q.take(), mac)
}

// wayTo returns the tap of the interface that leads to a node, and the node's link-layer address.
func (g *Gate) wayTo(n Node) (*tap, []byte, error) {
	var node gateNode
	if err := g.table.objects.Nodes.Lookup(uint32(n), &node); err != nil {
		return nil, nil, err
	}
	for _, t := range g.taps {
		if t.port.Ifindex == node.Ifindex {
			return t, node.Dst[:], nil
		}
	}
	return nil, nil, fmt.Errorf("node %d is not known, or not behind an interface of the gate", n)
}

// Unhold ends a hold and throws away what was kept.
func (g *Gate) Unhold(f tcprepair.Flow) error {
	if err := g.enter(f); err != nil {
		return &OpError{Op: "unhold", Flow: f, Err: err}
	}
	defer g.mu.Unlock()
	ops := []gateOperation{newOperation(gateCodeOP_UNHOLD, f)}
	err := errors.Join(g.table.run(ops), g.drain(drainFrames))
	g.leave(f)
	if err == nil {
		err = answer(&ops[0])
	}
	if err != nil {
		return &OpError{Op: "unhold", Flow: f, Err: err}
	}
	return nil
}

// Take removes and returns the frames held so far; the hold stays.
func (g *Gate) Take(f tcprepair.Flow) ([][]byte, error) {
	if err := g.enter(f); err != nil {
		return nil, &OpError{Op: "take", Flow: f, Err: err}
	}
	defer g.mu.Unlock()
	if err := g.drain(drainFrames); err != nil {
		return nil, &OpError{Op: "take", Flow: f, Err: err}
	}
	q := g.queues[f]
	if q == nil {
		return nil, &OpError{Op: "take", Flow: f, Err: ErrNoFlow}
	}
	return q.take(), nil
}

// Forward sends the flow's packets to another node for ttl, ends the hold, and returns what is still held, in order, for
// the caller to bring to the target (whose Replay takes it). Where this gate is the flow's entry its own record of the
// owner stands and nothing expires.
func (g *Gate) Forward(f tcprepair.Flow, to Node, ttl time.Duration) ([][]byte, error) {
	fail := func(err error) ([][]byte, error) { return nil, &OpError{Op: "forward", Flow: f, Err: err} }
	if to == 0 || to >= MaxNodes || ttl <= 0 {
		return fail(fmt.Errorf("to node %d for %v: want another host, for some time", to, ttl))
	}
	if err := g.enter(f); err != nil {
		return fail(err)
	}
	defer g.mu.Unlock()
	ops := []gateOperation{newOperation(gateCodeOP_FORWARD, f)}
	ops[0].Node, ops[0].Ttl = uint16(to), uint64(ttl)
	if err := g.table.run(ops); err != nil {
		return fail(err)
	}
	if err := answer(&ops[0]); err != nil {
		return fail(err)
	}
	// What was held before the switch is in a queue or a tap by now, or about to be.
	var err error
	var frames [][]byte
	q := g.queues[f]
	if q != nil {
		wait := g.patience(q)
		for pass := 0; q.seen != ops[0].Flow.Held && err == nil && g.goOn(pass, &wait, q); pass++ {
			err = g.drain(drainFrames)
		}
		frames = q.take()
		g.leave(f)
	}
	if err != nil {
		return frames, &OpError{Op: "forward", Flow: f, Err: err}
	}
	return frames, nil
}

// Replay gives frames that another host held to the local stack, past this host's own hold and before what it holds: call
// it before Release. A frame of another flow is refused with ErrFrame, and then none is replayed.
func (g *Gate) Replay(f tcprepair.Flow, frames [][]byte) error {
	return g.put("replay", f, frames, toStack)
}

// Resend gives frames back to the packet path: they go where the flow's route says, as if they had just arrived. ErrFrame is as with
// Replay.
func (g *Gate) Resend(f tcprepair.Flow, frames [][]byte) error {
	return g.put("resend", f, frames, toTable)
}

func (g *Gate) put(op string, f tcprepair.Flow, frames [][]byte, to string) error {
	for _, frame := range frames {
		if of, ok := frameFlow(frame); !ok || of != f || len(frame) > maxFrame {
			return &OpError{Op: op, Flow: f, Err: ErrFrame}
		}
	}
	if err := g.enter(f); err != nil {
		return &OpError{Op: op, Flow: f, Err: err}
	}
	defer g.mu.Unlock()
	tap := 0
	if q := g.queues[f]; q != nil {
		tap = q.tap
	}
	if err := g.inject(tap, frames, to); err != nil {
		return &OpError{Op: op, Flow: f, Err: err}
	}
	return nil
}
