// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// BenchmarkProgram is what the gateway costs each packet that the router forwards.
func BenchmarkProgram(b *testing.B) {
	r := newRig(b)
	g := r.open(b, r.config(b))
	l, err := r.router.Link()
	if err != nil {
		b.Fatal(err)
	}
	text := part{seq: 1, text: string(make([]byte, 1000))}
	signalling := flow4()
	signalling.Server = netip.AddrPortFrom(r.vip4, signalPort)
	signalling6 := flow6()
	signalling6.Server = netip.AddrPortFrom(r.vip6, signalPort)
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"media over IPv4", frameOf(b, over(protocolUDP, 8000, signalling), text)},
		{"media over IPv6", frameOf(b, over(protocolUDP, 8000, signalling6), text)},
		{"acknowledgement of signalling", frameOf(b, signalling, part{seq: 1})},
		{"signalling", frameOf(b, signalling, text)},
		{"released", frameOf(b, signalling, text)},
	} {
		b.Run(c.name, func(b *testing.B) {
			if err := g.divert.beat(); err != nil {
				b.Fatal(err)
			}
			options := &ebpf.RunOptions{
				Data: from(macOf(b, r.b1), macOf(b, r.router), c.frame), Context: sk{Ifindex: uint32(l.Index)}, Repeat: uint32(b.N),
			}
			err := r.router.Do(func() error {
				_, err := g.divert.objects.RehomeGateway.Run(options)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkWatch is what user space costs a packet of signalling, but for the system calls.
func BenchmarkWatch(b *testing.B) {
	w := newWatch(limits{hold: time.Second, frames: 9, bytes: 1 << 20, flows: 1 << 20}, func(session.Key) (Mode, bool) { return ModeRTSP, true }, Signalling)
	now := time.Unix(1000, 0)
	var frames [][]byte
	const streams = 1000
	for i := range streams {
		k := flow4()
		k.Client = netip.AddrPortFrom(k.Client.Addr(), uint16(20000+i))
		w.frame(now, 0, frameOf(b, k, part{seq: 99, syn: true}))
		frames = append(frames, frameOf(b, k, part{seq: 100, text: rtspReply}))
	}
	const seqAt = 14 + 20 + 4
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		frame := frames[i%streams]
		seq := 100 + uint32(i/streams*len(rtspReply))
		for j := range 4 {
			frame[seqAt+j] = byte(seq >> (24 - 8*j))
		}
		w.frame(now, 0, frame)
		w.confirmed(now, w.reportID)
		w.released, w.reports = w.released[:0], w.reports[:0]
	}
	if w.counts.Reports != uint64(b.N) {
		b.Fatal(fmt.Errorf("%d reports of %d packets: %+v", w.counts.Reports, b.N, w.counts))
	}
}
