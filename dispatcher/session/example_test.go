// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// A video is set up over RTSP; its packets follow the connection that asked for it.
func Example() {
	now := time.Now()
	table, err := session.New(now, session.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	control := session.Key{
		Client:   netip.MustParseAddrPort("198.51.100.7:40000"),
		Server:   netip.MustParseAddrPort("203.0.113.1:554"),
		Protocol: 6,
	}
	id, actions, err := table.Open(now, control, session.Terms{Server: 2}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	// SETUP and its reply, behind NAT: who knows which port the packets will come from.
	actions, err = table.Announce(now, id, []session.Announcement{{
		Client:   netip.MustParseAddrPort("198.51.100.7:0"),
		Server:   netip.MustParseAddrPort("203.0.113.1:6970"),
		Protocol: 17, Media: "rtp",
	}}, actions)
	if err != nil {
		fmt.Println(err)
		return
	}
	flow, actions, ok := table.Touch(now, session.Key{
		Client:   netip.MustParseAddrPort("198.51.100.7:61234"),
		Server:   netip.MustParseAddrPort("203.0.113.1:6970"),
		Protocol: 17,
	}, actions)
	fmt.Println(ok, flow.Identity, flow.Media, "on server", flow.Server)
	for _, a := range actions {
		fmt.Println(a.Kind, a.Key)
	}
	// Output:
	// true secondary rtp on server 2
	// install tcp 198.51.100.7:40000 > 203.0.113.1:554
	// install udp 198.51.100.7:* > 203.0.113.1:6970
	// install udp 198.51.100.7:61234 > 203.0.113.1:6970
	// remove udp 198.51.100.7:* > 203.0.113.1:6970
}

func call(port uint16) session.Key {
	return session.Key{
		Client:   netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port),
		Server:   netip.MustParseAddrPort("203.0.113.1:5060"),
		Protocol: 17,
	}
}

// A SIP dialog goes on over another flow, and is found by its Call-ID.
func ExampleTable_Name() {
	now := time.Now()
	table, err := session.New(now, session.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	id, _, err := table.Open(now, call(5060), session.Terms{Server: 1}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(table.Name(id, "sip:a84b4c76e66710@198.51.100.7"))
	if found, ok := table.Named("sip:a84b4c76e66710@198.51.100.7"); ok {
		_, err := table.Join(now, found, call(5070), nil)
		fmt.Println(found == id, err)
	}
	// Output:
	// <nil>
	// true <nil>
}

// The same client's next session goes where its first one is.
func ExampleTable_ServerOf() {
	now := time.Now()
	table, err := session.New(now, session.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(table.ServerOf(call(5060).Client.Addr()))
	_, _, err = table.Open(now, call(5060), session.Terms{Server: 4}, nil)
	fmt.Println(err)
	fmt.Println(table.ServerOf(call(5060).Client.Addr()))
	// Output:
	// 0 false
	// <nil>
	// 4 true
}

// A hot server is relieved of a session: all of its flows change their server together.
func ExampleTable_Move() {
	now := time.Now()
	table, err := session.New(now, session.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	id, _, err := table.Open(now, call(5060), session.Terms{Server: 1}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = table.Join(now, id, call(5070), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	actions, err := table.Move(id, 2, nil)
	for _, a := range actions {
		fmt.Println(a.Kind, a.Key, "to server", a.Server)
	}
	fmt.Println(err)
	// Output:
	// install udp 198.51.100.7:5070 > 203.0.113.1:5060 to server 2
	// install udp 198.51.100.7:5060 > 203.0.113.1:5060 to server 2
	// <nil>
}

// What nobody uses goes after twice its timeout.
func ExampleTable_Purge() {
	now := time.Now()
	table, err := session.New(now, session.Config{Timeouts: session.Timeouts{Signalling: 10 * time.Second}})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _, err = table.Open(now, call(5060), session.Terms{Server: 1}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, d := range []time.Duration{5 * time.Second, 15 * time.Second, 20 * time.Second} {
		now := now.Add(d)
		flow, ok := table.Lookup(now, call(5060))
		fmt.Println(d, ok, flow.Status)
		for _, a := range table.Purge(now, 256, nil) {
			fmt.Println(a.Kind)
		}
	}
	// Output:
	// 5s true new
	// 15s true inactive
	// 20s true inactive
	// remove
	// over
}

func ExampleConflictError() {
	now := time.Now()
	table, err := session.New(now, session.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	promise := []session.Announcement{{
		Client:   netip.MustParseAddrPort("198.51.100.7:0"),
		Server:   netip.MustParseAddrPort("203.0.113.1:6970"),
		Protocol: 17,
	}}
	for i, port := range []uint16{5060, 5070} {
		id, _, err := table.Open(now, call(port), session.Terms{Server: session.Server(i)}, nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		_, err = table.Announce(now, id, promise, nil)
		var conflict *session.ConflictError
		if errors.As(err, &conflict) {
			fmt.Println("server", conflict.Server, "has promised it")
		}
	}
	// Output: server 0 has promised it
}
