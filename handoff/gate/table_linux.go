// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// Batch size of the shared memory, MAX_OPS in bpf/table.h.
const maxOperations = 64

// releaseAlways is RELEASE_ALWAYS in bpf/operation.h.
const releaseAlways = ^uint64(0)

// What the parts of a route word mean; see bpf/table.h.
const (
	routeEntry = 1 << 0
	routeStray = 1 << 2
)

// table runs operations inside the kernel. User space never writes a flow's entry itself: only there can a change be
// atomic against the packets.
type table struct {
	objects *gateObjects

	mu     sync.Mutex
	memory []byte // the operations map, mapped
	ops    *[maxOperations]gateOperation
	batch  gateBatch // here, not on a stack that may move: the kernel is given its address
	args   runArgs
	closed bool
}

func newTable(objects *gateObjects) (*table, error) {
	size := int(unsafe.Sizeof([maxOperations]gateOperation{}))
	memory, err := unix.Mmap(objects.Operations.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the operations: %w", err)
	}
	return &table{objects: objects, memory: memory, ops: (*[maxOperations]gateOperation)(unsafe.Pointer(&memory[0]))}, nil
}

func (t *table) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.ops = nil
	return errors.Join(unix.Munmap(t.memory), t.objects.Close())
}

// run carries out the operations in order, in as few system calls as possible, and leaves the answers in them. An
// error means that a batch did not run; what an operation itself met is its Result.
func (t *table) run(ops []gateOperation) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	for len(ops) > 0 {
		n := copy(t.ops[:], ops)
		t.batch.Count = uint32(n)
		if err := t.call(); err != nil {
			return fmt.Errorf("run operations in the kernel: %w", err)
		}
		copy(ops, t.ops[:n])
		ops = ops[n:]
	}
	return nil
}

// runArgs is the part of union bpf_attr that BPF_PROG_RUN reads.
type runArgs struct {
	fd, retval                    uint32
	dataIn, dataOut               uint32
	dataInPtr, dataOutPtr         uint64
	repeat, duration              uint32
	contextIn, contextOut         uint32
	contextInPtr, contextOutPtr   uint64
	flags, cpu, batchSize, unused uint32
}

// call is Program.Run without its allocations: it stands on the path of every hold. Go's scheduler does not hear of it, as it takes
// microseconds: it would wake its monitor.
func (t *table) call() error {
	t.args = runArgs{
		fd:        uint32(t.objects.RehomeOp.FD()),
		contextIn: uint32(unsafe.Sizeof(t.batch)), contextInPtr: uint64(uintptr(unsafe.Pointer(&t.batch))),
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&t.args)), unsafe.Sizeof(t.args))
		switch errno {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		return errno
	}
}

// currentCPU tells which CPU the calling thread runs on.
func currentCPU() (int, bool) {
	var cpu uint32
	_, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
	return int(cpu), errno == 0
}

// newOperation fills in code and key.
func newOperation(code gateCode, f tcprepair.Flow) gateOperation {
	o := gateOperation{Code: code, Family: 4}
	local, remote := f.Local.Addr(), f.Remote.Addr()
	if local.Is4() {
		// The first 16 bytes of the key are a struct key4.
		k := (*gateKey4)(unsafe.Pointer(&o.Key))
		k.Local, k.Remote = word4(local), word4(remote)
		k.LocalPort, k.RemotePort = networkOrder(f.Local.Port()), networkOrder(f.Remote.Port())
		k.Proto = protoTCP
		return o
	}
	o.Family = 6
	o.Key = gateKey6{
		Local: words6(local), Remote: words6(remote),
		LocalPort: networkOrder(f.Local.Port()), RemotePort: networkOrder(f.Remote.Port()),
		Proto: protoTCP,
	}
	return o
}

// The tables hold addresses and ports as the packets do.
func word4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func words6(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func networkOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// answer turns the result of an operation into an error.
func answer(o *gateOperation) error {
	switch errno := unix.Errno(-o.Result); errno {
	case 0:
		return nil
	case unix.ENOENT:
		return ErrNoFlow
	case unix.ESTALE:
		return ErrEpoch
	case unix.EEXIST:
		return ErrExists
	case unix.E2BIG, unix.ENOMEM:
		return ErrFull
	case unix.EAGAIN:
		return ErrBusy
	default:
		return errno
	}
}

// routeInfo reads the entry an operation has left.
func routeInfo(o *gateOperation) RouteInfo {
	r := RouteInfo{Forwarded: o.Flow.Forwarded}
	if o.Flow.Route&routeStray == 0 || o.Flow.Expires > o.Now {
		r.Node = Node(o.Flow.Route >> 16)
	}
	if o.Flow.Route&routeEntry != 0 {
		r.Epoch = uint32(o.Flow.Route >> 32)
	}
	if deadline := o.Flow.Hold &^ 7; deadline > o.Now {
		r.Hold, r.Left = Direction(o.Flow.Hold)&(Ingress|Egress), time.Duration(deadline-o.Now)
	}
	if o.Now > o.Flow.Seen {
		r.Idle = time.Duration(o.Now - o.Flow.Seen)
	}
	return r
}
