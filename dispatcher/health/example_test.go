// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/dispatcher/health"
)

func ExampleChecker() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "all is well") }))
	defer server.Close()

	prober, err := health.NewProber(health.ProbeConfig{Kind: health.HTTP, Path: "/healthz", Body: "well"})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	checker := health.NewChecker(health.CheckerConfig{Changed: func(c health.Change) {
		fmt.Println(c.Target, c.To, c.Err)
		cancel()
	}})
	// Dial: path.To(backend) sends the probe to that backend when Address is the virtual address. See OpenPath.
	err = checker.SetTargets([]health.Target{{
		Name: "web/b1", Address: netip.MustParseAddrPort(server.Listener.Addr().String()), Prober: prober,
		Check: health.CheckConfig{Interval: 50 * time.Millisecond},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = checker.Run(ctx)
	// Output: web/b1 up <nil>
}

func ExampleCheck() {
	check, err := health.NewCheck(health.CheckConfig{Interval: time.Second, Fall: 2, Jitter: -1}, time.Now(), 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, ok := range []bool{true, false, true, false, false} {
		changed := check.Result(check.Due(), ok, 0)
		fmt.Println(check.State(), changed)
	}
	// Output:
	// up true
	// up false
	// up false
	// up false
	// down true
}
