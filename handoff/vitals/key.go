// SPDX-License-Identifier: Apache-2.0

package vitals

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// MinSecret is the least length of a key's secret in bytes.
const MinSecret = 16

const (
	maxSecret = 64   // beyond a block of SHA-256 a longer secret is hashed first, and no stronger
	maxKeys   = 4096 // in one file
)

// Key is a secret that a sender and its receivers share.
type Key struct {
	// ID is the number that datagrams name the key by.
	ID uint16
	// Host is the only host whose reports the key is good for; 0 means any.
	Host uint32
	// Secret has MinSecret bytes or more.
	Secret []byte
}

func (k Key) validate() error {
	if len(k.Secret) < MinSecret || len(k.Secret) > maxSecret {
		return fmt.Errorf("key %d: secret of %d bytes, want %d to %d", k.ID, len(k.Secret), MinSecret, maxSecret)
	}
	return nil
}

// ReadKeys reads a key file: lines of "ID HOST SECRET", where HOST is a number or * for any, and SECRET is in hexadecimal. Empty lines,
// and lines that begin with #, do not count. Errors name the line and never the secret.
func ReadKeys(r io.Reader) ([]Key, error) {
	var keys []Key
	seen := make(map[uint16]bool)
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		k, err := parseKey(text)
		if err == nil && seen[k.ID] {
			err = fmt.Errorf("key %d stands twice", k.ID)
		}
		if err == nil && len(keys) == maxKeys {
			err = fmt.Errorf("more than %d keys", maxKeys)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		seen[k.ID] = true
		keys = append(keys, k)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("no key: want lines of ID HOST SECRET, such as: 1 * followed by the output of openssl rand -hex 32")
	}
	return keys, nil
}

func parseKey(text string) (Key, error) {
	fields := strings.Fields(text)
	if len(fields) != 3 {
		return Key{}, fmt.Errorf("%d fields, want ID HOST SECRET", len(fields))
	}
	id, err := strconv.ParseUint(fields[0], 10, 16)
	if err != nil {
		return Key{}, fmt.Errorf("id: want a number up to 65535")
	}
	k := Key{ID: uint16(id)}
	if fields[1] != "*" {
		host, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil || host == 0 {
			return Key{}, fmt.Errorf("host: want a host's number or *")
		}
		k.Host = uint32(host)
	}
	if k.Secret, err = hex.DecodeString(fields[2]); err != nil {
		return Key{}, errors.New("secret: want hexadecimal digits")
	}
	return k, k.validate()
}
