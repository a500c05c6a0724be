// SPDX-License-Identifier: Apache-2.0

package vitals_test

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

func Example() {
	key := vitals.Key{ID: 1, Secret: []byte("sixteen or more bytes of secret")}
	now := time.Unix(1_800_000_000, 0)

	sealer, err := vitals.NewSealer(key)
	if err != nil {
		fmt.Println(err)
		return
	}
	beat := vitals.Heartbeat{Host: 7, Seq: 1, Flag: vitals.Available, Stamp: vitals.StampOf(now)}
	b := sealer.Append(nil, beat, now)

	opener, err := vitals.NewOpener(vitals.OpenerConfig{Keys: []vitals.Key{key}})
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
	// vitals: replayed
}
