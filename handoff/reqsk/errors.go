// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"errors"

	"github.com/rehome-net/rehome/tcprepair"
)

// What callers can tell apart with errors.Is. After every one of them but ErrReset and ErrUncertain the connection is where it was:
// no socket of it is left here, the client has heard nothing, and it may be delivered elsewhere.
var (
	// ErrState: only connections in ESTABLISHED and CLOSE_WAIT can be injected.
	ErrState = errors.New("connection is not in ESTABLISHED or CLOSE_WAIT")
	// ErrUnsent: the one who accepted it has written something that the client has not acknowledged; no hand-made segment can carry that.
	ErrUnsent = errors.New("send queue is not empty")
	// ErrOption: something was negotiated with the client that this host cannot go on with; the message says what.
	ErrOption = errors.New("negotiated option cannot be continued on this host")
	// ErrAddress: the local address is not on this host, or the flow is none, or the client's is link-local.
	ErrAddress = errors.New("address is not usable on this host")
	// ErrNoListener: nobody listens at the local address.
	ErrNoListener = errors.New("no listening socket at the local address (one that is bound to a device does not count)")
	// ErrBacklog: the server does not accept fast enough.
	ErrBacklog = errors.New("accept queue of the listening socket is full")
	// ErrMPTCP: the kernel makes no plain connection for such a listener.
	ErrMPTCP = errors.New("listening socket speaks MPTCP: turn it off in the server (Go: GODEBUG=multipathtcp=0 or net.ListenConfig.SetMultipathTCP(false))")
	// ErrExists: the connection is here already, or is being injected.
	ErrExists = errors.New("connection exists on this host already")
	// ErrRefused: the kernel did not make the connection, and the message says what is known of why.
	ErrRefused = errors.New("kernel did not make the connection")
	// ErrPartial: the connection was made, but the listening socket's buffer did not take the whole request. The half that was made is
	// gone: the server sees a reset connection, the client nothing.
	ErrPartial = errors.New("server's receive buffer does not take the whole request: raise net.ipv4.tcp_rmem or the server's SO_RCVBUF")
	// ErrReset: the connection was made here and has ended. It must not be delivered elsewhere. The client has been told, but for one case in
	// which Linux sends its RST to nowhere: tcprepair.Reset on the host that accepted the connection makes sure, and a second RST does no harm.
	ErrReset = errors.New("connection has ended")
	// ErrUncertain: the connection is not here, and the kernel offers no way to know whether it never was or is over already.
	// It must not be delivered elsewhere: the server may have answered.
	ErrUncertain = errors.New("cannot tell whether the connection was made: a kernel with CONFIG_BPF_EVENTS would tell")

	// ErrSyncookies: the kernel does not look at injected segments then, and would answer them with RST.
	ErrSyncookies = errors.New("net.ipv4.tcp_syncookies is 0 in this network namespace: set it to 1")
	// ErrReversePath: strict reverse path filtering would drop what enters through the Injector's device.
	ErrReversePath = errors.New("net.ipv4.conf.all.rp_filter is 1 (strict) in this network namespace: set it to 0, and conf.<interface>.rp_filter to 1 where it is wanted")
	// ErrSteering: the kernel would receive what is injected at some later time and on another CPU, and nobody could say what became of it.
	ErrSteering = errors.New("net.core.rps_default_mask steers packets of new devices to other CPUs: set it to 0")
	// ErrPermission: a capability is missing.
	ErrPermission = errors.New("not permitted: needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON")
	// ErrUnsupported: use another delivery (linked API, descriptor passing) on this host.
	ErrUnsupported = errors.New("not supported by this kernel: needs Linux 6.9 with BTF, CONFIG_SYN_COOKIES, CONFIG_NET_XGRESS and CONFIG_TUN")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("injector is closed")
)

// OpError says which operation failed on which connection.
type OpError struct {
	Op   string         // such as "inject"
	Flow tcprepair.Flow // zero for operations on the Injector as a whole
	Err  error
}

func (e *OpError) Error() string {
	if e.Flow.IsValid() {
		return "reqsk: " + e.Op + " " + e.Flow.String() + ": " + e.Err.Error()
	}
	return "reqsk: " + e.Op + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
