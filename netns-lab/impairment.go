// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Bounds of an Impairment.
const (
	maxDelay = 10 * time.Second
	maxRate  = 100_000_000_000
	// defaultQueue is the queue in front of a rate limit, in bytes, when none is given.
	defaultQueue = 256 << 10
	// minBurst lets one packet of any size through an idle rate limit.
	minBurst = 1 << 10
	// defaultReorderBy is how much later a reordered packet comes, when nothing is given and there is no jitter.
	defaultReorderBy = time.Millisecond
)

// Impairment says what one direction of a link does to packets. The zero value does nothing. A packet passes, in this order:
// loss, rate limit and its queue, delay and jitter, reordering, duplication.
type Impairment struct {
	// Delay is added to every packet.
	Delay time.Duration `json:"delay,omitempty"`
	// Jitter is the most that is added on top of Delay. The addition wanders between 0 and Jitter along straight lines between random points
	// 2*Jitter apart in time, so jitter alone never changes the order of packets, at any packet rate.
	Jitter time.Duration `json:"jitter,omitempty"`
	// Loss is the fraction of packets that vanish, 0 to 1, each by itself.
	Loss float64 `json:"loss,omitempty"`
	// Reorder is the fraction of packets, 0 to 1, that come ReorderBy later than they would, so that others overtake them.
	Reorder float64 `json:"reorder,omitempty"`
	// ReorderBy is the lateness of a reordered packet; 0 means Jitter, or 1 ms without jitter.
	ReorderBy time.Duration `json:"reorderBy,omitempty"`
	// Duplicate is the fraction of packets, 0 to 1, that come twice.
	Duplicate float64 `json:"duplicate,omitempty"`
	// Rate is the link's speed in bits per second, of whole Ethernet frames without preamble and checksum; 0 means no limit.
	Rate int64 `json:"rate,omitempty"`
	// Burst is the depth of the token bucket in bytes: what may pass at once after a pause. 0 means one full frame at Rate.
	Burst int `json:"burst,omitempty"`
	// Queue bounds, in bytes, what waits for Rate; what does not fit is dropped at the tail. 0 means 256 KiB.
	Queue int `json:"queue,omitempty"`
	// Seed makes the random choices repeatable: the same packets at the same times meet the same fate.
	Seed uint64 `json:"seed,omitempty"`
}

// RTT returns the impairment that, set in both directions, adds the given round-trip time and nothing else.
func RTT(d time.Duration) Impairment { return Impairment{Delay: d / 2} }

// Validate reports the first field that is out of bounds.
func (im Impairment) Validate() error {
	for _, f := range []struct {
		name  string
		value float64
	}{{"loss", im.Loss}, {"reorder", im.Reorder}, {"duplicate", im.Duplicate}} {
		if !(f.value >= 0 && f.value <= 1) {
			return fmt.Errorf("%s %v: want a fraction from 0 to 1", f.name, f.value)
		}
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"delay", im.Delay}, {"jitter", im.Jitter}, {"reorderBy", im.ReorderBy}} {
		if f.value < 0 || f.value > maxDelay {
			return fmt.Errorf("%s %v: want 0 to %v", f.name, f.value, maxDelay)
		}
	}
	if im.Rate < 0 || im.Rate > maxRate {
		return fmt.Errorf("rate %d: want 0 to %d bits per second", im.Rate, int64(maxRate))
	}
	if im.Burst < 0 || im.Queue < 0 {
		return fmt.Errorf("burst %d, queue %d: want no negative number of bytes", im.Burst, im.Queue)
	}
	return nil
}

// Fate is what becomes of one packet.
type Fate uint8

// The fates.
const (
	// Delivered: the packet leaves at Verdict.At.
	Delivered Fate = iota
	// Lost: chosen by Impairment.Loss.
	Lost
	// Overflowed: the queue in front of Rate was full.
	Overflowed
)

// Verdict is a Scheduler's answer for one packet.
type Verdict struct {
	// Fate says whether it is delivered at all; the other fields matter only then.
	Fate Fate
	// At is the time at which the packet leaves, on the clock of Schedule's now.
	At time.Duration
	// Reordered says that At was put off so that others overtake.
	Reordered bool
	// Duplicated says that a second copy leaves at the same time, right after the first.
	Duplicated bool
}

// Packet is what a Scheduler wants to know of a packet.
type Packet struct {
	// Size is that of the frame in bytes.
	Size int
	// Neighbour marks ARP and neighbour discovery. They are delayed and queued like any packet but never chosen for loss, reordering or duplication: a lost
	// ARP request is repeated after a whole second, which hides what the impairment does to the traffic under test.
	Neighbour bool
}

// Scheduler decides when packets of one direction leave. It has no clock and no goroutine: the same calls give the same answers.
type Scheduler struct {
	im Impairment
	// One stream of choices each, so that changing one probability leaves the other choices as they were.
	loss, reorder, duplicate rand.PCG
	// free is when the rate limit has sent all that was queued (the theoretical arrival time of GCRA, ITU-T I.371).
	free time.Duration
	// last is the release of the latest packet that kept its order: the next may not leave earlier.
	last time.Duration
}

// NewScheduler returns a scheduler that applies im.
func NewScheduler(im Impairment) (*Scheduler, error) {
	if err := im.Validate(); err != nil {
		return nil, err
	}
	s := &Scheduler{im: im}
	s.seed()
	return s, nil
}

func (s *Scheduler) seed() {
	s.loss.Seed(s.im.Seed, 1)
	s.reorder.Seed(s.im.Seed, 2)
	s.duplicate.Seed(s.im.Seed, 3)
}

// Set changes the impairment for the packets that follow. Those scheduled before stay as they are and keep their place in the order.
// The random choices go on, unless Seed changes: then they start anew.
func (s *Scheduler) Set(im Impairment) error {
	if err := im.Validate(); err != nil {
		return err
	}
	anew := im.Seed != s.im.Seed
	s.im = im
	if anew {
		s.seed()
	}
	return nil
}

// Schedule decides about a packet that arrives at now, a time since any fixed moment. Calls come in order of now.
func (s *Scheduler) Schedule(now time.Duration, p Packet) Verdict {
	spared := p.Neighbour
	if chance(&s.loss, s.im.Loss) && !spared {
		return Verdict{Fate: Lost}
	}
	depart, ok := s.transmit(now, p.Size)
	if !ok {
		return Verdict{Fate: Overflowed}
	}
	at := max(depart+s.im.Delay+s.jitter(depart), s.last)
	v := Verdict{At: at, Duplicated: chance(&s.duplicate, s.im.Duplicate) && !spared}
	if chance(&s.reorder, s.im.Reorder) && !spared {
		v.Reordered = true
		v.At += s.reorderBy()
		return v
	}
	s.last = at
	return v
}

// transmit returns when the rate limit lets a frame of size bytes go, or false if the queue is full.
func (s *Scheduler) transmit(now time.Duration, size int) (time.Duration, bool) {
	if s.im.Rate == 0 {
		s.free = 0
		return now, true
	}
	cost := s.airtime(size)
	burst := max(cost, s.airtime(max(s.im.Burst, minBurst)))
	free := max(s.free, now)
	// The bucket holds burst: a frame leaves as soon as the debt, its own cost included, is no more than that.
	depart := max(now, free+cost-burst)
	queue := s.im.Queue
	if queue == 0 {
		queue = defaultQueue
	}
	if depart > now && depart-now > s.airtime(queue) {
		return 0, false
	}
	s.free = free + cost
	return depart, true
}

// airtime returns how long size bytes take at Rate.
func (s *Scheduler) airtime(size int) time.Duration {
	return time.Duration(float64(size) * 8 * float64(time.Second) / float64(s.im.Rate))
}

// jitter returns the addition to Delay at time t: linear between random values at multiples of 2*Jitter. Its slope is within one half, so t+jitter(t)
// never falls. Each point comes from the seed and its number alone: pauses cost nothing.
func (s *Scheduler) jitter(t time.Duration) time.Duration {
	if s.im.Jitter == 0 {
		return 0
	}
	step := 2 * s.im.Jitter
	k := t / step
	within := float64(t%step) / float64(step)
	a, b := s.knot(uint64(k)), s.knot(uint64(k)+1)
	return time.Duration((a + (b-a)*within) * float64(s.im.Jitter))
}

// knot returns the k-th random point of the jitter, from 0 to 1.
func (s *Scheduler) knot(k uint64) float64 {
	var r rand.PCG
	r.Seed(s.im.Seed, k<<2) // the two low bits keep clear of the streams 1 to 3
	return unit(r.Uint64())
}

func (s *Scheduler) reorderBy() time.Duration {
	switch {
	case s.im.ReorderBy > 0:
		return s.im.ReorderBy
	case s.im.Jitter > 0:
		return s.im.Jitter
	}
	return defaultReorderBy
}

// chance draws once, whatever p is, so that the stream stays in step with the packets.
func chance(r *rand.PCG, p float64) bool { return unit(r.Uint64()) < p }

func unit(x uint64) float64 { return float64(x>>11) / (1 << 53) }
