// SPDX-License-Identifier: Apache-2.0

package report_test

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/handoff/report"
)

func Example() {
	key := report.Key{ID: 1, Secret: []byte("sixteen or more bytes of secret")}
	now := time.Unix(1_800_000_000, 0)

	sealer, err := report.NewSealer(key)
	if err != nil {
		fmt.Println(err)
		return
	}
	beat := report.Heartbeat{Host: 7, Seq: 1, Flag: report.Available, Stamp: report.StampOf(now)}
	b := sealer.Append(nil, beat, now)

	opener, err := report.NewOpener(report.OpenerConfig{Keys: []report.Key{key}})
	if err != nil {
		fmt.Println(err)
		return
	}
	d, err := opener.Open(b, now)
	fmt.Println(d.Heartbeat.Host, d.Heartbeat.Flag, err)
	_, err = opener.Open(b, now)
	fmt.Println(err)
	// Output:
	// 7 available <nil>
	// report: replayed
}
