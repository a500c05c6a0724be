// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Service names a service.
type Service struct {
	Address  netip.AddrPort
	Protocol uint8 // IPPROTO_TCP or IPPROTO_UDP
}

// Announcement is a flow that signalling has promised (SARA S7). Its first packet makes it a flow of its own, the secondary
// flow (SARA S9), without the dispatcher: a datagram, a SYN, or the answer to a SYN that the server has sent.
type Announcement struct {
	Client, Server netip.AddrPort // of the two ports one may be 0: any
	Protocol       uint8          // IPPROTO_TCP or IPPROTO_UDP
	Node           gate.Node      // who serves it
	// Lifetime is for how long the first packet is waited for. 0 means 60 seconds. The flow itself lives by Config's timeouts.
	Lifetime time.Duration
	// Service is whose Admission holds for the flow, which counts as established, and in whose ServiceStats it is. Zero: none's.
	Service Service
	// Inspect makes the flow signalling.
	Inspect bool
	// Tag comes back in the Event.
	Tag uint64
}

// Event is the first packet of an announced flow. One flow may be reported twice, if its first packets came by two processors.
type Event struct {
	Flow           tcprepair.Flow
	Protocol       uint8
	Node           gate.Node
	Client, Server netip.AddrPort // as announced
	Tag            uint64
}

const (
	defaultLifetime = time.Minute
	// expiryInterval is how often lapsed announcements are removed. They have no effect before that.
	expiryInterval = 5 * time.Second
	promiseInspect = 1
)

// keyFamily4 and keyFamily6 are the family in struct key.
const (
	keyFamily4 = 4
	keyFamily6 = 6
)

// key is the flow, with what is open, as in bpf/promise.h; pattern is its kind.
func (a *Announcement) key() (k forwardKey, pattern uint32, err error) {
	client, server := a.Client.Addr().Unmap(), a.Server.Addr().Unmap()
	switch {
	case !client.IsValid() || !server.IsValid() || client.Is4() != server.Is4():
		return k, 0, fmt.Errorf("announcement %v to %v: want two addresses of one family", a.Client, a.Server)
	case a.Client.Port() == 0 && a.Server.Port() == 0:
		return k, 0, fmt.Errorf("announcement %v to %v: want a port", a.Client, a.Server)
	case a.Protocol != protoTCP && a.Protocol != protoUDP:
		return k, 0, fmt.Errorf("announcement of protocol %d: want TCP or UDP", a.Protocol)
	case a.Node >= MaxNodes:
		return k, 0, fmt.Errorf("node %d: at most %d", a.Node, MaxNodes-1)
	case a.Lifetime < 0 || a.Lifetime > maxTimeout:
		return k, 0, fmt.Errorf("lifetime %v: want at most %v", a.Lifetime, maxTimeout)
	}
	k = forwardKey{Proto: a.Protocol, Family: keyFamily6}
	if client.Is4() {
		k.Family = keyFamily4
	}
	words(&k.Local, server)
	words(&k.Remote, client)
	b := binary.BigEndian.AppendUint16(nil, a.Client.Port())
	k.Ports = binary.LittleEndian.Uint32(binary.BigEndian.AppendUint16(b, a.Server.Port()))
	switch {
	case a.Client.Port() == 0:
		pattern = 1
	case a.Server.Port() == 0:
		pattern = 2
	}
	return k, pattern, nil
}

func words(to *[4]uint32, a netip.Addr) {
	b := a.AsSlice()
	for i := range len(b) / 4 {
		to[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
}

// Announce has the flows' first packets sent on, from when it returns. What was announced before for the same addresses and
// ports is replaced. If one fails, those before it are announced. ErrFull when there are too many.
//
// A flow with both ports that is still known from before, with another owner, is forgotten.
func (f *Forwarder) Announce(announcements ...Announcement) error {
	for i := range announcements {
		if err := f.announce(&announcements[i]); err != nil {
			return &OpError{Op: "announce", Err: err}
		}
	}
	return nil
}

func (f *Forwarder) announce(a *Announcement) error {
	key, pattern, err := a.key()
	if err != nil {
		return err
	}
	if a.Inspect && !f.config.Divert {
		return ErrNotDiverted
	}
	life := a.Lifetime
	if life == 0 {
		life = defaultLifetime
	}
	p := forwardPromise{Tag: a.Tag, Until: now() + ticks(life), Node: uint16(a.Node)}
	if a.Inspect {
		p.Flags = promiseInspect
	}
	if a.Service != (Service{}) {
		p.Service = f.of(a.Service.Protocol).number(a.Service.Address)
	}
	if err := f.table.noticePattern(pattern); err != nil {
		return err
	}
	if err := f.table.objects.Promises.Put(key, p); errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: or raise MaxAnnounced", ErrFull)
	} else if err != nil {
		return err
	}
	if pattern != 0 {
		return nil
	}
	of, flow := f.of(a.Protocol), tcprepair.NewFlow(a.Server, a.Client)
	if r, err := of.Route(flow); err == nil && r.Node != a.Node {
		return of.Forget(flow)
	}
	return nil
}

// Withdraw takes announcements back, of which only addresses, ports and protocol matter (TEARDOWN, BYE). Flows that have
// begun stay: see Forget. Unknown ones are no error.
func (f *Forwarder) Withdraw(announcements ...Announcement) error {
	for i := range announcements {
		key, _, err := announcements[i].key()
		if err == nil {
			err = f.table.objects.Promises.Delete(key)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return &OpError{Op: "withdraw", Err: err}
		}
	}
	return nil
}

// of returns the flows of a protocol.
func (f *Forwarder) of(protocol uint8) *Flows {
	if protocol == protoUDP {
		return &f.udp
	}
	return f.Flows
}

func (s *Flows) number(vip netip.AddrPort) uint16 { return s.table.numbers.find(s.serviceKey(vip)) }

// patternsAt is where struct control has the kinds of promises; readingAt and tapAt, the other fields.
const (
	readingAt  = 0
	tapAt      = 8
	patternsAt = 12
)

// noticePattern has first packets looked up among promises of the kind.
func (t *table) noticePattern(pattern uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	var b [4]byte
	if _, err := t.overall.ReadAt(b[:], patternsAt); err != nil {
		return err
	}
	word := binary.NativeEndian.Uint32(b[:])
	if word&(1<<pattern) != 0 {
		return nil
	}
	binary.NativeEndian.PutUint32(b[:], word|1<<pattern)
	_, err := t.overall.WriteAt(b[:], patternsAt)
	return err
}

// now is the time of the table's clock.
func now() uint32 { return uint32(monotonic() / tick) }

// monotonic is CLOCK_MONOTONIC, the clock of BPF programs.
func monotonic() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail for this clock
	return time.Duration(t.Nano())
}

// expire removes lapsed announcements.
func (f *Forwarder) expire() error {
	at, limit := now(), 1024
	keys, values := make([]forwardKey, limit), make([]forwardPromise, limit)
	var lapsed []forwardKey
	var cursor ebpf.MapBatchCursor
	for {
		n, err := f.table.objects.Promises.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("look through the announcements: %w", err)
		}
		for i := range n {
			if int32(values[i].Until-at) < 0 {
				lapsed = append(lapsed, keys[i])
			}
		}
		if err != nil {
			break
		}
	}
	for _, k := range lapsed {
		var p forwardPromise
		// It may have been announced anew.
		if err := f.table.objects.Promises.Lookup(k, &p); err != nil || int32(p.Until-at) >= 0 {
			continue
		}
		if err := f.table.objects.Promises.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove an announcement: %w", err)
		}
	}
	return nil
}

// eventSize is the size of struct event.
const eventSize = 56

// decodeEvent reads struct event.
func decodeEvent(b []byte) (Event, error) {
	if len(b) < eventSize {
		return Event{}, fmt.Errorf("event of %d bytes, want %d", len(b), eventSize)
	}
	var e Event
	address := func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }
	switch b[37] {
	case keyFamily4:
		address = func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
	case keyFamily6:
	default:
		return Event{}, fmt.Errorf("event of family %d", b[37])
	}
	local, remote := address(b[0:16][:addressLength(b[37])]), address(b[16:32][:addressLength(b[37])])
	port := binary.BigEndian.Uint16
	e.Flow = tcprepair.Flow{Local: netip.AddrPortFrom(local, port(b[34:])), Remote: netip.AddrPortFrom(remote, port(b[32:]))}
	e.Protocol = b[36]
	e.Client, e.Server = netip.AddrPortFrom(remote, port(b[40:])), netip.AddrPortFrom(local, port(b[42:]))
	e.Node = gate.Node(binary.LittleEndian.Uint32(b[44:]))
	e.Tag = binary.LittleEndian.Uint64(b[48:])
	return e, nil
}

func addressLength(family byte) int {
	if family == keyFamily4 {
		return 4
	}
	return 16
}

// Watch calls began for the first packets of announced flows, until ctx is done. Packets do not wait for it. What it has no time for is
// counted (Stats.Untold), and can be found by Scan.
func (f *Forwarder) Watch(ctx context.Context, began func(Event)) error {
	reader, err := ringbuf.NewReader(f.table.objects.Events)
	if err != nil {
		return &OpError{Op: "watch", Err: err}
	}
	stop := context.AfterFunc(ctx, func() { _ = reader.Close() })
	defer func() {
		stop()
		_ = reader.Close()
	}()
	var record ringbuf.Record
	for {
		err := reader.ReadInto(&record)
		if ctx.Err() != nil {
			return nil
		}
		var e Event
		if err == nil {
			e, err = decodeEvent(record.RawSample)
		}
		if err != nil {
			return &OpError{Op: "watch", Err: err}
		}
		began(e)
	}
}
