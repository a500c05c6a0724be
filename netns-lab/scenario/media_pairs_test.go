// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/google/gopacket/reassembly"
	"golang.org/x/sys/unix"

	sessions "github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/ftp"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/rtsp"
	"github.com/rehome-net/rehome/dispatcher/session/sip"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// talks pairs what clients were seen to say with what servers are reported to have said, by signalling flow.
type talks struct {
	t       *testing.T
	vip     netip.Addr
	parsers map[sessions.Key]inspect.Parser
	pairs   map[sessions.Key]inspect.Pair
	said    []saidAt
	// installed are all announcements that were made.
	installed []sessions.Announcement
	findings  map[string]int
	withdrawn int
}

// saidAt is a half, and when it was said.
type saidAt struct {
	at   time.Time
	half inspect.Half
}

func newTalks(t *testing.T, vip netip.Addr) *talks {
	return &talks{
		t: t, vip: vip, parsers: make(map[sessions.Key]inspect.Parser), pairs: make(map[sessions.Key]inspect.Pair), findings: make(map[string]int),
	}
}

// parser returns the parser of what the client says on a flow; nil when that is no signalling.
func (k *talks) parser(flow sessions.Key) inspect.Parser {
	if p := k.parsers[flow]; p != nil {
		return p
	}
	var p inspect.Parser
	var err error
	switch flow.Server.Port() {
	case scenario.RTSPPort:
		p, err = rtsp.NewParser(rtsp.Config{}, flow, inspect.Client)
	case scenario.SIPPort:
		p, err = sip.NewParser(sip.Config{}, flow, inspect.Client)
	case scenario.FTPPort:
		p, err = ftp.NewParser(ftp.Config{}, flow, inspect.Client)
	default:
		return nil
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.parsers[flow] = p
	return p
}

func (k *talks) add(at time.Time, halves ...inspect.Half) {
	for _, h := range halves {
		k.said = append(k.said, saidAt{at, h})
	}
}

// pair joins all that was said, in the order in which it was.
func (k *talks) pair() {
	slices.SortStableFunc(k.said, func(a, b saidAt) int { return a.at.Compare(b.at) })
	for _, s := range k.said {
		h := s.half
		pair := k.pairs[h.Flow]
		if pair == nil {
			var err error
			switch h.Protocol {
			case inspect.RTSP:
				pair, err = rtsp.NewPair(rtsp.Config{})
			case inspect.SIP:
				pair, err = sip.NewPair(sip.Config{})
			default:
				pair, err = ftp.NewPair(ftp.Config{})
			}
			if err != nil {
				k.t.Fatal(err)
			}
			k.pairs[h.Flow] = pair
		}
		o := pair.Add(h)
		k.installed = append(k.installed, o.Install...)
		k.withdrawn += len(o.Withdraw)
		for _, f := range o.Findings {
			k.findings[h.Protocol.String()+" "+f.Reason.String()]++
		}
	}
}

// readClient reads the client's side of all signalling in a pcap file.
func (k *talks) readClient(file io.Reader) {
	k.t.Helper()
	r, err := pcapgo.NewReader(file)
	if err != nil {
		k.t.Fatal(err)
	}
	assembler := reassembly.NewAssembler(reassembly.NewStreamPool(k))
	for {
		frame, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			assembler.FlushAll()
			return
		}
		if err != nil {
			k.t.Fatal(err)
		}
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		if !ok || !ip.DstIP.Equal(k.vip.AsSlice()) {
			continue
		}
		switch l := p.TransportLayer().(type) {
		case *layers.UDP:
			flow := k.flow(ip, uint16(l.SrcPort), uint16(l.DstPort), unix.IPPROTO_UDP)
			if p := k.parser(flow); p != nil {
				k.add(info.Timestamp, p.Datagram(l.Payload)...)
			}
		case *layers.TCP:
			assembler.AssembleWithContext(ip.NetworkFlow(), l, &spokenSegment{info: info, flow: k.flow(ip, uint16(l.SrcPort), uint16(l.DstPort), unix.IPPROTO_TCP)})
		}
	}
}

func (k *talks) flow(ip *layers.IPv4, from, to uint16, protocol uint8) sessions.Key {
	src, _ := netip.AddrFromSlice(ip.SrcIP)
	return sessions.Key{Client: netip.AddrPortFrom(src, from), Server: netip.AddrPortFrom(k.vip, to), Protocol: protocol}
}

// spokenSegment is what gopacket passes on with a segment.
type spokenSegment struct {
	info gopacket.CaptureInfo
	flow sessions.Key
}

func (c *spokenSegment) GetCaptureInfo() gopacket.CaptureInfo { return c.info }

func (k *talks) New(_, _ gopacket.Flow, _ *layers.TCP, ac reassembly.AssemblerContext) reassembly.Stream {
	c, ok := ac.(*spokenSegment)
	if !ok {
		k.t.Fatal("a stream without a context")
	}
	return &clientStream{k, c.flow}
}

// clientStream is what a client says on one connection.
type clientStream struct {
	*talks
	flow sessions.Key
}

func (s *clientStream) Accept(*layers.TCP, gopacket.CaptureInfo, reassembly.TCPFlowDirection, reassembly.Sequence, *bool, reassembly.AssemblerContext) bool {
	return true
}

func (s *clientStream) ReassembledSG(sg reassembly.ScatterGather, ac reassembly.AssemblerContext) {
	n, _ := sg.Lengths()
	if p := s.parser(s.flow); p != nil && n > 0 {
		s.add(ac.GetCaptureInfo().Timestamp, p.Feed(bytes.Clone(sg.Fetch(n)))...)
	}
}

func (s *clientStream) ReassemblyComplete(reassembly.AssemblerContext) bool { return true }
