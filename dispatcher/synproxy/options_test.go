// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Every combination of options that a client can offer, with some sizes of segments, by IPv4 and IPv6.
func TestOptions(t *testing.T) {
	r := newRig(t, rigConfig{})
	l := listen(t, r.servers[0], all(port), false)
	for bits := range 8 {
		for name, on := range map[string]bool{"tcp_sack": bits&1 != 0, "tcp_timestamps": bits&2 != 0, "tcp_window_scaling": bits&4 != 0} {
			value := "0"
			if on {
				value = "1"
			}
			if err := r.client.SetSysctl("net.ipv4."+name, value); err != nil {
				t.Fatal(err)
			}
		}
		for _, v6 := range []bool{false, true} {
			for _, mss := range []int{0, 536, 1000, 1300, 1400} {
				t.Run(fmt.Sprintf("sack=%t timestamps=%t scaling=%t v6=%t mss=%d", bits&1 != 0, bits&2 != 0, bits&4 != 0, v6, mss), func(t *testing.T) {
					if v6 && mss > 0 && mss < 1220 {
						mss = 1220
					}
					var set []option
					if mss > 0 {
						set = append(set, option{unix.IPPROTO_TCP, unix.TCP_MAXSEG, mss})
					}
					c := r.dial(t, r.at(v6), 0, set...)
					send(t, "request", c, 0, 100)
					s := accept(t, l)
					expect(t, "request", s, 0, 100)
					send(t, "answer", s, 0, 100)
					expect(t, "answer", c, 0, 100)
					undisturbed(t, c)
					undisturbed(t, s)
					transfer(t, "download", s, c, 100, 1<<20)
					transfer(t, "upload", c, s, 100, 1<<20)
					// Without timestamps there is no room for the others in a cookie.
					var want uint8
					if bits&2 != 0 {
						want = optTimestamps
						if bits&1 != 0 {
							want |= optSACK
						}
						if bits&4 != 0 {
							want |= optScaling
						}
					}
					if ours, theirs := negotiated(t, c), negotiated(t, s); ours != want || theirs != want {
						t.Errorf("client has options %04b, server %04b, want %04b", ours, theirs, want)
					}
				})
			}
		}
	}
}
