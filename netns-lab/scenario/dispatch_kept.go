// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// keptConns are connections that ask now and then, and stay open in between.
type keptConns struct {
	conns   []net.Conn
	readers []*bufio.Reader
}

// openKept opens n connections to the demo server through a front; each asks once.
func openKept(ctx context.Context, f *Farm, front Front, n int) (_ *keptConns, err error) {
	target, err := front.Target(f, Linked, false)
	if err != nil {
		return nil, err
	}
	k := &keptConns{}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	for range n {
		conn, err := f.Client().Dial(ctx, "tcp", target.String())
		if err != nil {
			return nil, err
		}
		k.conns = append(k.conns, conn)
		k.readers = append(k.readers, bufio.NewReader(conn))
	}
	return k, errors.Join(k.ask()...)
}

// ask asks on every connection and returns what went wrong.
func (k *keptConns) ask() []error {
	var errs []error
	for i := range k.conns {
		if err := k.askOne(i); err != nil {
			errs = append(errs, fmt.Errorf("kept connection %d: %w", i, err))
		}
	}
	return errs
}

func (k *keptConns) askOne(i int) error {
	if err := k.conns[i].SetDeadline(time.Now().Add(stallLimit)); err != nil {
		return err
	}
	req := &http.Request{Method: http.MethodGet, Host: ShopName, URL: &url.URL{Path: LinkedPath + "who"}}
	if err := req.Write(k.conns[i]); err != nil {
		return err
	}
	resp, err := http.ReadResponse(k.readers[i], req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || len(body) == 0) {
		err = fmt.Errorf("%s %q", resp.Status, body)
	}
	return errors.Join(err, resp.Body.Close())
}

func (k *keptConns) close() {
	for _, c := range k.conns {
		_ = c.Close()
	}
}
