// SPDX-License-Identifier: Apache-2.0

package sockops

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// maxBatch bounds what one Read returns.
const maxBatch = 4096

// WatchConfig says whose ends are wanted. Services is required.
type WatchConfig struct {
	// Services are the local addresses with their ports, 65,536 at most.
	Services []netip.AddrPort
	// Cgroup is a cgroup v2 directory: connections of the sockets that were made in it and below are seen, and of no others. Empty
	// means the top of what is mounted.
	Cgroup string
}

// End is a connection that is over on this host.
type End struct {
	Flow tcprepair.Flow
	// From is the state that the socket left.
	From tcprepair.State
}

// Lingers reports whether packets of the flow may still come that somebody has to answer: this host closed first, and its kernel keeps
// the flow in TIME_WAIT, or waits in FIN_WAIT2 for the peer's end. The kernel throws the socket away and keeps less than
// a socket of it, which no program sees go.
func (e End) Lingers() bool { return e.From == tcprepair.FinWait2 || e.From == tcprepair.Closing }

// Watcher sees connections end. Read is for one goroutine; the other methods are safe for concurrent use.
type Watcher struct {
	objects endedObjects
	link    link.Link
	ring    *ringbuf.Reader
	record  ringbuf.Record

	mu     sync.Mutex // against SetServices and Close at once
	closed bool
}

// Watch begins to watch the connections of the calling thread's network namespace. Nothing is left when the process ends.
//
// Errors to expect: ErrPermission, ErrUnsupported, ErrNoCgroup.
func Watch(cfg WatchConfig) (*Watcher, error) {
	w := &Watcher{}
	if err := w.open(cfg); err != nil {
		return nil, fmt.Errorf("watch connections end: %w", explain(err))
	}
	return w, nil
}

func (w *Watcher) open(cfg WatchConfig) (err error) {
	if cfg.Cgroup == "" {
		if cfg.Cgroup, err = topCgroup(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(cfg.Cgroup); err != nil {
		return err
	}
	netns, err := namespaceCookie()
	if err != nil {
		return err
	}
	spec, err := loadEnded()
	if err != nil {
		return err
	}
	if err := spec.Variables["netns"].Set(netns); err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&w.objects, nil); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if err := w.watch(cfg.Services); err != nil {
		return err
	}
	if w.ring, err = ringbuf.NewReader(w.objects.Ends); err != nil {
		return err
	}
	w.link, err = link.AttachCgroup(link.CgroupOptions{Path: cfg.Cgroup, Attach: ebpf.AttachCGroupSockOps, Program: w.objects.RehomeEnded})
	if err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", cfg.Cgroup, err)
	}
	return nil
}

// SetServices watches other services from now on. Those that stay are watched without a gap; of a connection to one that is new, and
// was made before, the end is not seen. After an error the watched ones are the former, and maybe some of the new.
func (w *Watcher) SetServices(services []netip.AddrPort) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("watch connections end: %w", os.ErrClosed)
	}
	if err := w.watch(services); err != nil {
		return fmt.Errorf("watch connections end: %w", err)
	}
	wanted := make(map[endedService]bool, len(services))
	for _, s := range services {
		wanted[serviceKey(s)] = true
	}
	var k endedService
	var v uint8
	var gone []endedService
	all := w.objects.Watched.Iterate()
	for all.Next(&k, &v) {
		if !wanted[k] {
			gone = append(gone, k)
		}
	}
	errs := []error{all.Err()}
	for _, k := range gone {
		errs = append(errs, w.objects.Watched.Delete(k))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("watch connections end: %w", err)
	}
	return nil
}

func (w *Watcher) watch(services []netip.AddrPort) error {
	for _, s := range services {
		if err := w.objects.Watched.Put(serviceKey(s), uint8(1)); err != nil {
			return fmt.Errorf("service %v: %w", s, err)
		}
	}
	return nil
}

// Read waits until connections have ended and appends them to ends: all that it finds, up to some thousands. Let some milliseconds pass
// between two calls: an end that finds its reader waiting has to wake it, which costs ten times what it costs otherwise.
// There is room for about 20,000. After Close the error is os.ErrClosed.
func (w *Watcher) Read(ends []End) ([]End, error) {
	for n := 0; n < maxBatch; n++ {
		if err := w.ring.ReadInto(&w.record); err != nil {
			return ends, fmt.Errorf("watch connections end: %w", err)
		}
		if e, ok := parseEnd(w.record.RawSample); ok {
			ends = append(ends, e)
		}
		if w.record.Remaining == 0 {
			break
		}
	}
	return ends, nil
}

// Lost returns how many ends found no room, because nobody had read for long.
func (w *Watcher) Lost() uint64 {
	var n uint64
	if err := w.objects.Lost.Get(&n); err != nil {
		return 0
	}
	return n
}

// Close detaches the program, and ends Read. A second Close does nothing.
func (w *Watcher) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	var errs []error
	if w.link != nil {
		errs = append(errs, w.link.Close())
	}
	if w.ring != nil {
		errs = append(errs, w.ring.Close())
	}
	return errors.Join(append(errs, w.objects.Close())...)
}

func topCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	mount, _, ok := cgroupMount(string(mounts))
	if !ok {
		return "", ErrNoCgroup
	}
	return mount, nil
}

// namespaceCookie names the calling thread's network namespace, as the kernel does (SO_NETNS_COOKIE, Linux 5.14).
func namespaceCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("network namespace's cookie: %w", err)
	}
	return cookie, nil
}

func serviceKey(a netip.AddrPort) endedService {
	k := endedService{Port: uint32(a.Port()), Family: 6}
	addr := a.Addr().Unmap()
	if addr.Is4() {
		k.Family = 4
	}
	for i, b := 0, addr.AsSlice(); len(b) > 0; i, b = i+1, b[4:] {
		k.Addr[i] = binary.NativeEndian.Uint32(b)
	}
	return k
}

// parseEnd reads what the program wrote; false when it is something else.
func parseEnd(b []byte) (End, bool) {
	var raw endedEnd
	if len(b) < int(unsafe.Sizeof(raw)) {
		return End{}, false
	}
	if _, err := binary.Decode(b, binary.NativeEndian, &raw); err != nil {
		return End{}, false
	}
	e := End{From: tcprepair.State(raw.State)}
	e.Flow.Local = addrPort(raw.Family, raw.Local, raw.LocalPort)
	e.Flow.Remote = addrPort(raw.Family, raw.Remote, raw.RemotePort)
	return e, e.Flow.IsValid()
}

func addrPort(family uint8, words [4]uint32, port uint16) netip.AddrPort {
	var b [16]byte
	for i, w := range words {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	if family == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(b), port)
}
