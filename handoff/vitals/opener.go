// SPDX-License-Identifier: Apache-2.0

package vitals

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"time"
)

// DefaultSkew is the value of OpenerConfig.Skew when that is zero.
const DefaultSkew = time.Minute

// OpenerConfig says whom a receiver believes. Keys is required.
type OpenerConfig struct {
	// Keys are the keys that senders may use; their IDs differ.
	Keys []Key
	// Skew is how far from the receiver's clock a time of sending may lie: the hosts' clocks must agree to this. 0 means
	// DefaultSkew.
	Skew time.Duration
}

func (c OpenerConfig) validate() error {
	if len(c.Keys) == 0 {
		return errors.New("no key: reports are authenticated")
	}
	if c.Skew < 0 {
		return fmt.Errorf("skew: %v: want more than 0", c.Skew)
	}
	seen := make(map[uint16]bool, len(c.Keys))
	for _, k := range c.Keys {
		if err := k.validate(); err != nil {
			return err
		}
		if seen[k.ID] {
			return fmt.Errorf("key %d stands twice", k.ID)
		}
		seen[k.ID] = true
	}
	return nil
}

// Datagram is one that was found to be genuine and new. Exactly one of Heartbeat and Vector is set.
type Datagram struct {
	Heartbeat *Heartbeat
	Vector    *Vector
	// Sent is the time of sending by the sender's clock, strictly increasing for a host.
	Sent time.Time
}

// Opener looks at what a receiver gets. It is for one goroutine.
type Opener struct {
	skew    time.Duration
	keys    map[uint16]*keyed
	windows map[source]*window
}

type keyed struct {
	host uint32
	mac  hash.Hash
}

// source is who counts for itself: replay windows of heartbeats and vectors must not push each other on.
type source struct {
	host uint32
	kind byte
}

// NewOpener returns an opener, or an error that says what is wrong with the configuration.
func NewOpener(config OpenerConfig) (*Opener, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	o := &Opener{windows: make(map[source]*window)}
	o.set(config)
	return o, nil
}

// SetConfig replaces keys and skew. What has been seen stays seen.
func (o *Opener) SetConfig(config OpenerConfig) error {
	if err := config.validate(); err != nil {
		return err
	}
	o.set(config)
	return nil
}

func (o *Opener) set(config OpenerConfig) {
	o.skew = config.Skew
	if o.skew == 0 {
		o.skew = DefaultSkew
	}
	o.keys = make(map[uint16]*keyed, len(config.Keys))
	for _, k := range config.Keys {
		o.keys[k.ID] = &keyed{host: k.Host, mac: hmac.New(sha256.New, k.Secret)}
	}
}

// Open checks a datagram that arrived at some time. The error is, or wraps, ErrMalformed, ErrKey, ErrForged, ErrClock or ErrReplayed; only
// a genuine datagram changes what Open remembers.
func (o *Opener) Open(b []byte, arrived time.Time) (Datagram, error) {
	d, err := parse(b)
	if err != nil {
		return Datagram{}, err
	}
	host := d.message.host()
	key := o.keys[d.key]
	if key == nil || key.host != 0 && key.host != host {
		return Datagram{}, ErrKey
	}
	if !d.authentic(key.mac) {
		return Datagram{}, ErrForged
	}
	sent := time.Unix(0, d.sent)
	if age := arrived.Sub(sent); age > o.skew || age < -o.skew {
		return Datagram{}, ErrClock
	}
	from := source{host, d.message.kind()}
	w := o.windows[from]
	if w == nil {
		w = &window{}
		o.windows[from] = w
	}
	if !w.add(d.sent) {
		return Datagram{}, ErrReplayed
	}
	out := Datagram{Sent: sent}
	switch m := d.message.(type) {
	case Heartbeat:
		out.Heartbeat = &m
	case Vector:
		out.Vector = &m
	}
	return out, nil
}

// Reason returns a word for why Open refused, for counters.
func Reason(err error) string {
	for word, target := range map[string]error{
		"key": ErrKey, "forged": ErrForged, "replayed": ErrReplayed, "clock": ErrClock,
	} {
		if errors.Is(err, target) {
			return word
		}
	}
	return "malformed"
}
