// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// CRIUAlone moves processes as a plain script would: `criu dump` into tmpfs, with CRIU's own lock; the images carried to the target's tmpfs;
// the address taken along; `criu restore`. Two things are in its favour: the images go through one TCP connection without
// encryption, and the client learns at once where the address is.
type CRIUAlone struct {
	bed *ProcessBed
	// lock is CRIU's: nftables or iptables.
	lock string
	// shared leaves out the carrying of the images, as if two hosts had one tmpfs.
	shared bool
	// skip leaves connections that are being set up behind.
	skip bool
}

// CRIUAloneConfig chooses a variant. The zero value is the nftables lock, images that are carried, and no dump while connections are being set up.
type CRIUAloneConfig struct {
	// Lock is nftables or iptables.
	Lock string
	// SharedImages spares the carrying, as if the hosts had one tmpfs. SkipInFlight dumps without the connections that are being set up.
	SharedImages, SkipInFlight bool
}

// NewCRIUAlone returns a mover for servers in the bed.
func NewCRIUAlone(b *ProcessBed, cfg CRIUAloneConfig) (*CRIUAlone, error) {
	if cfg.Lock == "" {
		cfg.Lock = "nftables"
	}
	if err := need("nft", "ip", "nsenter"); err != nil {
		return nil, err
	}
	return &CRIUAlone{bed: b, lock: cfg.Lock, shared: cfg.SharedImages, skip: cfg.SkipInFlight}, adoptOrphans()
}

// Name implements ProcessMover.
func (c *CRIUAlone) Name() string { return "criu-alone" }

// floating is the address that goes along with the server, in the network of the hosts' own.
func floating() netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, 200}) }

// Address implements ProcessMover.
func (c *CRIUAlone) Address() netip.AddrPort { return netip.AddrPortFrom(floating(), c.bed.cfg.Port) }

// Place implements ProcessMover.
func (c *CRIUAlone) Place(host string) error {
	link, err := c.bed.host(host).Link()
	if err != nil {
		return err
	}
	return errors.Join(c.takeAddress(host), c.bed.host("client").SetNeighbor(floating(), link.MAC))
}

// takeAddress gives the address to a host, and takes it from the other.
func (c *CRIUAlone) takeAddress(host string) error {
	for _, name := range ProcessHosts() {
		if err := c.setAddress(name, name == host); err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	return nil
}

// setAddress gives a host the floating address, or takes it away.
func (c *CRIUAlone) setAddress(host string, have bool) error {
	return c.bed.host(host).Do(func() error {
		link, err := netlink.LinkByName(netnslab.Interface)
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: floating().AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if have {
			return netlink.AddrReplace(link, addr)
		}
		list, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.IP.Equal(addr.IP) {
				return netlink.AddrDel(link, addr)
			}
		}
		return nil
	})
}

// Move implements ProcessMover.
func (c *CRIUAlone) Move(ctx context.Context, s *Server, to string) (ProcessMoved, error) {
	from, begin := s.Host, time.Now()
	source, err := os.MkdirTemp("/dev/shm", "rh-criu-")
	if err != nil {
		return ProcessMoved{}, err
	}
	defer os.RemoveAll(source) //nolint:errcheck // a temporary directory
	tree, err := processTree(s.PID)
	if err != nil {
		return ProcessMoved{}, err
	}
	args := []string{"--tree", strconv.Itoa(s.PID)}
	if c.skip {
		args = append(args, "--skip-in-flight")
	}
	if err := c.run(ctx, from, source, "dump", args...); err != nil {
		return ProcessMoved{}, err
	}
	// The dump has ended the processes, and they are to have the same numbers again. The first of them is at first a child that is
	// waited for elsewhere.
	select {
	case <-s.d.done:
	case <-ctx.Done():
		return ProcessMoved{}, ctx.Err()
	}
	if err := awaitFree(ctx, tree); err != nil {
		return ProcessMoved{}, err
	}
	target := source
	if !c.shared {
		if target, err = os.MkdirTemp("/dev/shm", "rh-criu-"); err != nil {
			return ProcessMoved{}, err
		}
		defer os.RemoveAll(target) //nolint:errcheck // a temporary directory
		if err := carry(ctx, c.bed.host(from), c.bed.host(to), source, target); err != nil {
			return ProcessMoved{}, err
		}
	}
	if err := c.takeAddress(to); err != nil {
		return ProcessMoved{}, err
	}
	script, err := c.writeScript(to, target)
	if err != nil {
		return ProcessMoved{}, err
	}
	if err := c.run(ctx, to, target, "restore", "--restore-detached", "--action-script", script); err != nil {
		return ProcessMoved{}, err
	}
	s.Host = to
	m := ProcessMoved{Total: time.Since(begin)}
	if m.ImageBytes, err = directorySize(target); err != nil {
		return m, err
	}
	// CRIU's lock stays behind at the source and would drop the connections' packets when they come back.
	return m, c.removeTables(ctx, from)
}

// writeScript writes what CRIU is to run while it restores: it tells the client where the address is, when the sockets are there and do
// not work yet. Before that the target, where no lock is, would answer with RST; after it the sockets' first packets would be answered to the source.
func (c *CRIUAlone) writeScript(host, dir string) (string, error) {
	link, err := c.bed.host(host).Link()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "cutover.sh")
	return path, os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\n"+
		"[ \"$CRTOOLS_SCRIPT_ACTION\" = post-restore ] || exit 0\n"+
		"exec nsenter --net=/run/netns/%s ip neigh replace %v lladdr %v dev %s nud permanent\n",
		c.bed.host("client").Namespace(), floating(), link.MAC, netnslab.Interface), 0o700)
}

// run runs criu in a host.
func (c *CRIUAlone) run(ctx context.Context, host, images, action string, args ...string) error {
	log := action + ".log"
	args = append([]string{
		action, "--images-dir", images, "--tcp-established", "--network-lock", c.lock, "--manage-cgroups=ignore",
		"--log-file", log, "-v2",
	}, args...)
	out, err := c.bed.host(host).Command(ctx, c.bed.criu, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	text, _ := os.ReadFile(filepath.Join(images, log))
	return fmt.Errorf("criu %s in %s: %w: %s %s", action, host, err, out, errorLines(string(text)))
}

// errorLines returns the lines of a CRIU log that say what went wrong.
func errorLines(text string) string {
	var list []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, "Error (") && !strings.Contains(line, "RLIMIT_NOFILE") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return strings.Join(list, "; ")
}

// removeTables removes what CRIU's nftables lock has left in a host.
func (c *CRIUAlone) removeTables(ctx context.Context, host string) error {
	out, err := c.bed.host(host).Command(ctx, "nft", "list", "tables").Output()
	if err != nil {
		return fmt.Errorf("nft list tables in %s: %w", host, err)
	}
	for line := range strings.Lines(string(out)) {
		table, ok := strings.CutPrefix(strings.TrimSpace(line), "table ")
		if !ok || !strings.Contains(table, " CRIU-") {
			continue
		}
		args := append([]string{"delete", "table"}, strings.Fields(table)...)
		if out, err := c.bed.host(host).Command(ctx, "nft", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("nft delete table %s in %s: %w: %s", table, host, err, out)
		}
	}
	return nil
}
