// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/shortcut"
)

// attachXDP puts the XDP program at all interfaces, or at none: a packet may come by one and leave by another. why says
// what keeps XDP from being used; err, what keeps the forwarder from being opened. In either case the links that there are
// must be closed, once something else is in their place.
//
// First a program that only listens is attached, so that the probe endangers no packet, and then replaced in one step.
func (f *Forwarder) attachXDP() (links []link.Link, why, err error) {
	fresh := make(map[*point]link.Link)
	for _, p := range f.points {
		l, resumed, err := f.listenXDP(p)
		if errors.Is(err, unix.EPERM) {
			return links, nil, err
		}
		if err != nil {
			return links, fmt.Errorf("interface %s: attach to its driver: %w", p.name, err), nil
		}
		links = append(links, l)
		if !resumed {
			fresh[p] = l
		}
		if err := f.probe(p); err != nil {
			return links, fmt.Errorf("interface %s: %w", p.name, err), nil
		}
	}
	for p, l := range fresh {
		if err := l.Update(f.table.objects.RehomeXdp); err != nil {
			return links, nil, fmt.Errorf("interface %s: replace the program: %w", p.name, err)
		}
		if err := pinAt(l, f.pin(p, XDP)); err != nil {
			return links, nil, err
		}
	}
	for i, p := range f.points {
		p.attached = links[i]
	}
	return nil, nil, nil
}

// listenXDP attaches the program that only listens. A pinned link is resumed instead, which has shown before that it works
// and goes on forwarding while it is probed again.
func (f *Forwarder) listenXDP(p *point) (_ link.Link, resumed bool, err error) {
	old, err := former(f.pin(p, XDP))
	if err != nil {
		return nil, false, err
	}
	if old != nil {
		if old.Update(f.table.objects.RehomeXdp) == nil {
			return old, true, nil
		}
		// Gone with its interface.
		if err := errors.Join(old.Unpin(), old.Close()); err != nil {
			return nil, false, err
		}
	}
	l, err := link.AttachXDP(link.XDPOptions{
		Interface: p.ifindex, Program: f.table.objects.RehomeListen, Flags: link.XDPDriverMode,
	})
	return l, false, err
}

const (
	probeTries    = 5
	probeInterval = 200 * time.Millisecond
)

// xdpLiveFrames makes BPF_PROG_RUN carry out what the program decides (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18).
const xdpLiveFrames = 1 << 1

// xdpContext is struct xdp_md.
type xdpContext struct {
	Data, DataEnd, DataMeta, IngressIfindex, Queue, EgressIfindex uint32
}

// probe finds out whether frames that XDP redirects out of the interface arrive, and whether what arrives there passes
// the driver's hook. It has rehome_probe send ARP requests from the address 0.0.0.0 (RFC 5227), for which neighbours store
// nothing, and waits until the program at the interface has counted an answer to that address. (KERNEL 24: on a veth
// whose peer has neither GRO nor a program, such frames are lost in silence.)
func (f *Forwarder) probe(p *point) error {
	peers, err := shortcut.Neighbours(f.nl, p.ifindex, f.config.Peers...)
	if err != nil {
		return fmt.Errorf("find its neighbours: %w", err)
	}
	if len(peers) == 0 {
		return errors.New("no neighbour to ask whether frames arrive: name one in Config.Peers")
	}
	before, err := f.table.counters()
	if err != nil {
		return err
	}
	for range probeTries {
		for _, a := range peers {
			frame := shortcut.Question(p.mac, a)
			if _, err := f.table.objects.RehomeProbe.Run(&ebpf.RunOptions{
				Data:    frame,
				Context: xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(p.ifindex)},
				Repeat:  1,
				Flags:   xdpLiveFrames,
			}); err != nil {
				return fmt.Errorf("send a frame through XDP: %w", err)
			}
		}
		for deadline := time.Now().Add(probeInterval); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			now, err := f.table.counters()
			if err != nil {
				return err
			}
			if now.Probed > before.Probed {
				return nil
			}
		}
	}
	return fmt.Errorf("no answer from %v through XDP: frames get lost (on veth: the other end needs GRO)", peers)
}
