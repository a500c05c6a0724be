// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// BenchmarkHandoffLinked compares the two ways for a linked server: what a client waits whose request arrives whole, and one that sends the
// second half while the handoff is under way.
func BenchmarkHandoffLinked(b *testing.B) {
	const samples, late = 200, 100 * time.Millisecond
	for _, way := range []struct {
		name    string
		command []string
		forward dispatcher.ForwardMode
		gate    agent.GateMode
	}{{"bpf", binary(b), dispatcher.ForwardTCX, agent.GateBPF}, {"nft", withoutBPF(b), dispatcher.ForwardNFT, agent.GateNFT}} {
		b.Run(way.name, func(b *testing.B) {
			cfg := scenario.BenchConfig{Command: way.command, Lab: labName("hb" + way.name), Forward: way.forward, Gate: way.gate}
			demoServices(&cfg)
			stand, err := scenario.StartBench(testContext(b, time.Minute), cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer stand.Close()
			for _, host := range nftHosts() {
				if err := stand.StartServer(testContext(b, time.Minute), host); err != nil {
					b.Fatal(err)
				}
			}
			client, to := stand.Host(scenario.ClientHost), stand.Target(nftEchoPort, false).String()
			for _, pieces := range []int{1, 2} {
				var took []float64
				slow := 0
				for range samples {
					d, err := timedEcho(client, to, pieces)
					if err != nil {
						b.Fatal(err)
					}
					took = append(took, float64(d.Microseconds()))
					if d > late {
						slow++
					}
				}
				slices.Sort(took)
				of := fmt.Sprintf("-of-%d", pieces)
				report(b, map[string]float64{
					"us-median" + of: took[len(took)/2], "us-p99" + of: took[len(took)*99/100], "late" + of: float64(slow),
				})
			}
		})
	}
}

// timedEcho sends some pieces on a new connection and waits for all to come back. It does not count the time to connect.
func timedEcho(client *netnslab.Host, to string, pieces int) (time.Duration, error) {
	conn, err := client.Dial(context.Background(), "tcp", to)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	piece := rampBytes(0, 100)
	begin := time.Now()
	for range pieces {
		if _, err := conn.Write(piece); err != nil {
			return 0, err
		}
	}
	for range pieces {
		if err := same(conn, piece); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}
