// SPDX-License-Identifier: Apache-2.0

package peek

// Parser reads the first bytes of a service's connections. It does not change: any number of goroutines may use one.
type Parser struct {
	cfg Config
}

// New returns a parser of connections as cfg describes them.
func New(cfg Config) (*Parser, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Parser{cfg: cfg}, nil
}

// Limit is the most bytes that Parse looks at: the size of a buffer that is large enough.
func (p *Parser) Limit() int { return p.cfg.Limits.Bytes }

// Progress is how far one connection's bytes have been read. The zero value stands at the start. It holds offsets only, none
// of the bytes.
//
//	proxy ─► begin ─┬─ HTTP ──► line ─► fields ─► key
//	                ├─ TLS ───► records ────────► key
//	                ├─ HTTP2 ─► settings ─► frames ─► block ─► key
//	                └─ TCP ─────────────────────► key
type Progress struct {
	stage   stage
	crlf    bool    // HTTP: the empty line that may stand in front has been skipped
	opened  uint8   // TLS: how much of message is known
	message [4]byte // TLS: the handshake message's header, which records may cut
	fields  uint16
	off     int32    // the line, record or frame that is being read
	scan    int32    // HTTP: no LF between off and here. HTTP2: bytes seen
	start   int32    // the request line, first record or HEADERS frame
	host    [2]int32 // HTTP: where the Host field's value is
	got     int32    // TLS: bytes of the handshake message in the records before off
	need    int32
}

type stage uint8

const (
	stageProxy stage = iota
	stageBegin
	stageLine
	stageFields
	stageRecords
	stageSettings
	stageFrames
	stageBlock
)

// Need is how many bytes from the connection's start must be there before Parse can say more than ErrMore, as far
// as it is known; at least one more than there were.
func (g *Progress) Need() int { return max(int(g.need), 1) }

// AwaitsServer reports whether an HTTP/2 client has sent its preface and whole frames, but nothing of a request. Some
// clients send none before they have the server's SETTINGS (gRPC's do so). They cannot be routed by a request: after
// a short while the caller does best to hand such a connection to the service's default.
func (g *Progress) AwaitsServer() bool { return g.stage == stageFrames && g.scan == g.off }

// Parse reads b, the connection's bytes from its start; between the calls for one connection b only grows. It returns the key,
// ErrMore, or a *RejectError. Called again after a key or a rejection, it returns the same.
func (p *Parser) Parse(g *Progress, b []byte) (Key, error) {
	full := len(b) >= p.cfg.Limits.Bytes
	if full {
		b = b[:p.cfg.Limits.Bytes]
	}
	k := Key{Mode: p.cfg.Mode}
	g.need = 0
	r := incomplete
	if len(b) >= int(max(g.off, g.scan)) {
		r = p.parse(g, b, &k)
	}
	if r == incomplete && full {
		r = TooLarge
	}
	switch r {
	case accepted:
		return k, nil
	case incomplete:
		g.need = max(g.need, int32(len(b))+1)
		return Key{}, ErrMore
	default:
		return Key{}, &RejectError{Mode: p.cfg.Mode, Reason: r, Offset: int(g.off)}
	}
}

func (p *Parser) parse(g *Progress, b []byte, k *Key) Reason {
	if g.stage == stageProxy {
		if p.cfg.ProxyProtocol {
			h, need, r := parseProxy(b)
			if need > p.cfg.Limits.Bytes {
				return TooLarge
			}
			if r != accepted {
				g.need = int32(need)
				return r
			}
			g.off = int32(h.Len)
		}
		g.stage = stageBegin
	}
	r := p.byMode(g, b, k)
	if r == accepted && p.cfg.ProxyProtocol {
		// Read once more, for the addresses take more room than a Progress should.
		k.Proxy, _, r = parseProxy(b)
	}
	return r
}

func (p *Parser) byMode(g *Progress, b []byte, k *Key) Reason {
	switch p.cfg.Mode {
	case HTTP:
		return p.http1(g, b, k)
	case TLS:
		return p.tls(g, b, k)
	case HTTP2:
		return p.http2(g, b, k)
	default:
		k.Len = int(g.off)
		return accepted
	}
}
