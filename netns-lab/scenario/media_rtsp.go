// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v4"
	"github.com/bluenviron/gortsplib/v4/pkg/base"
	"github.com/bluenviron/gortsplib/v4/pkg/description"
	"github.com/bluenviron/gortsplib/v4/pkg/format"
	"github.com/pion/rtp"
)

// What an RTSP server of the laboratory sends: 20 ms of G.711 in each packet.
const (
	rtpInterval = 20 * time.Millisecond
	rtpPayload  = 160
	livePath    = "live/"
	maxLive     = 1000
)

// RTSPServer is gortsplib's server: every path below /live/ can be played, all others recorded.
type RTSPServer struct {
	server gortsplib.Server
	stop   chan struct{}
	ended  chan struct{}

	mu sync.Mutex
	// live has a stream for each path: gortsplib has a race between two SETUPs of one.
	live     map[string]*gortsplib.ServerStream
	received int
	recorded int
}

// ServeRTSP starts an RTSP server on a server's host, at the virtual address. It runs in this process, with its sockets in the host.
func (m *Media) ServeRTSP(ctx context.Context, server string) (*RTSPServer, error) {
	h := m.host(server)
	media := uint16(rtpPorts + portsEach*m.number(server))
	at := func(port uint16) string { return netip.AddrPortFrom(m.VIP(), port).String() }
	s := &RTSPServer{stop: make(chan struct{}), ended: make(chan struct{}), live: make(map[string]*gortsplib.ServerStream)}
	s.server = gortsplib.Server{
		Handler: s, RTSPAddress: at(RTSPPort), UDPRTPAddress: at(media), UDPRTCPAddress: at(media + 1),
		Listen: func(network, address string) (net.Listener, error) { return h.Listen(ctx, tcpOf(network), address) },
		ListenPacket: func(network, address string) (net.PacketConn, error) {
			return h.ListenPacket(ctx, udpOf(network), address)
		},
	}
	if err := s.server.Start(); err != nil {
		return nil, fmt.Errorf("rtsp server on %s: %w", server, err)
	}
	go s.play()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closers = append(m.closers, s.close)
	return s, nil
}

// tcpOf and udpOf leave the choice of the family to the address.
func tcpOf(network string) string { return strings.TrimRight(network, "46") }
func udpOf(network string) string { return strings.TrimRight(network, "46") }

func (s *RTSPServer) close() error {
	close(s.stop)
	<-s.ended
	s.mu.Lock()
	for _, stream := range s.live {
		stream.Close()
	}
	s.mu.Unlock()
	s.server.Close()
	return nil
}

// stream returns the live stream of a path; nil when there is none, or no room for another.
func (s *RTSPServer) stream(path string) *gortsplib.ServerStream {
	path = strings.Trim(path, "/")
	if !strings.HasPrefix(path, livePath) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if stream := s.live[path]; stream != nil || len(s.live) >= maxLive {
		return stream
	}
	stream := &gortsplib.ServerStream{Server: &s.server, Desc: &description.Session{Medias: []*description.Media{{
		Type: description.MediaTypeAudio, Formats: []format.Format{&format.G711{PayloadTyp: 0, MULaw: true, SampleRate: 8000, ChannelCount: 1}},
	}}}}
	if stream.Initialize() != nil {
		return nil
	}
	s.live[path] = stream
	return stream
}

// play sends the live streams to whoever plays them.
func (s *RTSPServer) play() {
	defer close(s.ended)
	t := time.NewTicker(rtpInterval)
	defer t.Stop()
	p := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 0, SSRC: 0x7265686f}, Payload: make([]byte, rtpPayload)}
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			p.SequenceNumber++
			p.Timestamp += rtpPayload
			s.mu.Lock()
			for _, stream := range s.live {
				_ = stream.WritePacketRTP(stream.Desc.Medias[0], p) // fails for a reader that has gone
			}
			s.mu.Unlock()
		}
	}
}

// Received returns how many media packets the server has received, in how many recordings.
func (s *RTSPServer) Received() (packets, recordings int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received, s.recorded
}

// OnDescribe implements gortsplib.ServerHandlerOnDescribe.
func (s *RTSPServer) OnDescribe(c *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return s.found(c.Path)
}

// OnAnnounce implements gortsplib.ServerHandlerOnAnnounce.
func (s *RTSPServer) OnAnnounce(*gortsplib.ServerHandlerOnAnnounceCtx) (*base.Response, error) {
	return &base.Response{StatusCode: base.StatusOK}, nil
}

// OnSetup implements gortsplib.ServerHandlerOnSetup.
func (s *RTSPServer) OnSetup(c *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if c.Session.State() == gortsplib.ServerSessionStatePreRecord {
		return &base.Response{StatusCode: base.StatusOK}, nil, nil
	}
	return s.found(c.Path)
}

func (s *RTSPServer) found(path string) (*base.Response, *gortsplib.ServerStream, error) {
	stream := s.stream(path)
	if stream == nil {
		return &base.Response{StatusCode: base.StatusNotFound}, nil, nil
	}
	return &base.Response{StatusCode: base.StatusOK}, stream, nil
}

// OnPlay implements gortsplib.ServerHandlerOnPlay.
func (s *RTSPServer) OnPlay(*gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	return &base.Response{StatusCode: base.StatusOK}, nil
}

// OnRecord implements gortsplib.ServerHandlerOnRecord.
func (s *RTSPServer) OnRecord(c *gortsplib.ServerHandlerOnRecordCtx) (*base.Response, error) {
	s.mu.Lock()
	s.recorded++
	s.mu.Unlock()
	c.Session.OnPacketRTPAny(func(*description.Media, format.Format, *rtp.Packet) {
		s.mu.Lock()
		s.received++
		s.mu.Unlock()
	})
	return &base.Response{StatusCode: base.StatusOK}, nil
}

// PlayRTSP plays a live stream with ffmpeg over UDP for a time. Plays at the same time have names of their own.
func (m *Media) PlayRTSP(ctx context.Context, name string, d time.Duration) error {
	return m.play(ctx, name, "udp", d)
}

// PlayRTSPInterleaved plays on the signalling connection.
func (m *Media) PlayRTSPInterleaved(ctx context.Context, name string, d time.Duration) error {
	return m.play(ctx, name, "tcp", d)
}

func (m *Media) play(ctx context.Context, name, transport string, d time.Duration) error {
	_, err := m.run(ctx, startTimeout+d, m.path(ClientHost, "."), "ffmpeg", "-nostdin", "-v", "error", "-rtsp_transport", transport, "-i", m.rtspURL(livePath+name),
		"-t", seconds(d), "-c", "copy", "-f", "null", "-")
	return err
}

// RecordRTSP sends a tone with ffmpeg over UDP to a server, for a time.
func (m *Media) RecordRTSP(ctx context.Context, name string, d time.Duration) error {
	_, err := m.run(ctx, startTimeout+d, m.path(ClientHost, "."), "ffmpeg", "-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=8000",
		"-t", seconds(d), "-c:a", "pcm_mulaw", "-ac", "1", "-f", "rtsp", "-rtsp_transport", "udp", m.rtspURL(name))
	return err
}

func (m *Media) rtspURL(path string) string {
	return "rtsp://" + netip.AddrPortFrom(m.VIP(), RTSPPort).String() + "/" + path
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 3, 64) }
