// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/dispatcher/balance"
)

func ExampleNew() {
	policy, err := balance.New(balance.Config{Kind: balance.RoundRobin})
	if err != nil {
		fmt.Println(err)
		return
	}
	backends := []balance.Backend{{Name: "b1", Weight: 2}, {Name: "b2", Weight: 1}}
	for range 6 {
		i := policy.Choose(time.Now(), 0, backends)
		fmt.Print(backends[i].Name, " ")
	}
	// Output: b1 b2 b1 b1 b2 b1
}

// A connection that its backend refuses goes to the next one, and with consistent hashing all of that client's do.
func ExamplePolicy() {
	policy, err := balance.New(balance.Config{Kind: balance.ConsistentHash})
	if err != nil {
		fmt.Println(err)
		return
	}
	backends := []balance.Backend{{Name: "b1", Weight: 1}, {Name: "b2", Weight: 1}, {Name: "b3", Weight: 1}}
	key := balance.KeyAddr(netip.MustParseAddr("198.51.100.7"))
	for {
		i := policy.Choose(time.Now(), key, backends)
		if i < 0 {
			fmt.Println("none takes it")
			return
		}
		fmt.Println("refused by", backends[i].Name)
		backends[i].Tried = true
	}
	// Output:
	// refused by b1
	// refused by b3
	// refused by b2
	// none takes it
}

// Sessions go where load is least; those of a client that comes again go where it was.
func ExampleNewSticky() {
	policy, err := balance.New(balance.Config{Kind: balance.Shell, SessionLoad: 0.1})
	if err != nil {
		fmt.Println(err)
		return
	}
	sticky, err := balance.NewSticky(policy, balance.StickyConfig{Time: 10 * time.Minute})
	if err != nil {
		fmt.Println(err)
		return
	}
	backends := []balance.Backend{
		{Name: "b1", Weight: 1, Load: 0.55, Report: 1}, {Name: "b2", Weight: 1, Load: 0.35, Report: 1},
	}
	for _, cookie := range []string{"anna", "ben", "carl", "anna"} {
		i := sticky.Choose(time.Now(), balance.Key(cookie), backends)
		fmt.Println(cookie, backends[i].Name)
	}
	// Output:
	// anna b2
	// ben b2
	// carl b1
	// anna b2
}
