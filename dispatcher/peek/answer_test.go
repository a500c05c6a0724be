// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

var statuses = []struct {
	status Status
	code   int
	alert  tls.AlertError
	goAway http2.ErrCode
}{
	{Malformed, 400, 50, http2.ErrCodeProtocol},
	{HeadTooLarge, 431, 50, http2.ErrCodeProtocol},
	{TimedOut, 408, 90, http2.ErrCodeNo},
	{NoRoute, 404, 112, http2.ErrCodeNo},
	{NoProtocol, 421, 120, http2.ErrCodeProtocol},
	{Unavailable, 503, 80, http2.ErrCodeNo},
}

func TestAnswerHTTP(t *testing.T) {
	for _, c := range statuses {
		k := Key{Mode: HTTP}
		b := c.status.Answer(HTTP)
		if !bytes.Equal(b, k.Answer(c.status)) {
			t.Errorf("%v: a key's answer differs", c.status)
		}
		in := bufio.NewReader(bytes.NewReader(b))
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(in)
		if r.StatusCode != c.code || r.Status != c.status.String() || !r.Close || r.ContentLength != 0 || len(rest) != 0 {
			t.Errorf("%v: %+v, then %q", c.status, r, rest)
		}
	}
}

func TestAnswerTLS(t *testing.T) {
	for _, c := range statuses {
		client, server := net.Pipe()
		server.SetDeadline(time.Now().Add(10 * time.Second))
		done := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		go func() { done <- tls.Client(client, &tls.Config{ServerName: "a"}).HandshakeContext(ctx) }()
		if _, err := server.Read(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Write(c.status.Answer(TLS)); err != nil {
			t.Fatal(err)
		}
		if got, want := (<-done).Error(), "remote error: "+c.alert.Error(); got != want {
			t.Errorf("%v: the client says %q, want %q", c.status, got, want)
		}
		cancel()
		client.Close()
		server.Close()
	}
}

// frames reads all frames of an answer.
func frames(t *testing.T, b []byte) (all []http2.Frame) {
	t.Helper()
	r := bytes.NewReader(b)
	f := http2.NewFramer(nil, r)
	f.SetReuseFrames()
	for r.Len() > 0 {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 && frame.Header().Type != http2.FrameSettings {
			t.Errorf("%v is first", frame)
		}
		all = append(all, frame)
	}
	return all
}

func TestAnswerHTTP2(t *testing.T) {
	for _, c := range statuses {
		all := frames(t, c.status.Answer(HTTP2))
		last, ok := all[len(all)-1].(*http2.GoAwayFrame)
		if !ok || last.LastStreamID != 0 || last.ErrCode != c.goAway {
			t.Errorf("%v: %v", c.status, all)
		}
		k := Key{Mode: HTTP2, stream: 5}
		all = frames(t, k.Answer(c.status))
		last, ok = all[len(all)-1].(*http2.GoAwayFrame)
		if !ok || last.LastStreamID != 5 || last.ErrCode != http2.ErrCodeNo || len(all) != 4 {
			t.Errorf("%v: %v", c.status, all)
		}
	}
}

func TestAnswerOfRejection(t *testing.T) {
	for _, c := range []struct {
		mode   Mode
		reason Reason
		want   []byte
	}{
		{HTTP, SpeaksTLS, []byte{21, 3, 1, 0, 2, 2, 10}},
		{HTTP, SpeaksHTTP2, Malformed.Answer(HTTP2)},
		{HTTP, BareLF, Malformed.Answer(HTTP)},
		{HTTP, TooLarge, HeadTooLarge.Answer(HTTP)},
		{HTTP, TooManyFields, HeadTooLarge.Answer(HTTP)},
		{HTTP, ProxyMissing, nil},
		{TLS, SpeaksHTTP, Malformed.Answer(HTTP)},
		{TLS, SpeaksSSL2, []byte{21, 3, 1, 0, 2, 2, 70}},
		{TLS, NotTLS, nil},
		{TLS, HelloMalformed, []byte{21, 3, 1, 0, 2, 2, 50}},
		{TLS, NameMalformed, []byte{21, 3, 1, 0, 2, 2, 112}},
		{HTTP2, FrameMalformed, Malformed.Answer(HTTP2)},
		{HTTP2, PrefaceMalformed, nil},
		{TCP, ProxyMalformed, nil},
	} {
		e := &RejectError{Mode: c.mode, Reason: c.reason}
		if got := e.Answer(); !bytes.Equal(got, c.want) {
			t.Errorf("%v, %v: %q, want %q", c.mode, c.reason, got, c.want)
		}
	}
	if b := Unavailable.Answer(TCP); b != nil {
		t.Errorf("TCP: %q", b)
	}
}
