// SPDX-License-Identifier: Apache-2.0

package calm

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"strings"
	"testing"
	"time"
)

func TestGrowth(t *testing.T) {
	for _, tt := range []struct {
		name  string
		inUse uint64
		want  int
	}{
		{"nothing is known yet", 0, largestPercent},
		{"an empty agent", 100 << 10, largestPercent},
		{"an agent at rest", 8 << 20, 800},
		{"some queues are here", 32 << 20, 200},
		{"as large as the room for growth", 64 << 20, standardPercent},
		{"larger", 1 << 30, standardPercent},
		{"beyond reason", math.MaxUint64, standardPercent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := growth(tt.inUse); got != tt.want {
				t.Errorf("growth(%d) = %d, want %d", tt.inUse, got, tt.want)
			}
		})
	}
}

// percent reads the process's target.
func percent() int {
	p := debug.SetGCPercent(standardPercent)
	debug.SetGCPercent(p)
	return p
}

// nextCollection returns the heap at which the runtime will collect, and what the last collection found in use, in bytes.
func nextCollection() (next, live uint64) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	samples := scannedMetrics()
	runtimemetrics.Read(samples)
	return m.NextGC, samples[0].Value.Uint64()
}

// TestCollection: without a collection nobody is woken; each wakes those who wait.
func TestCollection(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for range 3 {
		next := collection()
		select {
		case <-next:
			t.Fatal("woken without a collection")
		case <-time.After(50 * time.Millisecond):
		}
		runtime.GC()
		select {
		case <-next:
		case <-time.After(10 * time.Second):
			t.Fatal("a collection has not woken it")
		}
	}
}

// collected runs CollectRarely until f returns.
func collected(f func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		CollectRarely(ctx)
	}()
	f()
	cancel()
	<-done
}

// collectorChild makes this test binary a process with a heap of that many MiB.
const collectorChild = "REHOME_TEST_COLLECTOR"

// TestCollectorChild is what TestRoomToGrow starts: it prints when its heap will be collected.
func TestCollectorChild(t *testing.T) {
	var mebibytes int
	if n, _ := fmt.Sscan(os.Getenv(collectorChild), &mebibytes); n != 1 {
		return // TestRoomToGrow runs it in a process of its own
	}
	kept := make([]byte, mebibytes<<20)
	collected(func() {
		if mebibytes > 0 {
			runtime.GC() // may have begun before anybody waits for it
			runtime.GC()
		}
		var next, live uint64
		for rests := 0; rests < 5; time.Sleep(20 * time.Millisecond) {
			was := next
			if next, live = nextCollection(); next == was {
				rests++
			}
		}
		fmt.Printf("next %d live %d\n", next, live)
	})
	runtime.KeepAlive(kept)
	if got := percent(); got != standardPercent {
		t.Errorf("afterwards the target is %d, was %d", got, standardPercent)
	}
}

// TestRoomToGrow asks the runtime itself when it will collect, in processes with heaps of different sizes.
func TestRoomToGrow(t *testing.T) {
	const quarter = collectAfter / 4 // small differences are left alone
	for _, tt := range []struct {
		mebibytes   int
		least, most uint64
	}{
		{1, collectAfter - quarter, collectAfter + 2*quarter},
		{32, 32<<20 + collectAfter - quarter, 32<<20 + collectAfter + 2*quarter},
		{128, 256 << 20, 256<<20 + 2*quarter},
	} {
		t.Run(fmt.Sprintf("%d MiB", tt.mebibytes), func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestCollectorChild$", "-test.timeout=10s")
			cmd.Env = append(os.Environ(), "GOGC=", fmt.Sprintf("%s=%d", collectorChild, tt.mebibytes))
			out, err := cmd.CombinedOutput()
			var next, live uint64
			i := strings.Index(string(out), "next ")
			if err != nil || i < 0 {
				t.Fatalf("%v\n%s", err, out)
			}
			if _, err := fmt.Sscanf(string(out[i:]), "next %d live %d", &next, &live); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d MiB in use, collected at %d MiB", live>>20, next>>20)
			if next < tt.least || next > tt.most {
				t.Errorf("collected at %d MiB, want %d to %d", next>>20, tt.least>>20, tt.most>>20)
			}
		})
	}
}

func TestCollectorIsTheOperators(t *testing.T) {
	t.Setenv("GOGC", "50")
	before := percent()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	CollectRarely(ctx) // it returns at once, whatever becomes of ctx
	collected(func() {
		if got := percent(); got != before {
			t.Errorf("the target is %d although GOGC is set, was %d", got, before)
		}
	})
}
