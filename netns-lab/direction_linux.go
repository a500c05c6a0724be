// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many frames are read before those that are due are written.
	batch = 64
	// maxWaiting bounds the frames that wait in one direction: 128 MiB of full-sized ones.
	maxWaiting = 65536
	// frameExtra is what a frame has beyond the MTU: the Ethernet header and one VLAN tag.
	frameExtra = 14 + 4
)

// Stats counts what one direction of an element did. Read = Delivered + Lost + Overflowed + Failed + still waiting, copies not counted.
type Stats struct {
	// Read counts frames and bytes that came in.
	Read, ReadBytes uint64
	// Delivered counts frames that went out, without second copies.
	Delivered uint64
	// Lost, Overflowed, Reordered and Duplicated count Scheduler verdicts; Overflowed also frames beyond what the element can hold.
	Lost, Overflowed, Reordered, Duplicated uint64
	// Failed counts frames that the kernel did not take.
	Failed uint64
	// Late is the sum, Latest the largest, of how much later than decided frames went out: how far the element is to be trusted.
	Late, Latest time.Duration
}

// direction moves frames one way. Its goroutine owns everything but next, stopping and counts.
type direction struct {
	in, out *tap // not owned
	stop    int  // an eventfd that becomes readable; not owned
	size    int  // of a frame buffer
	sched   *Scheduler
	clock   func() time.Duration
	waiting releases
	spare   [][]byte // free frame buffers

	next     atomic.Pointer[Impairment]
	stopping atomic.Bool
	counts   struct {
		read, readBytes, delivered, lost, overflowed, reordered, duplicated, failed atomic.Uint64
		late, latest                                                                atomic.Int64
	}
}

func newDirection(in, out *tap, stop, mtu int, im Impairment) (*direction, error) {
	sched, err := NewScheduler(im)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	return &direction{
		in: in, out: out, stop: stop, size: mtu + frameExtra, sched: sched,
		clock: func() time.Duration { return time.Since(begin) },
	}, nil
}

func (d *direction) stats() Stats {
	c := &d.counts
	return Stats{
		Read: c.read.Load(), ReadBytes: c.readBytes.Load(), Delivered: c.delivered.Load(),
		Lost: c.lost.Load(), Overflowed: c.overflowed.Load(), Reordered: c.reordered.Load(), Duplicated: c.duplicated.Load(),
		Failed: c.failed.Load(), Late: time.Duration(c.late.Load()), Latest: time.Duration(c.latest.Load()),
	}
}

// run moves frames until stop is readable. What still waits then is dropped.
func (d *direction) run() error {
	// A thread's timers are rounded up to its slack, 50 us by default.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) //nolint:errcheck // 0 restores the default and cannot fail
	for {
		if im := d.next.Swap(nil); im != nil {
			if err := d.sched.Set(*im); err != nil {
				return err
			}
		}
		n, err := d.read()
		if err != nil {
			return err
		}
		d.write()
		stop, err := d.pause(n == batch)
		if stop || err != nil {
			return err
		}
	}
}

// read takes up to batch frames and schedules them.
func (d *direction) read() (int, error) {
	for n := range batch {
		frame := d.buffer()
		size, err := d.in.read(frame)
		if err != nil {
			d.spare = append(d.spare, frame)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				return n, nil
			}
			return n, fmt.Errorf("read from tap %s: %w", d.in.name, err)
		}
		d.counts.read.Add(1)
		d.counts.readBytes.Add(uint64(size))
		d.schedule(frame[:size])
	}
	return batch, nil
}

func (d *direction) schedule(frame []byte) {
	v := d.sched.Schedule(d.clock(), Packet{Size: len(frame), Neighbour: isNeighbour(frame)})
	if v.Fate == Delivered && d.waiting.len() >= maxWaiting {
		v.Fate = Overflowed
	}
	switch v.Fate {
	case Lost:
		d.counts.lost.Add(1)
		d.spare = append(d.spare, frame)
		return
	case Overflowed:
		d.counts.overflowed.Add(1)
		d.spare = append(d.spare, frame)
		return
	case Delivered:
	}
	d.waiting.push(v.At, frame, false)
	if v.Reordered {
		d.counts.reordered.Add(1)
	}
	if v.Duplicated {
		d.counts.duplicated.Add(1)
		d.waiting.push(v.At, append(d.buffer()[:0], frame...), true)
	}
}

// write sends every frame that is due.
func (d *direction) write() {
	for n := 0; ; n++ {
		at, ok := d.waiting.next()
		if !ok {
			return
		}
		now := d.clock()
		if at > now {
			return
		}
		r := d.waiting.pop()
		err := d.out.write(r.frame)
		d.spare = append(d.spare, r.frame)
		switch {
		case err != nil:
			d.counts.failed.Add(1)
		case !r.copy:
			d.counts.delivered.Add(1)
		}
		late := int64(now - at)
		d.counts.late.Add(late)
		if late > d.counts.latest.Load() {
			d.counts.latest.Store(late)
		}
		if n >= batch {
			return // let the tap's queue be read, so that it does not overflow
		}
	}
}

// pause waits until there is something to read or to write; busy says that there is now. It reports whether to stop.
func (d *direction) pause(busy bool) (bool, error) {
	if busy {
		return d.stopping.Load(), nil
	}
	fds := [2]unix.PollFd{{Fd: int32(d.in.fd), Events: unix.POLLIN}, {Fd: int32(d.stop), Events: unix.POLLIN}}
	var timeout *unix.Timespec
	if at, ok := d.waiting.next(); ok {
		t := unix.NsecToTimespec(int64(max(at-d.clock(), 0)))
		timeout = &t
	}
	if _, err := unix.Ppoll(fds[:], timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return false, os.NewSyscallError("ppoll", err)
	}
	return fds[1].Revents != 0, nil
}

// buffer returns a free frame buffer; they are made as the need grows.
func (d *direction) buffer() []byte {
	if len(d.spare) == 0 {
		slab := make([]byte, batch*d.size)
		for i := range batch {
			d.spare = append(d.spare, slab[i*d.size:(i+1)*d.size:(i+1)*d.size])
		}
	}
	last := len(d.spare) - 1
	frame := d.spare[last]
	d.spare = d.spare[:last]
	return frame[:d.size]
}

// isNeighbour recognises ARP and IPv6 neighbour discovery in an untagged Ethernet frame.
func isNeighbour(frame []byte) bool {
	const (
		ethernet = 14
		icmpType = ethernet + 40
	)
	if len(frame) < ethernet {
		return false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		return true
	case unix.ETH_P_IPV6:
		// Router and neighbour solicitation and advertisement, redirect: RFC 4861, types 133 to 137.
		return len(frame) > icmpType && frame[ethernet+6] == unix.IPPROTO_ICMPV6 && frame[icmpType] >= 133 && frame[icmpType] <= 137
	}
	return false
}
