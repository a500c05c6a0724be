// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// ReloadResult is what came of a change of routes under load.
type ReloadResult struct {
	Routes int
	// Millis is the time from the order to reload until a new route was in effect.
	Millis float64
	// Load is what wrk saw meanwhile, with a new connection for each request.
	Load Load
}

// MeasureReload gives a front n routes by host name while wrk loads it for the given time, of which the reload takes a part.
func MeasureReload(ctx context.Context, f *Farm, front FrontReloader, n int, load time.Duration) (ReloadResult, error) {
	routes := make([]Route, n)
	for i := range routes {
		routes[i] = Route{Host: fmt.Sprintf("h%05d.%s", i, ShopName), Service: Linked}
	}
	last := routes[n-1].Host
	if who, err := f.fetch(ctx, front, Files, "http://"+last+"/who", false); err != nil || strings.TrimSpace(who) != NginxHost {
		return ReloadResult{}, fmt.Errorf("before the reload %s is answered by %q: %w", last, who, err)
	}
	type report struct {
		Load
		err error
	}
	done := make(chan report, 1)
	go func() {
		l, err := MeasureLoad(ctx, f, front, LoadConfig{NewConnections: true, Time: load})
		done <- report{l, err}
	}()
	r := ReloadResult{Routes: n}
	err := rest(ctx, load/4)
	if err == nil {
		begin := time.Now()
		if err = front.Reload(ctx, f, routes); err == nil {
			err = f.awaitRoute(ctx, front, last)
		}
		r.Millis = millis(time.Since(begin))
	}
	l := <-done
	r.Load = l.Load
	if err != nil {
		return r, err
	}
	return r, l.err
}

// awaitRoute waits until requests for a host name come to the demo server.
func (f *Farm) awaitRoute(ctx context.Context, front Front, host string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		who, err := f.fetch(ctx, front, Files, "http://"+host+"/who", false)
		if err == nil && strings.TrimSpace(who) == LinkedHost {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is answered by %q, want %s: %w", host, who, LinkedHost, err)
		case <-time.After(time.Millisecond):
		}
	}
}
