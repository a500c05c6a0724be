// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// sipCaller is sipp's scenario of a caller: INVITE with an offer, a second of speech, BYE. Its media ports are sipp's choice, one pair for each call.
const sipCaller = `<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="caller with media">
<send retrans="500"><![CDATA[
INVITE sip:{{.User}}@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: caller <sip:caller@[local_ip]:[local_port]>;tag=[pid]SIPpTag00[call_number]
To: <sip:{{.User}}@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: sip:caller@[local_ip]:[local_port]
Max-Forwards: 70
Content-Type: application/sdp
Content-Length: [len]

v=0
o=caller 53655765 2353687637 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [rtpstream_audio_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000
]]></send>
<recv response="100" optional="true"/>
<recv response="180" optional="true"/>
<recv response="200" rtd="true" rrs="true"/>
<send><![CDATA[
ACK sip:{{.User}}@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: caller <sip:caller@[local_ip]:[local_port]>;tag=[pid]SIPpTag00[call_number]
To: <sip:{{.User}}@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 1 ACK
Max-Forwards: 70
Content-Length: 0

]]></send>
<nop><action><exec rtp_stream="{{.Speech}},1,0"/></action></nop>
<pause milliseconds="{{.Milliseconds}}"/>
<send retrans="500"><![CDATA[
BYE sip:{{.User}}@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: caller <sip:caller@[local_ip]:[local_port]>;tag=[pid]SIPpTag00[call_number]
To: <sip:{{.User}}@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 BYE
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv response="200" crlf="true"/>
</scenario>
`

// sipCalled is sipp's scenario of the called side. Unlike the one that sipp brings along it bears an INVITE and an ACK that are repeated, as they are over UDP when the
// machine is busy.
const sipCalled = `<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="called side that echoes">
<recv request="INVITE" crlf="true"/>
<send><![CDATA[
SIP/2.0 180 Ringing
[last_Via:]
[last_From:]
[last_To:];tag=[pid]SIPpTag01[call_number]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:[local_ip]:[local_port];transport=[transport]>
Content-Length: 0

]]></send>
<send retrans="500"><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:];tag=[pid]SIPpTag01[call_number]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:[local_ip]:[local_port];transport=[transport]>
Content-Type: application/sdp
Content-Length: [len]

v=0
o=called 53655765 2353687637 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [media_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000
]]></send>
<recv request="INVITE" optional="true"/>
<recv request="INVITE" optional="true"/>
<recv request="INVITE" optional="true"/>
<recv request="ACK"/>
<recv request="ACK" optional="true"/>
<recv request="ACK" optional="true"/>
<recv request="ACK" optional="true"/>
<recv request="BYE"/>
<send><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:[local_ip]:[local_port];transport=[transport]>
Content-Length: 0

]]></send>
<timewait milliseconds="4000"/>
</scenario>
`

// speechTime is how long a call's media lasts, and callTime the call, in which the last echo comes back.
const (
	speechTime = time.Second
	callTime   = 1500 * time.Millisecond
)

// The client's ports: of signalling one for each call, of media four.
const (
	firstCaller = 10000
	firstSpeech = 30000
)

// SIPTransport is what SIP goes over.
type SIPTransport string

// Transports of SIP.
const (
	SIPOverUDP SIPTransport = "udp"
	SIPOverTCP SIPTransport = "tcp"
)

// ServeSIP starts sipp as the called side on a server: it answers every INVITE at the virtual address, and echoes the media.
func (m *Media) ServeSIP(ctx context.Context, server string, over SIPTransport) error {
	// Two instances on one host have ports of their own.
	media, kind := sipPorts+portsEach*m.number(server), "u1"
	if over == SIPOverTCP {
		media, kind = media+portsEach/2, "t1"
	}
	vip, script := m.VIP().String(), m.path(server, "called.xml")
	if err := os.WriteFile(script, []byte(sipCalled), 0o644); err != nil {
		return err
	}
	p, err := m.launch(ctx, server, "sipp-"+string(over), "env", "TERM=dumb", "sipp", "-sf", script, "-t", kind, "-i", vip, "-p", strconv.Itoa(SIPPort),
		"-mi", vip, "-mp", strconv.Itoa(media), "-rtp_echo", "-nostdin", "-max_socket", "1000")
	if err != nil {
		return err
	}
	return m.listening(ctx, p, server, string(over), netip.AddrPortFrom(m.VIP(), SIPPort))
}

// CallSIP makes a call with a second of media. It has ports of its own, which number chooses: calls with different numbers may go on at the same time. (All calls of one
// sipp share one port for media.)
func (m *Media) CallSIP(ctx context.Context, over SIPTransport, number int) error {
	dir, err := os.MkdirTemp(m.path(ClientHost, "."), "sipp-")
	if err != nil {
		return err
	}
	speech, script, stat := filepath.Join(dir, "speech.ulaw"), filepath.Join(dir, "caller.xml"), filepath.Join(dir, "stat.csv")
	err = errors.Join(
		os.WriteFile(speech, bytes.Repeat([]byte{0xff}, int(speechTime/time.Second)*8000), 0o644),
		writeTemplate(script, sipCaller, map[string]any{"User": "service", "Speech": speech, "Milliseconds": callTime.Milliseconds()}),
	)
	if err != nil {
		return err
	}
	kind := "u1"
	if over == SIPOverTCP {
		kind = "t1"
	}
	own := m.host(ClientHost).Addr4().String()
	_, failed := m.run(ctx, startTimeout, dir, "sipp", netip.AddrPortFrom(m.VIP(), SIPPort).String(), "-sf", script, "-t", kind, "-i", own,
		"-p", strconv.Itoa(firstCaller+number), "-mi", own, "-mp", strconv.Itoa(firstSpeech+4*number), "-m", "1",
		"-nostdin", "-trace_stat", "-stf", stat, "-trace_err", "-timeout", fmt.Sprintf("%ds", int(startTimeout/time.Second)))
	done, err := sippStat(stat, "SuccessfulCall(C)")
	if err == nil && done != 1 {
		err = fmt.Errorf("SIP over %s, call %d: not completed", over, number)
	}
	return errors.Join(failed, err)
}

// sippStat returns a number from the last line of sipp's statistics.
func sippStat(path, column string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	r := csv.NewReader(f)
	r.Comma, r.FieldsPerRecord, r.LazyQuotes = ';', -1, true
	rows, err := r.ReadAll()
	if err != nil || len(rows) < 2 {
		return 0, fmt.Errorf("%s: %d lines: %w", path, len(rows), err)
	}
	for i, name := range rows[0] {
		if last := rows[len(rows)-1]; name == column && i < len(last) {
			return strconv.Atoi(last[i])
		}
	}
	return 0, fmt.Errorf("%s: no column %s", path, column)
}
