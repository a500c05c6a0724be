// SPDX-License-Identifier: Apache-2.0

package availability

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/vitals"
)

var update = flag.Bool("update", false, "write what happens into the transcripts")

// start lies 5 ms before stamps come round.
func start() time.Time { return time.UnixMilli(1<<32*420 - 5) }

// transcript plays a file of testdata. Lines are
//
//	config interval=10ms misses=3 rise=3
//	TIME add HOST | remove HOST
//	TIME beat HOST SEQ FLAG [sent=TIME] [fails=TIME]
//	TIME tick
//	TIME blind SINCE
//
// and what follows from one stands below it, indented. Senders' clocks are an hour behind: only differences may count.
type transcript struct {
	t        *testing.T
	detector *Detector
	out      strings.Builder
}

func senderClock(at time.Duration) time.Time { return start().Add(at - time.Hour) }

func (tr *transcript) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		tr.t.Fatal(err)
	}
	return d
}

func (tr *transcript) number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		tr.t.Fatal(err)
	}
	return n
}

func (tr *transcript) configure(fields []string) {
	var c Config
	for _, f := range fields {
		switch name, value, _ := strings.Cut(f, "="); name {
		case "interval":
			c.Interval = tr.duration(value)
		case "misses":
			c.Misses = tr.number(value)
		case "rise":
			c.Rise = tr.number(value)
		}
	}
	var err error
	if tr.detector, err = New(c); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *transcript) beat(at time.Duration, fields []string) []Event {
	flags := map[string]vitals.Flag{
		"available": vitals.Available, "application-down": vitals.ApplicationDown, "planned-failure": vitals.PlannedFailure,
	}
	sent, stamp := at, at
	for _, f := range fields[3:] {
		switch name, value, _ := strings.Cut(f, "="); name {
		case "sent":
			sent, stamp = tr.duration(value), tr.duration(value)
		case "fails":
			stamp = tr.duration(value)
		}
	}
	h := vitals.Heartbeat{
		Host: uint32(tr.number(fields[0])), Seq: uint16(tr.number(fields[1])), Flag: flags[fields[2]], Stamp: vitals.StampOf(senderClock(stamp)),
	}
	return tr.detector.Beat(Beat{Heartbeat: h, At: start().Add(at), Sent: senderClock(sent)})
}

func (tr *transcript) do(line string) {
	fmt.Fprintln(&tr.out, line)
	fields := strings.Fields(line)
	if len(fields) == 0 || fields[0] == "#" {
		return
	}
	if fields[0] == "config" {
		tr.configure(fields[1:])
		return
	}
	at := tr.duration(fields[0])
	now := start().Add(at)
	var events []Event
	switch fields[1] {
	case "add":
		tr.detector.Add(now, uint32(tr.number(fields[2])))
	case "remove":
		tr.detector.Remove(uint32(tr.number(fields[2])))
	case "beat":
		events = tr.beat(at, fields[2:])
	case "tick":
		events = tr.detector.Tick(now)
	case "blind":
		tr.detector.Blind(start().Add(tr.duration(fields[2])), now)
	default:
		tr.t.Fatalf("%q: what is that?", line)
	}
	for _, e := range events {
		fmt.Fprintf(&tr.out, "    host %d: %v -> %v at %v: %s", e.Host, e.From, e.To, e.At.Sub(start()), e.Cause)
		if !e.FailsAt.IsZero() {
			fmt.Fprintf(&tr.out, ", fails at %v", e.FailsAt.Sub(start()))
		}
		fmt.Fprintln(&tr.out)
	}
}

// end writes down how hosts stand.
func (tr *transcript) end() {
	for _, id := range tr.detector.Hosts() {
		s, _ := tr.detector.Status(id)
		fmt.Fprintf(&tr.out, "    end: host %d %v, received %d, lost %d, overtaken %d\n", id, s.State, s.Received, s.Lost, s.Overtaken)
	}
	next := "never"
	if at := tr.detector.Deadline(); !at.IsZero() {
		next = at.Sub(start()).String()
	}
	fmt.Fprintf(&tr.out, "    end: strangers %d, next deadline %s\n", tr.detector.Strangers(), next)
}

func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tr := &transcript{t: t}
			for line := range strings.Lines(string(want)) {
				if !strings.HasPrefix(line, "    ") {
					tr.do(strings.TrimRight(line, "\n"))
				}
			}
			tr.end()
			if *update {
				if err := os.WriteFile(file, []byte(tr.out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(want), tr.out.String()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
