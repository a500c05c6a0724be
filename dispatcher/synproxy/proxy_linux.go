// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Proxy stands at the interface of a dispatcher's host. Its methods are safe for concurrent use.
type Proxy struct {
	config  Config
	ifindex int
	objects synproxyObjects
	maps    cookie.Maps
	ingress link.Link
	reader  *ringbuf.Reader
	sender  *sender

	ring       sync.Mutex // reader is not closed while it is asked what it has
	ringClosed bool

	mu     sync.Mutex
	closed bool
	short  bool // answers take the shortcut
	nodes  map[gate.Node]node
	conns  map[tcprepair.Flow]*conn
	// waiting, asked, kept and told (answered) are those that something is to be done about later, the first to come first.
	waiting, asked, kept, told []*conn
	// sent are those whose path is to be switched next, changes is scratch space for that.
	sent    []*conn
	changes []gate.Change
	// unmarked are those given away that the program has not been told of.
	unmarked []*conn
	stats    Stats
	scratch  []byte
	// moves are the connections that are being given to the stack.
	moves sync.WaitGroup
}

// node is where a backend is reached.
type node struct {
	ifindex  int
	dst, src [6]byte
}

// Open loads the program and attaches it last at the interface, in the network namespace of the calling thread. The forwarder that sends decided
// flows on must stand in front: open it later. With Config.PinPath it goes on with what is pinned there.
//
// Errors to expect: cookie.ErrUnsupported, cookie.ErrPermission, cookie.ErrAttached.
func Open(config Config) (*Proxy, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := &Proxy{nodes: make(map[gate.Node]node), conns: make(map[tcprepair.Flow]*conn)}
	if err := p.open(config); err != nil {
		return nil, &OpError{Op: "open", Err: errors.Join(cookie.Explain(err), p.release())}
	}
	return p, nil
}

func (p *Proxy) open(config Config) error {
	if err := config.validate(); err != nil {
		return err
	}
	at, err := net.InterfaceByName(config.Interface)
	if err != nil {
		return fmt.Errorf("interface %q: %w", config.Interface, err)
	}
	p.config, p.ifindex = config.withDefaults(at.MTU), at.Index
	// A kernel without tcx does not know what it is asked for. Its verifier would not take the programs either.
	_, err = link.QueryPrograms(link.QueryOptions{Target: p.ifindex, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: it has no tcx, which came with Linux 6.6", cookie.ErrUnsupported)
	}
	if err := p.load(); err != nil {
		return err
	}
	p.maps = cookie.Maps{Settings: p.objects.Settings, Active: p.objects.Active, Services: p.objects.Services}
	if err := p.secret(); err != nil {
		return err
	}
	if err := p.maps.Install(p.config.Parameters, p.config.announcement()); err != nil {
		return err
	}
	if p.reader, err = ringbuf.NewReader(p.objects.Packets); err != nil {
		return err
	}
	if p.sender, err = newSender(); err != nil {
		return err
	}
	if p.ingress, err = cookie.Attach(at.Index, p.objects.RehomeSynproxy, p.pin("link_"+config.Interface)); err != nil {
		return fmt.Errorf("interface %s: %w", config.Interface, err)
	}
	return nil
}

// secret goes on with the secret of the process before this one, or makes one, unless the configuration has one.
func (p *Proxy) secret() error {
	var err error
	c := &p.config.Parameters
	if c.Secret != (cookie.Secret{}) {
		return nil
	}
	before, err := p.maps.Installed()
	if err != nil {
		return err
	}
	if before.Secret != (cookie.Secret{}) {
		c.Secret, c.Also = before.Secret, before.Also
		return nil
	}
	c.Secret, err = cookie.NewSecret()
	return err
}

// Parameters returns what backends must be given.
func (p *Proxy) Parameters() cookie.Parameters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.config.Parameters
}

// Services returns the addresses at which cookies are sent, also those of a process before this one.
func (p *Proxy) Services() ([]netip.AddrPort, error) {
	all, err := p.maps.List()
	return all, wrap("services", err)
}

// pin names what is kept; empty without Config.PinPath.
func (p *Proxy) pin(name string) string {
	if p.config.PinPath == "" {
		return ""
	}
	return filepath.Join(p.config.PinPath, name)
}

func (p *Proxy) load() error {
	spec, err := loadSynproxy()
	if err != nil {
		return err
	}
	options := &ebpf.CollectionOptions{}
	if p.config.PinPath != "" {
		if err := os.MkdirAll(p.config.PinPath, 0o700); err != nil {
			return fmt.Errorf("pin path: %w", err)
		}
		options.Maps.PinPath = p.config.PinPath
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinByName
		}
	}
	return spec.LoadAndAssign(&p.objects, options)
}

// AddService answers connections to the address from now on.
func (p *Proxy) AddService(at netip.AddrPort) error {
	return wrap("add service", p.maps.AddService(at))
}

// RemoveService leaves packets to the address to the host's stack, also those of requests that are undecided.
func (p *Proxy) RemoveService(at netip.AddrPort) error {
	return wrap("remove service", p.maps.RemoveService(at))
}

// SetNode says how a node is reached: frames leave by the interface, from MAC src to MAC dst.
func (p *Proxy) SetNode(n gate.Node, ifindex int, dst, src net.HardwareAddr) error {
	if n == 0 || ifindex <= 0 || len(dst) != 6 || len(src) != 6 {
		return wrap("set node", fmt.Errorf("node %d: want a number above 0, an interface and two Ethernet addresses", n))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes[n] = node{ifindex: ifindex, dst: [6]byte(dst), src: [6]byte(src)}
	return nil
}

// SetShortcut says whether answers to SYNs go on at the other end of the interface's veth pair at once, as package shortcut has found out. Calls
// about other interfaces change nothing. A process begins with the whole way.
func (p *Proxy) SetShortcut(ifindex int, short bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ifindex != p.ifindex || short == p.short {
		return nil
	}
	a := p.announcement()
	a.Shortcut = short
	if err := p.maps.Install(p.config.Parameters, a); err != nil {
		return wrap("set shortcut", err)
	}
	p.short = short
	return nil
}

// announcement is what the program is told now.
func (p *Proxy) announcement() cookie.Announcement {
	a := p.config.announcement()
	a.Shortcut = p.short
	return a
}

// SetParameters replaces them; see cookie.Parameters for the order in which hosts must be told of a new secret.
func (p *Proxy) SetParameters(c cookie.Parameters) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.WindowScale == 0 {
		c.WindowScale = cookie.DefaultWindowScale
	}
	if err := p.maps.Install(c, p.announcement()); err != nil {
		return wrap("set parameters", err)
	}
	p.config.Parameters = c
	return nil
}

// Close ends the Proxy. With Config.PinPath the program goes on.
func (p *Proxy) Close() error { return p.end("close", false) }

// Remove unpins what Config.PinPath keeps and closes the Proxy: nothing is left in the kernel.
func (p *Proxy) Remove() error { return p.end("remove", true) }

func (p *Proxy) end(op string, remove bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.moves.Wait()
	p.mu.Lock()
	p.switchPath()
	p.markGiven()
	var errs []error
	if remove && p.config.PinPath != "" {
		errs = append(errs, p.ingress.Unpin())
		for _, m := range p.objects.all() {
			errs = append(errs, m.Unpin())
		}
		errs = append(errs, os.Remove(p.config.PinPath))
	}
	return wrap(op, errors.Join(append(errs, p.release())...))
}

func (m *synproxyMaps) all() []*ebpf.Map {
	return []*ebpf.Map{m.Settings, m.Active, m.Services, m.Flows, m.Packets, m.Counts, m.Layout}
}

// release undoes open, as far as that got.
func (p *Proxy) release() error {
	var errs []error
	if p.ingress != nil {
		errs = append(errs, p.ingress.Close())
	}
	if p.reader != nil {
		errs = append(errs, p.closeRing())
	}
	if p.sender != nil {
		errs = append(errs, p.sender.close())
	}
	errs = append(errs, p.objects.RehomeSynproxy.Close())
	for _, m := range p.objects.all() {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Err: err}
}
