// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// talker is sipp's scenario of a caller who talks until the called side wants no more: INVITE with an offer, media, then an INFO each 300 ms, and an INVITE in
// the dialog each fifth time. When an INFO is answered with 480 it ends the call.
func talker() string {
	request := func(method, branch, body string) string {
		seq := map[bool]string{true: "1 " + method, false: "[cseq] " + method}[branch == "first"]
		tag := map[bool]string{true: "", false: "[peer_tag_param]"}[branch == "first"]
		content := ""
		if body != "" {
			content = "Content-Type: application/sdp\n"
		}
		return fmt.Sprintf(`<send><![CDATA[
%[1]s sip:service@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: caller <sip:caller@[local_ip]:[local_port]>;tag=[pid]SIPpTag00[call_number]
To: <sip:service@[remote_ip]:[remote_port]>%[2]s
Call-ID: [call_id]
CSeq: %[3]s
Contact: <sip:caller@[local_ip]:[local_port];transport=[transport]>
Max-Forwards: 70
%[4]sContent-Length: [len]

%[5]s]]></send>
`, method, tag, seq, content, body)
	}
	const offer = `v=0
o=caller 53655765 2353687637 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [rtpstream_audio_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000
`
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" encoding=\"ISO-8859-1\" ?>\n<scenario name=\"talker\">\n")
	b.WriteString(request("INVITE", "first", offer))
	b.WriteString("<recv response=\"100\" optional=\"true\"/>\n<recv response=\"200\" rrs=\"true\"/>\n")
	b.WriteString(request("ACK", "first-ack", ""))
	b.WriteString("<nop><action><exec rtp_stream=\"{{.Speech}},-1,0\"/></action></nop>\n<label id=\"1\"/>\n")
	for range 5 {
		b.WriteString("<pause milliseconds=\"300\"/>\n")
		b.WriteString(request("INFO", "", ""))
		b.WriteString("<recv response=\"480\" optional=\"true\" next=\"2\"/>\n<recv response=\"200\"/>\n")
	}
	b.WriteString(request("INVITE", "", offer))
	b.WriteString("<recv response=\"200\"/>\n")
	b.WriteString(request("ACK", "", ""))
	// What is sent after BYE belongs to no call any more.
	b.WriteString("<nop next=\"1\"/>\n<label id=\"2\"/>\n<nop><action><exec rtp_stream=\"pause\"/></action></nop>\n<pause milliseconds=\"100\"/>\n")
	b.WriteString(request("BYE", "", ""))
	b.WriteString("<recv response=\"200\" crlf=\"true\"/>\n</scenario>\n")
	return b.String()
}

// caller is sipp with one call over TCP.
type caller struct {
	cmd    *netnslab.Cmd
	stat   string
	output bytes.Buffer
	ended  chan error
}

// talkers are the first ports of callers: of signalling one for each, of media four.
const talkers = 12000

func (m *Media) startCaller(ctx context.Context, number int) (viewer, error) {
	dir, err := os.MkdirTemp(m.path(ClientHost, "."), "talker-")
	if err != nil {
		return nil, err
	}
	speech, script := filepath.Join(dir, "speech.ulaw"), filepath.Join(dir, "talker.xml")
	err = errors.Join(os.WriteFile(speech, bytes.Repeat([]byte{0xff}, 8000), 0o644), writeTemplate(script, talker(), map[string]any{"Speech": speech}))
	if err != nil {
		return nil, err
	}
	own := m.host(ClientHost).Addr4().String()
	c := &caller{stat: filepath.Join(dir, "stat.csv"), ended: make(chan error, 1)}
	// Each call has a connection of its own ("tn") or the program's one ("t1"), which is the same for one call, and not the same code.
	c.cmd = m.host(ClientHost).Command(ctx, "sipp", netip.AddrPortFrom(m.VIP(), SIPPort).String(), "-sf", script, "-t", []string{"t1", "tn"}[number%2], "-i", own,
		"-p", strconv.Itoa(talkers+number), "-mi", own, "-mp", strconv.Itoa(firstSpeech+4*number), "-m", "1", "-max_socket", "16",
		"-nostdin", "-trace_stat", "-stf", c.stat, "-trace_err", "-timeout", ffmpegTime+"s")
	c.cmd.Dir = dir
	c.cmd.Env = append(os.Environ(), "TERM=dumb", "HOME="+dir)
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { c.ended <- c.cmd.Wait() }()
	return c, nil
}

func (*caller) kind() string { return "sipp" }

// stop waits for the end of the call, which the called side has asked for.
func (c *caller) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var err error
	select {
	case err = <-c.ended:
	case <-ctx.Done():
		err = errors.Join(errors.New("the call does not end"), c.cmd.Process.Kill(), <-c.ended)
	}
	done, failed := sippStat(c.stat, "SuccessfulCall(C)")
	if failed == nil && done != 1 {
		failed = errors.New("the call was not completed")
	}
	if err = errors.Join(err, failed); err != nil {
		err = fmt.Errorf("%w: it says: %s", err, lastLines(c.output.String(), 6))
	}
	return err
}
