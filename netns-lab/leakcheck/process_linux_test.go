// SPDX-License-Identifier: Apache-2.0

package leakcheck

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseStacks(t *testing.T) {
	const dump = `goroutine 7 [running]:
example.org/x/leakcheck.goroutines({{0x0, 0x0}})
	/src/process.go:60 +0x45
created by testing.(*T).Run in goroutine 1
	/go/src/testing/testing.go:1742 +0x390

goroutine 1 [chan receive]:
main.main()
	/src/main.go:9 +0x9b

goroutine 34 [select, 2 minutes]:
net/http.(*persistConn).readLoop(0xc0001d4000)
	/go/src/net/http/transport.go:2325 +0xca5
created by net/http.(*Transport).dialConn in goroutine 33
	/go/src/net/http/transport.go:1874 +0x154f

goroutine 35 [syscall, locked to thread]:
syscall.Syscall(0x0, 0x1)
	/go/src/syscall/syscall_linux.go:70 +0x25
example.org/x.(*direction).run(0xc000100000)
	/src/direction.go:90 +0x1d
runtime.goexit({})
	/go/src/runtime/asm_amd64.s:1693 +0x1
created by example.org/x.newElement in goroutine 7
	/src/element.go:100 +0x5

goroutine 36 [syscall]:
os/signal.signal_recv()
	/go/src/runtime/sigqueue.go:152 +0x29
created by os/signal.Notify.func1.1 in goroutine 1
	/go/src/os/signal/signal.go:151 +0x1f
`
	want := []string{
		"goroutine net/http.(*persistConn).readLoop, created by net/http.(*Transport).dialConn",
		"goroutine example.org/x.(*direction).run, created by example.org/x.newElement",
	}
	if d := cmp.Diff(want, parseStacks(dump)); d != "" {
		t.Errorf("goroutines (-want +got):\n%s", d)
	}
}
