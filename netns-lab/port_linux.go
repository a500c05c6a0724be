// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linkWait bounds the wait for a new link; linkPoll is how often to look.
const (
	linkWait = 10 * time.Second
	linkPoll = time.Millisecond
)

// forwarding is the kernel's BR_STATE_FORWARDING.
const forwarding = 3

// awaitForwarding returns when every named port of the switch forwards. A port does so only some time after its interface is up, when the
// kernel's link watch has run; a first packet before that is lost, and TCP repeats it a whole second later.
func (h *Host) awaitForwarding(ctx context.Context, ports ...string) error {
	return poll(ctx, func() error {
		return h.Do(func() error {
			states, err := portStates()
			if err != nil {
				return err
			}
			for _, p := range ports {
				if states[p] != forwarding {
					return fmt.Errorf("port %s is in state %d: %w", p, states[p], errNotYet)
				}
			}
			return nil
		})
	})
}

// awaitUp returns when the host's interface is up.
func (h *Host) awaitUp(ctx context.Context) error {
	return poll(ctx, func() error {
		return h.netlink(func(handle *netlink.Handle) error {
			link, err := handle.LinkByName(Interface)
			if err != nil {
				return fmt.Errorf("%s: %w", Interface, err)
			}
			if s := link.Attrs().OperState; s != netlink.OperUp {
				return fmt.Errorf("%s is %v: %w", Interface, s, errNotYet)
			}
			return nil
		})
	})
}

// errNotYet marks what poll should look at again.
var errNotYet = errors.New("not ready")

// poll calls ready until it returns another error than errNotYet, for linkWait at most.
func poll(ctx context.Context, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, linkWait)
	defer cancel()
	tick := time.NewTicker(linkPoll)
	defer tick.Stop()
	for {
		err := ready()
		if !errors.Is(err, errNotYet) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// portStates returns the state of every bridge port in the calling thread's namespace. The netlink package leaves it out.
func portStates() (map[string]uint8, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	messages, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, errNotYet
	}
	if err != nil {
		return nil, fmt.Errorf("list bridge ports: %w", err)
	}
	states := make(map[string]uint8)
	for _, m := range messages {
		attrs, err := nl.ParseRouteAttr(m[nl.DeserializeIfInfomsg(m).Len():])
		if err != nil {
			return nil, fmt.Errorf("list bridge ports: %w", err)
		}
		var name string
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFLA_IFNAME:
				name = unix.ByteSliceToString(a.Value)
			case unix.IFLA_PROTINFO | unix.NLA_F_NESTED:
				nested, err := nl.ParseRouteAttr(a.Value)
				if err != nil {
					return nil, fmt.Errorf("list bridge ports: %w", err)
				}
				if s, ok := portState(nested); ok {
					states[name] = s // the name comes first in the message
				}
			}
		}
	}
	return states, nil
}

func portState(attrs []syscall.NetlinkRouteAttr) (uint8, bool) {
	for _, a := range attrs {
		if a.Attr.Type == nl.IFLA_BRPORT_STATE && len(a.Value) == 1 {
			return a.Value[0], true
		}
	}
	return 0, false
}
