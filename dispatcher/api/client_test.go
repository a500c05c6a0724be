// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/rehome-net/rehome/dispatcher/api"
)

// front is a dispatcher that takes every order.
type front struct {
	api.UnimplementedDispatcherServer
}

func (front) SetBackend(_ context.Context, r *api.SetBackendRequest) (*api.SetBackendResponse, error) {
	return &api.SetBackendResponse{Pools: []*api.Pool{{Name: r.GetPool(), Backends: []*api.Backend{
		{Name: r.GetBackend(), State: "drained", Drained: r.GetDrained()},
	}}}}, nil
}

// A program of an operator's takes a backend out of its pool.
func ExampleDial() {
	dir, err := os.MkdirTemp("", "rh-api-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory of this example's
	path := filepath.Join(dir, "dispatcher.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	server := grpc.NewServer() // in an operator's life a running dispatcher
	api.RegisterDispatcherServer(server, front{})
	go server.Serve(ln) //nolint:errcheck // until Stop
	defer server.Stop()

	client, err := api.Dial(path, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close() //nolint:errcheck // nothing was written
	r, err := client.SetBackend(context.Background(), &api.SetBackendRequest{Pool: "files", Backend: "web-3", Drained: new(true)})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range r.GetPools() {
		for _, b := range p.GetBackends() {
			fmt.Println(p.GetName(), b.GetName(), b.GetState())
		}
	}
	// Output: files web-3 drained
}

func TestDialNeedsTLS(t *testing.T) {
	if c, err := api.Dial("192.0.2.1:7071", nil); err == nil {
		t.Error("a dispatcher over TCP without TLS", c.Close())
	}
}
