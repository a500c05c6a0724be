// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Config says where an Acceptor stands. Interface and Parameters.Secret are required.
type Config struct {
	// Interface is the Ethernet interface that the dispatcher's packets arrive on.
	Interface string
	// PinPath is a directory on a BPF filesystem, for this acceptor alone. What is pinned there outlives the process and goes on. Empty:
	// all goes with the process.
	PinPath string
	// Parameters are those of the dispatcher.
	Parameters Parameters
	// Logger receives what no method can return. Nil: nothing is logged.
	Logger *slog.Logger
}

// Acceptor makes connections of the listening sockets of this host from clients' first packets with valid cookies. Its methods are
// safe for concurrent use.
type Acceptor struct {
	config  Config
	objects cookieObjects
	maps    Maps
	ingress link.Link
	made    link.Link // nil where the kernel has no BPF tracepoints
	reader  *ringbuf.Reader

	mu         sync.Mutex
	parameters Parameters
	closed     bool
}

// Open loads the programs and attaches them in the network namespace of the calling thread. With Config.PinPath it goes on with what is
// pinned there.
//
// Errors to expect: ErrUnsupported, ErrPermission, ErrSyncookies, ErrAttached.
func Open(config Config) (*Acceptor, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Acceptor{config: config, parameters: config.Parameters}
	if err := a.open(); err != nil {
		return nil, &OpError{Op: "open", Err: errors.Join(Explain(err), a.close())}
	}
	return a, nil
}

func (a *Acceptor) open() error {
	if err := a.config.Parameters.validate(); err != nil {
		return err
	}
	if err := syncookies(); err != nil {
		return err
	}
	at, err := net.InterfaceByName(a.config.Interface)
	if err != nil {
		return fmt.Errorf("interface %q: %w", a.config.Interface, err)
	}
	if err := a.load(); err != nil {
		return err
	}
	a.maps = Maps{Settings: a.objects.Settings, Active: a.objects.Active, Services: a.objects.Services}
	if err := a.maps.Install(a.config.Parameters, Announcement{}); err != nil {
		return err
	}
	if a.reader, err = ringbuf.NewReader(a.objects.Reports); err != nil {
		return err
	}
	if a.ingress, err = Attach(at.Index, a.objects.RehomeCookie, a.pin("link_"+a.config.Interface)); err != nil {
		return fmt.Errorf("interface %s: %w", a.config.Interface, err)
	}
	return nil
}

// pin names what is kept; empty without Config.PinPath.
func (a *Acceptor) pin(name string) string {
	if a.config.PinPath == "" {
		return ""
	}
	return filepath.Join(a.config.PinPath, name)
}

// load puts the programs into the kernel, and does without the second where the kernel has no BPF tracepoints.
func (a *Acceptor) load() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("%w: no BTF: %w", ErrUnsupported, err)
	}
	spec, err := loadCookie()
	if err != nil {
		return err
	}
	options := &ebpf.CollectionOptions{}
	if a.config.PinPath != "" {
		if err := os.MkdirAll(a.config.PinPath, 0o700); err != nil {
			return fmt.Errorf("pin path: %w", err)
		}
		options.Maps.PinPath = a.config.PinPath
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinByName
		}
	}
	if err := spec.LoadAndAssign(&a.objects.cookieMaps, options); err != nil {
		return err
	}
	options.MapReplacements = a.objects.all()
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	var ingress struct {
		Program *ebpf.Program `ebpf:"rehome_cookie"`
	}
	if err := spec.LoadAndAssign(&ingress, options); err != nil {
		return err
	}
	a.objects.RehomeCookie = ingress.Program
	if err := a.watch(spec, options); err != nil {
		a.config.Logger.Warn("cookie: a late copy of a first packet may become a second connection", "error", err)
	}
	return nil
}

func (m *cookieMaps) all() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		"settings": m.Settings, "active": m.Active, "services": m.Services, "history": m.History, "current": m.Current,
		"counts": m.Counts, "reports": m.Reports,
	}
}

// watch attaches the program that sees connections made.
func (a *Acceptor) watch(spec *ebpf.CollectionSpec, options *ebpf.CollectionOptions) error {
	var made struct {
		Program *ebpf.Program `ebpf:"rehome_made"`
	}
	if err := spec.LoadAndAssign(&made, options); err != nil {
		return err
	}
	a.objects.RehomeMade = made.Program
	path := a.pin("link_made")
	if old, err := pinned(path); err != nil {
		return err
	} else if old != nil {
		// A tracing link cannot be given another program. Both work on the same map, so that none is missed.
		defer old.Close() //nolint:errcheck // it goes anyway
		if err := old.Unpin(); err != nil {
			return err
		}
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: made.Program})
	if err != nil {
		return fmt.Errorf("attach to inet_sock_set_state: %w", err)
	}
	a.made = l
	if path != "" {
		return l.Pin(path)
	}
	return nil
}

// AddService makes connections to the address here. There need not be a listening socket as yet.
func (a *Acceptor) AddService(at netip.AddrPort) error {
	return wrap("add service", a.maps.AddService(at))
}

// RemoveService leaves packets to the address to the stack.
func (a *Acceptor) RemoveService(at netip.AddrPort) error {
	return wrap("remove service", a.maps.RemoveService(at))
}

// Services returns the addresses at which connections are made, also those of a process before this one.
func (a *Acceptor) Services() ([]netip.AddrPort, error) {
	all, err := a.maps.List()
	return all, wrap("services", err)
}

// SetParameters replaces them; see Parameters for the order in which hosts must be told of a new secret.
func (a *Acceptor) SetParameters(p Parameters) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.maps.Install(p, Announcement{}); err != nil {
		return wrap("set parameters", err)
	}
	a.parameters = p
	return nil
}

// clockTime is how often the kernel's clock is compared with the wall's.
const clockTime = 10 * time.Second

// Run calls report for every connection that could not be made, until ctx ends, and keeps the clock. Without it, connections are made
// all the same, and nobody hears of those that are not.
func (a *Acceptor) Run(ctx context.Context, report func(Report)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The reader is ended by closing it: afterwards, Run cannot be called again.
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		return a.reader.Close()
	})
	group.Go(func() error { return a.keepClock(ctx) })
	group.Go(func() error {
		defer cancel()
		var record ringbuf.Record
		for {
			err := a.reader.ReadInto(&record)
			if errors.Is(err, ringbuf.ErrClosed) {
				return nil
			}
			if err != nil {
				return wrap("read reports", err)
			}
			r, err := decodeReport(record.RawSample)
			if err != nil {
				return wrap("read reports", err)
			}
			report(r)
		}
	})
	return group.Wait()
}

func (a *Acceptor) keepClock(ctx context.Context) error {
	tick := time.NewTicker(clockTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.mu.Lock()
		p := a.parameters
		err := a.maps.Install(p, Announcement{})
		a.mu.Unlock()
		if err != nil {
			return wrap("keep the clock", err)
		}
	}
}

// Stats counts what the programs have done since their tables were made.
type Stats struct {
	// Tried are first packets given to the kernel as the end of a handshake, Made the connections that came of them. Where the kernel has no
	// BPF tracepoints, Made is 0.
	Tried, Made uint64
	// Refused could not be made, and were reported, unless Lost: nobody was reading.
	Refused, Lost uint64
	// Late are copies of first packets of connections that were made, dropped.
	Late uint64
	// Awaited are packets dropped because their connection was refused here, and may be made elsewhere.
	Awaited uint64
	// Strays had neither a connection nor a valid cookie; they were left to the stack, which answers RST.
	Strays uint64
	// Cleared are old connections in TIME_WAIT that had to make room.
	Cleared uint64
}

// Stats returns the counters.
func (a *Acceptor) Stats() (Stats, error) {
	var each []cookieCounters
	if err := a.objects.Counts.Lookup(uint32(0), &each); err != nil {
		return Stats{}, wrap("stats", err)
	}
	var s Stats
	for _, c := range each {
		s.Tried += c.Tried
		s.Made += c.Made
		s.Refused += c.Refused
		s.Lost += c.Lost
		s.Late += c.Late
		s.Awaited += c.Awaited
		s.Strays += c.Strays
		s.Cleared += c.Cleared
	}
	return s, nil
}

// Close ends the Acceptor. With Config.PinPath the programs go on. Connections made go on in any case.
func (a *Acceptor) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	return wrap("close", a.close())
}

// Remove unpins what Config.PinPath keeps and closes the Acceptor: nothing is left in the kernel.
func (a *Acceptor) Remove() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	var errs []error
	if a.config.PinPath != "" {
		errs = append(errs, unpin(a.ingress))
		if a.made != nil {
			errs = append(errs, unpin(a.made))
		}
		for _, m := range a.objects.all() {
			errs = append(errs, m.Unpin())
		}
		errs = append(errs, os.Remove(a.config.PinPath))
	}
	return wrap("remove", errors.Join(append(errs, a.close())...))
}

// Withdraw ends services of what an Acceptor of a process that is no more has pinned in dir. That there is nothing is no error.
func Withdraw(dir string, gone func(netip.AddrPort) bool) error {
	pin := filepath.Join(dir, "services")
	// Asked of the file system first: where BPF is refused, it says so whatever is pinned.
	if _, err := os.Lstat(pin); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	services, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return wrap("withdraw", Explain(err))
	}
	m := Maps{Services: services}
	all, err := m.List()
	for _, a := range all {
		if gone(a) {
			err = errors.Join(err, m.RemoveService(a))
		}
	}
	return wrap("withdraw", errors.Join(err, services.Close()))
}

func unpin(l link.Link) error {
	if err := l.Unpin(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (a *Acceptor) close() error {
	var errs []error
	for _, l := range []link.Link{a.ingress, a.made} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if a.reader != nil {
		errs = append(errs, a.reader.Close())
	}
	for _, p := range []*ebpf.Program{a.objects.RehomeCookie, a.objects.RehomeMade} {
		errs = append(errs, p.Close())
	}
	for _, m := range a.objects.all() {
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

func syncookies() error {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_syncookies")
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: CONFIG_SYN_COOKIES is missing", ErrUnsupported)
	}
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) == "0" {
		return ErrSyncookies
	}
	return nil
}

// Explain adds what to do about the errors an operator meets.
func Explain(err error) error {
	var refused *ebpf.VerifierError
	switch {
	case errors.Is(err, ErrUnsupported), errors.Is(err, ErrPermission), errors.Is(err, ErrSyncookies):
		return err
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}
