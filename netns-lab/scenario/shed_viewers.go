// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluenviron/gortsplib/v4"
	"github.com/bluenviron/gortsplib/v4/pkg/base"
	"github.com/bluenviron/gortsplib/v4/pkg/description"
	"github.com/bluenviron/gortsplib/v4/pkg/format"
	"github.com/pion/rtp"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/streamer"
)

// recordInterval is the time between two packets that gortsplib's clients send: short, so that some come in the few milliseconds of a move.
const recordInterval = 4 * time.Millisecond

// ffmpegs is how many of ShedSessions' clients are ffmpeg: each is a process.
const ffmpegs = 4

// viewer is a client of RTSP that plays or records until stop.
type viewer interface {
	// stop ends the session in order, and returns what was wrong with it.
	stop(ctx context.Context) error
	kind() string
}

// viewers are all clients.
type viewers struct {
	list       []viewer
	complaints []string
}

// startViewers starts n clients, one after the other; each has media when the next one begins. Those that were started are there also with an error.
func (m *Media) startViewers(ctx context.Context, n int, speaks streamer.Signalling) (*viewers, error) {
	v := &viewers{}
	for i := range n {
		var one viewer
		var err error
		name := fmt.Sprintf("viewer%d", i)
		switch {
		case speaks == streamer.SIP:
			one, err = m.startCaller(ctx, i)
		case i < ffmpegs:
			one, err = m.startFFmpeg(ctx, name, i%2 == 1)
		default:
			one, err = m.startGortsplib(ctx, name, i%2 == 1)
		}
		if err != nil {
			return v, fmt.Errorf("client %d: %w", i, err)
		}
		v.list = append(v.list, one)
	}
	return v, nil
}

func (v *viewers) kinds() map[string]int {
	kinds := make(map[string]int)
	for _, one := range v.list {
		kinds[one.kind()]++
	}
	return kinds
}

// stop ends all sessions, and returns how many of them had an error.
func (v *viewers) stop(ctx context.Context) int {
	errs := make([]error, len(v.list))
	var wg sync.WaitGroup
	for i, one := range v.list {
		wg.Go(func() { errs[i] = one.stop(ctx) })
	}
	wg.Wait()
	n := 0
	for i, err := range errs {
		if err != nil {
			n++
			v.complaints = append(v.complaints, fmt.Sprintf("%s: %v", v.list[i].kind(), err))
		}
	}
	return n
}

// gortsplibViewer is gortsplib's client.
type gortsplibViewer struct {
	client  *gortsplib.Client
	url     *base.URL
	lost    atomic.Int64
	heard   atomic.Int64
	stopped chan struct{}
	wg      sync.WaitGroup
	failed  error // of recording
}

// toneMedia is what is played and recorded.
func toneMedia() *description.Media {
	return &description.Media{
		Type: description.MediaTypeAudio, Formats: []format.Format{&format.G711{PayloadTyp: 0, MULaw: true, SampleRate: 8000, ChannelCount: 1}},
	}
}

func (m *Media) startGortsplib(ctx context.Context, name string, records bool) (viewer, error) {
	u, err := base.ParseURL(m.rtspURL(name))
	if err != nil {
		return nil, err
	}
	h, udp := m.host(ClientHost), gortsplib.TransportUDP
	v := &gortsplibViewer{url: u, stopped: make(chan struct{})}
	v.client = &gortsplib.Client{
		Scheme: u.Scheme, Host: u.Host, Transport: &udp, OnPacketsLost: func(n uint64) { v.lost.Add(int64(n)) }, OnDecodeError: func(error) { v.lost.Add(1) },
		DialContext: h.Dial,
		ListenPacket: func(network, address string) (net.PacketConn, error) {
			return h.ListenPacket(context.WithoutCancel(ctx), udpOf(network), address)
		},
	}
	if records {
		err = v.record()
	} else {
		err = v.play(ctx)
	}
	if err != nil {
		v.client.Close()
		return nil, err
	}
	return v, nil
}

func (v *gortsplibViewer) kind() string { return "gortsplib" }

func (v *gortsplibViewer) play(ctx context.Context) error {
	if err := v.client.Start2(); err != nil {
		return err
	}
	d, _, err := v.client.Describe(v.url)
	if err != nil {
		return err
	}
	if err := v.client.SetupAll(d.BaseURL, d.Medias); err != nil {
		return err
	}
	v.client.OnPacketRTPAny(func(*description.Media, format.Format, *rtp.Packet) { v.heard.Add(1) })
	if _, err := v.client.Play(nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for v.heard.Load() == 0 {
		if err := pause(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("no media: %w", err)
		}
	}
	return nil
}

func (v *gortsplibViewer) record() error {
	tone := toneMedia()
	if err := v.client.StartRecording(v.url.String(), &description.Session{Medias: []*description.Media{tone}}); err != nil {
		return err
	}
	v.wg.Go(func() {
		t := time.NewTicker(recordInterval)
		defer t.Stop()
		p := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 0, SSRC: 0x7265686f, SequenceNumber: 65500}, Payload: make([]byte, rtpPayload)}
		for {
			select {
			case <-v.stopped:
				return
			case <-t.C:
			}
			if v.failed = v.client.WritePacketRTP(tone, p); v.failed != nil {
				return
			}
			p.SequenceNumber++
			p.Timestamp += rtpPayload
		}
	})
	return nil
}

// stop pauses first: the connection must answer.
func (v *gortsplibViewer) stop(context.Context) error {
	close(v.stopped)
	v.wg.Wait()
	err := v.failed
	if err == nil {
		_, err = v.client.Pause()
	}
	v.client.Close()
	if n := v.lost.Load(); n > 0 {
		err = errors.Join(err, fmt.Errorf("it has missed %d packets", n))
	}
	return err
}

// ffmpegViewer is ffmpeg.
type ffmpegViewer struct {
	cmd    *netnslab.Cmd
	keys   io.WriteCloser // what is typed at it
	output bytes.Buffer
	ended  chan error
}

// ffmpegTime is more than the scene takes, in seconds.
const ffmpegTime = "120"

func (m *Media) startFFmpeg(ctx context.Context, name string, records bool) (viewer, error) {
	args := []string{"-v", "warning", "-rtsp_transport", "udp", "-i", m.rtspURL(name), "-t", ffmpegTime, "-c", "copy", "-f", "null", "-"}
	if records {
		args = []string{
			"-v", "warning", "-re", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=8000", "-t", ffmpegTime, "-c:a", "pcm_mulaw", "-ac", "1", "-f", "rtsp",
			"-rtsp_transport", "udp", m.rtspURL(name),
		}
	}
	v := &ffmpegViewer{cmd: m.host(ClientHost).Command(ctx, "ffmpeg", args...), ended: make(chan error, 1)}
	v.cmd.Stdout, v.cmd.Stderr = &v.output, &v.output
	var err error
	if v.keys, err = v.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { v.ended <- v.cmd.Wait() }()
	return v, nil
}

func (v *ffmpegViewer) kind() string { return "ffmpeg" }

// complains reports whether ffmpeg says that media are missing, or come out of order.
func complains(text string) bool {
	return regexp.MustCompile(`(?i)missed|lost|max delay|out of order|non.monoton|error|fail`).MatchString(text)
}

// stop types the key that ends ffmpeg.
func (v *ffmpegViewer) stop(ctx context.Context) error {
	_, err := io.WriteString(v.keys, "q")
	if err != nil {
		err = errors.New("it has ended by itself")
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case ended := <-v.ended:
		err = errors.Join(err, ended)
	case <-ctx.Done():
		err = errors.Join(errors.New("it does not end"), v.cmd.Process.Kill(), <-v.ended)
	}
	if text := v.output.String(); err != nil || complains(text) {
		err = errors.Join(err, fmt.Errorf("it says: %s", lastLines(text, 6)))
	}
	return err
}
