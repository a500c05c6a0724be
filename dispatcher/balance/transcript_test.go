// SPDX-License-Identifier: Apache-2.0

package balance

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
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag

// TestTranscripts plays the conversations in testdata. A line is
//
//	# a comment
//	policy round-robin [slow-start=10s] [session-load=0.1]   a new policy and an empty pool, at time 0
//	sticky 10s                               from here on keys stick for that time
//	backend a [weight=1] [active=0] [since=T] [drained] [down] [tried] [load=0.5] [report=1]
//	set a …                                  the same backend, with other marks; its connections stay
//	@5s                                      the time is now 5 s
//	choose 4                                 four connections that stay
//	idle 4                                   four connections that end at once
//	keys 4                                   keys 0 to 3, for connections that end at once
//	< a b a c                                who got them (written by -update)
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got, err := play(string(text))
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil { //nolint:gosec // a source file
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(text), got); d != "" {
				t.Errorf("transcript (-want +got):\n%s", d)
			}
		})
	}
}

// pool is a transcript's state.
type pool struct {
	policy   Policy
	now      time.Time
	backends []Backend
}

func epoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

func play(text string) (string, error) {
	var out strings.Builder
	var p pool
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "<") {
			continue
		}
		out.WriteString(line + "\n")
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		got, err := p.do(words[0], words[1:])
		if err != nil {
			return "", fmt.Errorf("line %d: %q: %w", n+1, line, err)
		}
		if len(got) > 0 {
			out.WriteString("< " + strings.Join(got, " ") + "\n")
		}
	}
	return out.String(), nil
}

func (p *pool) do(verb string, args []string) ([]string, error) {
	if at, ok := strings.CutPrefix(verb, "@"); ok {
		d, err := time.ParseDuration(at)
		p.now = epoch().Add(d)
		return nil, err
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("%s what?", verb)
	}
	switch verb {
	case "policy":
		c := Config{Kind: Kind(args[0])}
		for _, a := range args[1:] {
			var err error
			if load, ok := strings.CutPrefix(a, "session-load="); ok {
				c.SessionLoad, err = strconv.ParseFloat(load, 64)
			} else {
				c.SlowStart, err = time.ParseDuration(strings.TrimPrefix(a, "slow-start="))
			}
			if err != nil {
				return nil, err
			}
		}
		policy, err := New(c)
		*p = pool{policy: policy, now: epoch()}
		return nil, err
	case "sticky":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return nil, err
		}
		p.policy, err = NewSticky(p.policy, StickyConfig{Time: d})
		return nil, err
	case "backend":
		p.backends = append(p.backends, Backend{Name: args[0]})
		return nil, p.set(&p.backends[len(p.backends)-1], args[1:])
	case "set":
		for i := range p.backends {
			if b := &p.backends[i]; b.Name == args[0] {
				return nil, p.set(b, args[1:])
			}
		}
		return nil, fmt.Errorf("no backend %s", args[0])
	case "choose", "idle", "keys":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return nil, err
		}
		var got []string
		for key := range n {
			i := p.policy.Choose(p.now, Key(strconv.Itoa(key)), p.backends)
			if i < 0 {
				got = append(got, "none")
				continue
			}
			if verb == "choose" {
				p.backends[i].Active++
			}
			got = append(got, p.backends[i].Name)
		}
		return got, nil
	}
	return nil, fmt.Errorf("no such verb")
}

func (p *pool) set(b *Backend, args []string) error {
	*b = Backend{Name: b.Name, Weight: 1, Active: b.Active}
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		var err error
		switch key {
		case "weight":
			b.Weight, err = strconv.Atoi(value)
		case "active":
			b.Active, err = strconv.Atoi(value)
		case "since":
			var d time.Duration
			d, err = time.ParseDuration(value)
			b.Since = epoch().Add(d)
		case "load":
			b.Load, err = strconv.ParseFloat(value, 64)
		case "report":
			b.Report, err = strconv.ParseUint(value, 10, 64)
		case "drained":
			b.Drained = true
		case "down":
			b.Down = true
		case "tried":
			b.Tried = true
		default:
			err = fmt.Errorf("no mark %q", a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
