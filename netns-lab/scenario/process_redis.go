// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/gomodule/redigo/redis"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// redisServer is the command of an unmodified redis-server that keeps everything in memory.
func redisServer(port uint16) []string {
	return []string{
		"redis-server", "--port", strconv.Itoa(int(port)), "--bind", "0.0.0.0 ::", "--protected-mode", "no",
		"--save", "", "--appendonly", "no", "--daemonize", "no",
	}
}

// redisBlock is the size of one value of the data, redisBatch how many are under way at a time.
const (
	redisBlock = 64 << 10
	redisBatch = 32
)

// redisData is data that fills a redis server and does not change: blocks of noise under block:0, block:1 and so on.
type redisData struct {
	noise netnslab.Noise
	sum   [sha256.Size]byte
}

// blocks calls f with the number and the content of each block, in order.
func (d *redisData) blocks(f func(n int, want []byte) error) error {
	buf := make([]byte, redisBlock)
	for n := 0; int64(n)*redisBlock < d.noise.Size; n++ {
		got, err := d.noise.ReadAt(buf, int64(n)*redisBlock)
		if got == 0 {
			return err
		}
		if err := f(n, buf[:got]); err != nil {
			return err
		}
	}
	return nil
}

func redisKey(n int) string { return "block:" + strconv.Itoa(n) }

// load writes the data into a server.
func (d *redisData) load(conn redis.Conn) error {
	under := 0
	settle := func(limit int) error {
		for ; under > limit; under-- {
			if answer, err := redis.String(conn.Receive()); err != nil || answer != "OK" {
				return fmt.Errorf("redis: SET: %q %w", answer, err)
			}
		}
		return nil
	}
	h := sha256.New()
	err := d.blocks(func(n int, want []byte) error {
		h.Write(want)
		if err := conn.Send("SET", redisKey(n), want); err != nil {
			return err
		}
		if under++; under < redisBatch {
			return nil
		}
		if err := conn.Flush(); err != nil {
			return err
		}
		return settle(redisBatch / 2)
	})
	if err != nil {
		return err
	}
	h.Sum(d.sum[:0])
	if err := conn.Flush(); err != nil {
		return err
	}
	return settle(0)
}

// equal reports whether a server has the data, all of it and nothing else of that name.
func (d *redisData) equal(conn redis.Conn) (bool, error) {
	h := sha256.New()
	err := d.blocks(func(n int, want []byte) error {
		got, err := redis.Bytes(conn.Do("GET", redisKey(n)))
		if err != nil {
			return fmt.Errorf("redis: GET %s: %w", redisKey(n), err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%w: %s", netnslab.ErrMismatch, redisKey(n))
		}
		h.Write(got)
		return nil
	})
	return err == nil && bytes.Equal(h.Sum(nil), d.sum[:]), err
}

// redisConn makes a client's connection one that speaks the protocol.
func redisConn(conn net.Conn) redis.Conn { return redis.NewConn(conn, answerLimit, answerLimit) }

// dialRedis connects and waits until the server has started.
func (b *ProcessBed) dialRedis(ctx context.Context, m ProcessMover) (redis.Conn, error) {
	conn, err := b.Dial(ctx, m.Address())
	if err != nil {
		return nil, err
	}
	c := redisConn(conn)
	if answer, err := redis.String(c.Do("PING")); err != nil || answer != "PONG" {
		_ = c.Close()
		return nil, fmt.Errorf("redis: PING: %q %w", answer, err)
	}
	return c, nil
}

// redisDialogue is a client that changes keys of its own, knows what must be in them, and reads the data that all share.
type redisDialogue struct {
	client int
	data   *redisData
	conn   redis.Conn
	count  int64
	// unsure is set when an answer is missing: the command may have been carried out.
	unsure bool
}

func (d *redisDialogue) open(conn net.Conn) { d.conn = redisConn(conn) }

// ask increments the client's counter, now and then reads a block of the data, writes a value and reads it.
func (d *redisDialogue) ask() error {
	counter, value := fmt.Sprintf("client:%d:count", d.client), fmt.Sprintf("client:%d:value", d.client)
	unsure := d.unsure
	d.unsure = true
	n, err := redis.Int64(d.conn.Do("INCR", counter))
	if err != nil {
		return err
	}
	if want := d.count + 1; n != want && (!unsure || n != want+1) {
		return fmt.Errorf("%w: %s is %d, want %d", netnslab.ErrMismatch, counter, n, want)
	}
	d.count, d.unsure = n, false
	if n%redisLook == 0 {
		if err := d.look(int(n) * 7919); err != nil {
			return err
		}
	}
	want := fmt.Sprintf("%d at %v", n, time.Now().UnixNano())
	if answer, err := redis.String(d.conn.Do("SET", value, want)); err != nil || answer != "OK" {
		return fmt.Errorf("SET: %q: %w", answer, err)
	}
	got, err := redis.String(d.conn.Do("GET", value))
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%w: %s is %q, want %q", netnslab.ErrMismatch, value, got, want)
	}
	return nil
}

// redisLook is after how many questions a client reads a block of the data.
const redisLook = 20

// look reads one of the blocks.
func (d *redisDialogue) look(n int) error {
	n %= int((d.data.noise.Size + redisBlock - 1) / redisBlock)
	want := make([]byte, redisBlock)
	size, err := d.data.noise.ReadAt(want, int64(n)*redisBlock)
	if size == 0 {
		return err
	}
	got, err := redis.Bytes(d.conn.Do("GET", redisKey(n)))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want[:size]) {
		return fmt.Errorf("%w: %s", netnslab.ErrMismatch, redisKey(n))
	}
	return nil
}
