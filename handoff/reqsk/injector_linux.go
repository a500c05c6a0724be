// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

const (
	defaultDevice   = "rhinj%d"
	defaultPatience = time.Second
	// maxLanes is MAX_LANES of bpf/reqsk.c.
	maxLanes = 64
)

// Config says how to inject. The zero value is ready to use.
type Config struct {
	// Device is the name of the tun device, for firewalls that filter by interface; "%d" in it becomes a number. Empty means "rhinj%d".
	Device string
	// Lanes is how many connections can be injected at the same moment, 64 at most. 0 means one for each CPU the process may use.
	Lanes int
	// Patience is how long a server may leave a request that is larger than its receive buffer unread before the
	// injection is undone. 0 means one second.
	Patience time.Duration
	// Logger gets a line about what Inject cannot return: a degraded kernel. Nil means none.
	Logger *slog.Logger
}

func (c Config) validate() error {
	switch {
	case c.Lanes < 0 || c.Lanes > maxLanes:
		return fmt.Errorf("Lanes is %d: want 0 to %d", c.Lanes, maxLanes)
	case c.Patience < 0:
		return fmt.Errorf("Patience is %v: want 0 or more", c.Patience)
	case strings.ContainsAny(c.Device, "/ "):
		return fmt.Errorf("Device is %q: want the name of an interface", c.Device)
	}
	return nil
}

// Injector makes connections for the listening sockets of the network namespace in which it was opened. Its methods are safe for
// concurrent use, from any thread.
type Injector struct {
	config   Config
	objects  reqskObjects
	slots    []byte
	links    []link.Link
	nl       *netlink.Handle
	diag     *destroyer
	device   *device
	rpFilter *os.File
	// certain is whether the second program is attached: it sees what the kernel makes of a segment.
	certain bool

	lanes  chan *lane
	closed chan struct{}

	mu      sync.Mutex
	once    bool
	flights map[tcprepair.Flow]struct{} // being injected
}

// Open makes an Injector in the calling thread's network namespace. Nothing is left when it is closed, or the process is gone.
//
// Errors to expect: ErrUnsupported, ErrPermission, ErrSyncookies, ErrReversePath.
func Open(c Config) (*Injector, error) {
	in := &Injector{config: c, closed: make(chan struct{}), flights: make(map[tcprepair.Flow]struct{})}
	if err := in.open(); err != nil {
		return nil, &OpError{Op: "open", Err: errors.Join(explain(err), in.release())}
	}
	return in, nil
}

func (in *Injector) open() error {
	if err := in.config.validate(); err != nil {
		return err
	}
	if in.config.Device == "" {
		in.config.Device = defaultDevice
	}
	if in.config.Patience == 0 {
		in.config.Patience = defaultPatience
	}
	n := in.config.Lanes
	if n == 0 {
		n = min(runtime.GOMAXPROCS(0), maxLanes)
	}
	if err := syncookies(); err != nil {
		return err
	}
	if err := in.openReversePath(); err != nil {
		return err
	}
	if err := in.load(); err != nil {
		return err
	}
	var err error
	if in.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if in.diag, err = newDestroyer(); err != nil {
		return err
	}
	if in.device, err = newDevice(in.nl, in.config.Device, n); err != nil {
		return err
	}
	tcx, err := link.AttachTCX(link.TCXOptions{Interface: in.device.index, Program: in.objects.RehomeReqsk, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return fmt.Errorf("attach to %s: %w", in.device.name, err)
	}
	in.links = append(in.links, tcx)
	in.lanes = make(chan *lane, n)
	for i, fd := range in.device.queues {
		in.lanes <- &lane{fd: fd, slot: in.slots[i*slotSize : (i+1)*slotSize]}
	}
	return nil
}

// load puts the programs into the kernel, and does without the second where the kernel has no BPF tracepoints.
func (in *Injector) load() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("%w: no BTF: %w", ErrUnsupported, err)
	}
	if err := haveKfunc(); err != nil {
		return err
	}
	spec, err := loadReqsk()
	if err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&in.objects.reqskMaps, nil); err != nil {
		return err
	}
	replace := &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		"rehome_lanes": in.objects.RehomeLanes, "rehome_current": in.objects.RehomeCurrent,
	}}
	var ingress struct {
		Program *ebpf.Program `ebpf:"rehome_reqsk"`
	}
	if err := spec.LoadAndAssign(&ingress, replace); err != nil {
		return err
	}
	in.objects.RehomeReqsk = ingress.Program
	if err := in.watch(spec, replace); err != nil {
		if errors.Is(err, unix.EPERM) {
			return err
		}
		if in.config.Logger != nil {
			in.config.Logger.Warn("reqsk: the outcome of an injection is told by looking for the socket only", "err", err)
		}
	}
	size := maxLanes * slotSize
	if page := os.Getpagesize(); size%page != 0 {
		size += page - size%page
	}
	in.slots, err = unix.Mmap(in.objects.RehomeLanes.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the lanes: %w", err)
	}
	return nil
}

// watch attaches the program that sees outcomes.
func (in *Injector) watch(spec *ebpf.CollectionSpec, o *ebpf.CollectionOptions) error {
	var outcome struct {
		Program *ebpf.Program `ebpf:"rehome_outcome"`
	}
	if err := spec.LoadAndAssign(&outcome, o); err != nil {
		return err
	}
	in.objects.RehomeOutcome = outcome.Program
	l, err := link.AttachTracing(link.TracingOptions{Program: outcome.Program})
	if err != nil {
		return fmt.Errorf("attach to inet_sock_set_state: %w", err)
	}
	in.links = append(in.links, l)
	in.certain = true
	return nil
}

func explain(err error) error {
	var refused *ebpf.VerifierError
	switch {
	case errors.Is(err, ErrUnsupported), errors.Is(err, ErrPermission):
		return err
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Device returns the name of the interface by which injected segments enter the host.
func (in *Injector) Device() string { return in.device.name }

// Close waits for the injections under way and takes everything out of the kernel. The connections made go on.
func (in *Injector) Close() error {
	in.mu.Lock()
	if in.once {
		in.mu.Unlock()
		return nil
	}
	in.once = true
	in.mu.Unlock()
	close(in.closed)
	for range cap(in.lanes) {
		<-in.lanes
	}
	if err := in.release(); err != nil {
		return &OpError{Op: "close", Err: err}
	}
	return nil
}

// release undoes open, as far as that got.
func (in *Injector) release() error {
	var errs []error
	for _, l := range slices.Backward(in.links) {
		errs = append(errs, l.Close())
	}
	if in.device != nil {
		errs = append(errs, in.device.close())
	}
	if in.slots != nil {
		errs = append(errs, unix.Munmap(in.slots))
	}
	for _, p := range []*ebpf.Program{in.objects.RehomeReqsk, in.objects.RehomeOutcome} {
		errs = append(errs, p.Close())
	}
	for _, m := range []*ebpf.Map{in.objects.RehomeLanes, in.objects.RehomeCurrent} {
		errs = append(errs, m.Close())
	}
	if in.diag != nil {
		errs = append(errs, in.diag.close())
	}
	if in.rpFilter != nil {
		errs = append(errs, in.rpFilter.Close())
	}
	if in.nl != nil {
		in.nl.Close()
	}
	return errors.Join(errs...)
}
