// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

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
// Errors to expect: ErrUnsupported, ErrPermission, ErrSyncookies, ErrReversePath, ErrSteering.
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
		l := &lane{fd: fd, slot: in.slots[i*slotSize : (i+1)*slotSize]}
		if err := l.try(); err != nil {
			return fmt.Errorf("device %s: %w", in.device.name, err)
		}
		in.lanes <- l
	}
	return nil
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
