// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag

// TestTranscripts plays the conversations in testdata. A line is
//
//	# a comment
//	source host=a target=b epoch=1 [ahead] [limit=…]    a new machine, at time 0
//	target host=b epoch=1 [limit=…]                     the same
//	giver limit=1s grace=3s [at-once]                   the same
//	taker host=b epoch=1 [limit=…] [granted]            the same
//	> accepted                                          an event
//	@+200ms > owner b/2                                 an event, later
//	@+10s > tick: why                                   an event with its error
//	< send-offer                                        what the machine wants done (written by -update)
//	= offered until 10s                                 where it stands then (written by -update)
//
// Everything but "<" and "=" is the test's input.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/transcripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got, err := playTranscript(string(text))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, got)
		})
	}
}

// golden compares got with the file, or writes the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil { //nolint:gosec // a source directory
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil { //nolint:gosec // a source file
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name) //nolint:gosec // our own file
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update accepts it):\n%s", name, diff)
	}
}

// machine is a Source, a Target, a Giver or a Taker.
type machine interface {
	Step(now time.Time, e Event) []Action
	Deadline() time.Time
}

// player plays one transcript.
type player struct {
	m     machine
	now   time.Duration
	lines []string
}

func playTranscript(text string) (string, error) {
	p := &player{}
	for n, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if strings.HasPrefix(line, "< ") || strings.HasPrefix(line, "= ") {
			continue
		}
		p.lines = append(p.lines, line)
		if err := p.line(line); err != nil {
			return "", fmt.Errorf("line %d: %q: %w", n+1, line, err)
		}
	}
	return strings.Join(p.lines, "\n") + "\n", nil
}

func (p *player) line(line string) error {
	if line == "" || strings.HasPrefix(line, "#") {
		return nil
	}
	switch word, _, _ := strings.Cut(line, " "); word {
	case "source", "target", "giver", "taker":
		p.now = 0
		m, err := parseMachine(line)
		p.m = m
		return err
	}
	if rest, ok := strings.CutPrefix(line, "@+"); ok {
		delay, after, _ := strings.Cut(rest, " ")
		d, err := time.ParseDuration(delay)
		if err != nil {
			return err
		}
		p.now += d
		line = after
	}
	text, ok := strings.CutPrefix(line, "> ")
	if !ok || p.m == nil {
		return errors.New("want a machine, then > event")
	}
	e, err := parseEvent(text)
	if err != nil {
		return err
	}
	for _, a := range p.m.Step(origin.Add(p.now), e) {
		p.lines = append(p.lines, "< "+actionText(a))
	}
	p.lines = append(p.lines, "= "+p.state())
	return nil
}

func (p *player) state() string {
	var s string
	switch m := p.m.(type) {
	case *Source:
		s = m.State().String()
	case *Target:
		s = m.State().String()
	case *Giver:
		s = m.State().String()
	case *Taker:
		s = m.State().String()
	}
	if d := p.m.Deadline(); !d.IsZero() {
		s += " until " + d.Sub(origin).String()
	}
	return s
}

func actionText(a Action) string {
	if a.Err == nil {
		return a.Verb.String()
	}
	return a.Verb.String() + ": " + a.Err.Error()
}

func parseMachine(line string) (machine, error) {
	words := strings.Fields(line)
	sp := SourceParams{}
	tp := TargetParams{}
	var grace time.Duration
	early := false // the flow is granted before the server asks
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "host":
			sp.Host, tp.Host = value, value
		case "target":
			sp.Target = value
		case "ahead":
			sp.Ahead = true
		case "at-once", "granted":
			early = true
		case "epoch":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return nil, err
			}
			sp.Epoch, tp.Epoch = uint32(n), uint32(n)
		case "limit", "grace":
			d, err := time.ParseDuration(value)
			if err != nil {
				return nil, err
			}
			if key == "grace" {
				grace = d
			} else {
				tp.Limit = d
			}
		default:
			return nil, fmt.Errorf("unknown word %q", w)
		}
	}
	switch words[0] {
	case "source":
		return NewSource(sp, Config{}), nil
	case "giver":
		return NewGiver(tp.Limit, grace, early), nil
	case "taker":
		return NewTaker(tp, early, Config{}), nil
	}
	return NewTarget(tp, Config{}), nil
}

func parseEvent(text string) (Event, error) {
	head, why, _ := strings.Cut(text, ": ")
	words := strings.Fields(head)
	e := Event{}
	for k := Start; k <= Over; k++ {
		if k.String() == words[0] {
			e.Kind = k
		}
	}
	if e.Kind == 0 {
		return e, fmt.Errorf("unknown event %q", words[0])
	}
	if why != "" {
		e.Err = errors.New(why)
	}
	for _, w := range words[1:] {
		host, epoch, ok := strings.Cut(w, "/")
		switch {
		case w == "large":
			e.Large = true
		case w == "unknown":
			e.Owner.Unknown = true
		case ok:
			n, err := strconv.ParseUint(epoch, 10, 32)
			if err != nil {
				return e, err
			}
			e.Owner = Owner{Host: host, Epoch: uint32(n)}
		default:
			return e, fmt.Errorf("unknown word %q", w)
		}
	}
	return e, nil
}

// way is how a machine comes to a state, for the matrices.
type way struct {
	state  string
	events []string
}

func waysOfSource() []way {
	straight := []string{"start", "accepted", "leased", "prepared", "stored", "exported", "frozen", "committed"}
	return []way{
		{"serving", nil},
		{"offered", straight[:1]},
		{"preparing", straight[:3]},
		{"exporting", straight[:5]},
		{"storing", []string{"start", "accepted", "leased", "prepared", "stored", "exported large"}},
		{"freezing", straight[:6]},
		{"sent", straight[:7]},
		{"resolving", []string{"start", "accepted", "leased", "prepared", "stored", "exported", "frozen", "peer-lost"}},
		{"moved", straight},
		{"resumed", []string{"start", "refused"}},
		{"lost", []string{"start", "accepted", "leased", "prepared", "stored", "exported", "frozen", "peer-lost", "owner unknown"}},
	}
}

func waysOfTarget() []way {
	straight := []string{"start", "transferred", "restored", "imported", "owner b/2", "held-last"}
	return []way{
		{"idle", nil},
		{"reserved", straight[:1]},
		{"restoring", straight[:2]},
		{"importing", straight[:3]},
		{"committing", straight[:4]},
		{"draining", straight[:5]},
		{"live", straight},
		{"gone", []string{"start", "canceled"}},
	}
}

func waysOfGiver() []way {
	return []way{
		{"idle", nil},
		{"sent", []string{"start"}},
		{"granted", []string{"start", "commit-asked"}},
		{"asking", []string{"start", "commit-asked", "peer-lost"}},
		{"back", []string{"start", "refused"}},
		{"given", []string{"start", "commit-asked", "committed"}},
		{"lost", []string{"start", "commit-asked", "commit-failed"}},
	}
}

func waysOfTaker() []way {
	straight := []string{"start", "restored", "owner b/2", "delivered"}
	return []way{
		{"idle", nil},
		{"restoring", straight[:1]},
		{"asking", straight[:2]},
		{"delivering", straight[:3]},
		{"taken", straight},
		{"refusing", []string{"start", "restore-failed"}},
	}
}

// everyEvent has each event up to last in each form that makes a difference, each with a reason.
func everyEvent(last EventKind) []string {
	var all []string
	for k := Start; k <= last; k++ {
		switch k {
		case Exported:
			all = append(all, "exported", "exported large")
		case OwnerIs:
			all = append(all, "owner a/1", "owner b/2", "owner c/3", "owner c/1", "owner unknown")
		case Tick:
			all = append(all, "tick early", "tick")
		case Refused, LeaseRefused, ExportRefused, FreezeFailed, RestoreFailed, ImportRefused, Canceled, PeerLost, EntryLost, ApplicationLost,
			CommitFailed, DeliveryFailed, Over:
			all = append(all, k.String()+": why")
		default:
			all = append(all, k.String())
		}
	}
	return all
}

// TestMatrix holds what each event does in each state: the whole of the machines, each on a page.
func TestMatrix(t *testing.T) {
	var out strings.Builder
	out.WriteString("# What each event leads to in each state of a source. Events that change nothing are listed last.\n")
	for _, w := range waysOfSource() {
		matrix(t, &out, w, "source host=a target=b epoch=1 ahead", Tick)
	}
	golden(t, "testdata/source.txt", out.String())

	out.Reset()
	out.WriteString("# What each event leads to in each state of a target. Events that change nothing are listed last.\n")
	for _, w := range waysOfTarget() {
		matrix(t, &out, w, "target host=b epoch=1", Tick)
	}
	golden(t, "testdata/target.txt", out.String())

	out.Reset()
	out.WriteString("# What each event leads to in each state of a giver. Events that change nothing are listed last.\n")
	for _, w := range waysOfGiver() {
		matrix(t, &out, w, "giver limit=1s grace=3s", Over)
	}
	out.WriteString("\n# The same when the flow is granted at once.\n")
	matrix(t, &out, way{"idle", nil}, "giver limit=1s grace=3s at-once", Over)
	matrix(t, &out, way{"granting", []string{"start"}}, "giver limit=1s grace=3s at-once", Over)
	matrix(t, &out, way{"granted", []string{"start", "commit-made"}}, "giver limit=1s grace=3s at-once", Over)
	golden(t, "testdata/giver.txt", out.String())

	out.Reset()
	out.WriteString("# What each event leads to in each state of a taker. Events that change nothing are listed last.\n")
	for _, w := range waysOfTaker() {
		matrix(t, &out, w, "taker host=b epoch=1 limit=1s", Over)
	}
	out.WriteString("\n# The same when the flow has been granted at once.\n")
	matrix(t, &out, way{"restoring", []string{"start"}}, "taker host=b epoch=1 limit=1s granted", Over)
	golden(t, "testdata/taker.txt", out.String())
}

func matrix(t *testing.T, out *strings.Builder, to way, header string, last EventKind) {
	t.Helper()
	fmt.Fprintf(out, "\n%s\n", to.state)
	var ignored []string
	for _, event := range everyEvent(last) {
		p := &player{}
		for _, line := range append([]string{header}, prefixed(to.events)...) {
			if err := p.line(line); err != nil {
				t.Fatal(err)
			}
		}
		before := p.state()
		if !strings.HasPrefix(before, to.state) {
			t.Fatalf("the way to %s leads to %s", to.state, before)
		}
		line := "> " + event
		switch d := p.m.Deadline(); {
		case event == "tick early":
			line = "> tick"
		case event == "tick" && !d.IsZero():
			line = "@+" + d.Sub(origin).String() + " > tick"
		}
		p.lines = nil
		if err := p.line(line); err != nil {
			t.Fatal(err)
		}
		var actions []string
		for _, l := range p.lines {
			if a, ok := strings.CutPrefix(l, "< "); ok {
				actions = append(actions, a)
			}
		}
		after := p.state()
		if len(actions) == 0 && after == before {
			ignored = append(ignored, strings.TrimSuffix(event, ": why"))
			continue
		}
		fmt.Fprintf(out, "  %-22s -> %s", event, after)
		if len(actions) > 0 {
			fmt.Fprintf(out, "\n  %-22s      %s", "", strings.Join(actions, ", "))
		}
		out.WriteString("\n")
	}
	fmt.Fprintf(out, "  nothing: %s\n", strings.Join(ignored, ", "))
}

func prefixed(events []string) []string {
	out := make([]string, len(events))
	for i, e := range events {
		out[i] = "> " + e
	}
	return out
}
