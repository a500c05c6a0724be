// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/shortcut"
)

// checkShortcuts tells of each interface how packets will leave by it. That there is no shortcut is no fault. It comes after checkPeers, by
// which the kernel has learned who could be asked.
func checkShortcuts(cfg *Config) []Finding {
	if cfg.Forward.Mode != ForwardTCX {
		return nil // nothing to choose
	}
	var found []Finding
	for _, name := range cfg.Interfaces {
		f := Finding{What: "way out of " + name, OK: true, Optional: true, Detail: "packets go on at the other end of its veth pair at once"}
		if cfg.Forward.Shortcut == ShortcutOff {
			f.Detail = "packets leave by the interface itself: forward.shortcut is off"
		} else if err := tryShortcut(name); err != nil {
			f.Detail = fmt.Sprintf("packets leave by the interface itself: no shortcut: %v", err)
		}
		found = append(found, f)
	}
	return found
}

func tryShortcut(name string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	at, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	// A dispatcher that runs has the gate's program at the way out.
	if err := shortcut.Examine(nl, at.Index, shortcut.Gate); err != nil {
		return err
	}
	peers, err := shortcut.Neighbours(nl, at.Index)
	if err != nil {
		return err
	}
	return shortcut.Prove(nl, at.Index, peers)
}
