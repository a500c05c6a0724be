// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/pion/rtp"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/streamer"
)

// mediaServer is a streamer.Server on a server of Media. It runs in this process, with its sockets in the host.
type mediaServer struct{ *streamer.Server }

// serveStreams starts one.
func (m *Media) serveStreams(ctx context.Context, server string, speaks streamer.Signalling, capacity int) (*mediaServer, error) {
	h := m.host(server)
	port := uint16(RTSPPort)
	if speaks == streamer.SIP {
		port = SIPPort
	}
	var s *streamer.Server
	err := h.Do(func() (err error) {
		s, err = streamer.Listen(ctx, streamer.Config{
			Address: netip.AddrPortFrom(m.VIP(), port), Signalling: speaks, Agent: AgentSocket(m.Lab.Topology().Name, server), FirstPort: rtpPorts, Capacity: capacity,
			Logger: slog.New(slog.DiscardHandler),
			Dial: func(ctx context.Context, local, remote netip.AddrPort) (c *net.UDPConn, err error) {
				err = h.Do(func() (err error) {
					c, err = streamer.Dial(ctx, local, remote)
					return err
				})
				return c, err
			},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("media server on %s: %w", server, err)
	}
	m.mu.Lock()
	m.closers = append(m.closers, s.Close)
	m.mu.Unlock()
	registered := func(ctx context.Context) error {
		st, err := m.Status(ctx, server)
		if err != nil {
			return err
		}
		for _, v := range st.GetServices() {
			if v.GetName() == string(speaks) && v.GetApplications() > 0 {
				return nil
			}
		}
		return fmt.Errorf("%s has not registered at %s yet", speaks, server)
	}
	return &mediaServer{s}, m.await(ctx, m.agents[server], registered)
}

// streamCapture watches the media at the client's host.
type streamCapture struct {
	m       *Media
	capture *netnslab.Capture
	file    bytes.Buffer
}

// streamTally is what it has seen.
type streamTally struct {
	// heard is what came of RTP, missing what did not, by its numbers; late came behind a later one. restarts are changes of SSRC or leaps of
	// timestamps.
	heard, missing, late, restarts int
	// longest is the longest time between two packets of one stream.
	longest time.Duration
	// sentRTP and sentRTCP are the client's own; sent has RTP by where it came from.
	sentRTP, sentRTCP int
	sent              map[netip.AddrPort]int
	// unread counts packets that the capture could not keep up with.
	unread int
}

func (m *Media) captureStreams() (*streamCapture, error) {
	c := &streamCapture{m: m}
	var err error
	c.capture, err = m.host(ClientHost).Capture(netnslab.CaptureConfig{Pcap: &c.file, SnapLen: mediaSnap})
	return c, err
}

func (c *streamCapture) close() (streamTally, error) {
	trace, err := c.capture.Close()
	if err != nil {
		return streamTally{}, err
	}
	t, err := tallyStreams(&c.file, c.m.VIP())
	t.unread = trace.Missed
	return t, err
}

// rtpStream is the packets of one flow of RTP, from the server.
type rtpStream struct {
	next uint16
	last rtp.Header
	at   time.Time
}

// tallyStreams reads the media between clients and the virtual address out of a pcap file. RTP has the even ports, RTCP the odd ones.
func tallyStreams(file io.Reader, vip netip.Addr) (t streamTally, err error) {
	r, err := pcapgo.NewReader(file)
	if err != nil {
		return t, fmt.Errorf("media: %w", err)
	}
	var (
		eth   layers.Ethernet
		ip    layers.IPv4
		udp   layers.UDP
		found []gopacket.LayerType
	)
	parser := gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &eth, &ip, &udp)
	parser.IgnoreUnsupported = true
	streams := make(map[mediaFlow]*rtpStream)
	t.sent = make(map[netip.AddrPort]int)
	for {
		frame, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("media: %w", err)
		}
		found = found[:0]
		_ = parser.DecodeLayers(frame, &found) // the payload is cut off; what was decoded is in found
		if !slices.Contains(found, layers.LayerTypeUDP) {
			continue
		}
		src, _ := netip.AddrFromSlice(ip.SrcIP)
		dst, _ := netip.AddrFromSlice(ip.DstIP)
		var h rtp.Header
		_, malformed := h.Unmarshal(udp.Payload)
		switch {
		case dst == vip && udp.DstPort%2 == 1:
			t.sentRTCP++
		case dst == vip && malformed == nil:
			t.sentRTP++
			t.sent[netip.AddrPortFrom(src, uint16(udp.SrcPort))]++
		case src == vip && udp.SrcPort%2 == 0 && malformed == nil:
			f := mediaFlow{Client: netip.AddrPortFrom(dst, uint16(udp.DstPort)), Server: netip.AddrPortFrom(src, uint16(udp.SrcPort))}
			s := streams[f]
			if s == nil {
				s = &rtpStream{next: h.SequenceNumber, last: h, at: info.Timestamp}
				streams[f] = s
			}
			t.take(s, h, info.Timestamp)
		}
	}
}

// streamSamples is by how much timestamps grow from packet to packet.
const streamSamples = 160

// take counts one packet of a stream.
func (t *streamTally) take(s *rtpStream, h rtp.Header, at time.Time) {
	t.heard++
	ahead := int16(h.SequenceNumber - s.next)
	if ahead < 0 {
		t.late++
		t.missing = max(t.missing-1, 0)
		return
	}
	t.missing += int(ahead)
	if steps := h.SequenceNumber - s.last.SequenceNumber; h.SSRC != s.last.SSRC || h.Timestamp-s.last.Timestamp != uint32(steps)*streamSamples {
		t.restarts++
	}
	t.longest = max(t.longest, at.Sub(s.at))
	s.next, s.last, s.at = h.SequenceNumber+1, h, at
}
