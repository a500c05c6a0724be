// SPDX-License-Identifier: Apache-2.0

package session

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag

// TestTranscripts plays the conversations in testdata. Sessions have names there, and S is any session's name. A flow is written
// udp:198.51.100.1:5004>203.0.113.1:6970, with * for an open port; an announcement has its media before it, rtp=udp:….
//
//	# a comment
//	table [flows=N] [client=N] [announced=N] [signalling=N] [names=N]   a new table, at time 0
//	@5s                                                      the time is now 5 s
//	open S FLOW [server=N] [signalling=60s] [media=30s] [apart]
//	join S FLOW
//	announce S MEDIA=FLOW …          withdraw S MEDIA=FLOW …          withdraw-all S
//	touch FLOW      seen FLOW [5s]   lookup FLOW                      end FLOW          the time of seen is another one
//	timeouts S …    as with open     move S server=N                  close S
//	name S TEXT     unname TEXT      named TEXT                       of ADDRESS
//	purge N         flows S          stats
//	< what came of it                (written by -update)
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

// conversation is a transcript's state.
type conversation struct {
	table *Table
	now   time.Time
	ids   map[string]ID
	// names replaces the IDs, which mean nothing to a reader.
	names []string
}

func play(text string) (string, error) {
	var out strings.Builder
	var c conversation
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "<") {
			continue
		}
		out.WriteString(line + "\n")
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		got, err := c.do(words[0], words[1:])
		if err != nil {
			return "", fmt.Errorf("line %d: %q: %w", n+1, line, err)
		}
		for _, g := range got {
			out.WriteString("< " + strings.NewReplacer(c.names...).Replace(g) + "\n")
		}
	}
	return out.String(), nil
}

func (c *conversation) do(verb string, args []string) ([]string, error) {
	if at, ok := strings.CutPrefix(verb, "@"); ok {
		d, err := time.ParseDuration(at)
		c.now = start().Add(d)
		return nil, err
	}
	switch verb {
	case "table":
		return nil, c.reset(args)
	case "stats":
		return []string{strings.Trim(fmt.Sprintf("%+v", c.table.Stats()), "{}")}, nil
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("%s what?", verb)
	}
	switch verb {
	case "open", "join", "announce", "withdraw", "withdraw-all", "timeouts", "move", "close", "flows", "name":
		return c.session(verb, args[0], args[1:])
	case "touch", "seen", "lookup", "end":
		key, err := parseFlow(args[0])
		if err != nil {
			return nil, err
		}
		return c.packet(verb, key, args[1:])
	case "purge":
		n, err := strconv.Atoi(args[0])
		return results(c.table.Purge(c.now, n, nil), nil), err
	case "unname":
		return []string{fmt.Sprint(c.table.Unname(args[0]))}, nil
	case "named":
		if id, ok := c.table.Named(args[0]); ok {
			return []string{id.String()}, nil
		}
		return []string{"nobody"}, nil
	case "of":
		address, err := netip.ParseAddr(args[0])
		if server, ok := c.table.ServerOf(address); ok {
			return []string{fmt.Sprintf("server %d", server)}, err
		}
		return []string{"none"}, err
	}
	return nil, fmt.Errorf("no such verb")
}

func (c *conversation) reset(args []string) (err error) {
	var config Config
	fields := map[string]*int{
		"flows": &config.MaxFlows, "client": &config.MaxPerClient, "announced": &config.MaxAnnounced,
		"signalling": &config.MaxSignalling, "names": &config.MaxNames,
	}
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		if fields[key] == nil {
			return fmt.Errorf("no limit %q", key)
		}
		if *fields[key], err = strconv.Atoi(value); err != nil {
			return err
		}
	}
	if c.table != nil {
		if err := c.table.Free(); err != nil {
			return err
		}
	}
	*c = conversation{now: start(), ids: make(map[string]ID)}
	c.table, err = New(c.now, config)
	return err
}

func (c *conversation) session(verb, name string, args []string) ([]string, error) {
	id := c.ids[name]
	switch verb {
	case "open", "join":
		key, err := parseFlow(args[0])
		if err != nil {
			return nil, err
		}
		if verb == "join" {
			return results(c.table.Join(c.now, id, key, nil)), nil
		}
		terms, err := parseTerms(args[1:])
		if err != nil {
			return nil, err
		}
		id, actions, refused := c.table.Open(c.now, key, terms, nil)
		if refused == nil {
			c.ids[name] = id
			c.names = append(c.names, id.String(), name)
		}
		return results(actions, refused), nil
	case "announce", "withdraw":
		var list []Announcement
		for _, a := range args {
			media, flow, _ := strings.Cut(a, "=")
			k, err := parseFlow(flow)
			if err != nil {
				return nil, err
			}
			list = append(list, Announcement{k.Client, k.Server, k.Protocol, media})
		}
		if verb == "withdraw" {
			return results(c.table.Withdraw(id, list, nil)), nil
		}
		return results(c.table.Announce(c.now, id, list, nil)), nil
	case "timeouts", "move":
		terms, err := parseTerms(args)
		if err != nil {
			return nil, err
		}
		if verb == "move" {
			return results(c.table.Move(id, terms.Server, nil)), nil
		}
		return results(nil, c.table.SetTimeouts(id, terms.Timeouts)), nil
	case "withdraw-all":
		return results(c.table.WithdrawAll(id, nil)), nil
	case "close":
		return results(c.table.Close(id, nil)), nil
	case "name":
		return results(nil, c.table.Name(id, args[0])), nil
	}
	var out []string
	for _, f := range c.table.Flows(c.now, id, nil) {
		out = append(out, describe(f))
	}
	return out, nil
}

func (c *conversation) packet(verb string, key Key, args []string) ([]string, error) {
	var actions []Action
	known, when := true, c.now
	switch verb {
	case "lookup":
		flow, ok := c.table.Lookup(c.now, key)
		if ok {
			return []string{describe(flow)}, nil
		}
		known = false
	case "touch":
		_, actions, known = c.table.Touch(c.now, key, nil)
	case "end":
		actions, known = c.table.End(key, nil)
	case "seen":
		if len(args) > 0 {
			d, err := time.ParseDuration(args[0])
			if err != nil {
				return nil, err
			}
			when = start().Add(d)
		}
		actions, known = c.table.Seen(when, key, nil)
	}
	if !known {
		return []string{"unknown"}, nil
	}
	return results(actions, nil), nil
}

func results(actions []Action, err error) (out []string) {
	for _, a := range actions {
		out = append(out, a.String())
	}
	if err != nil {
		out = append(out, "error: "+err.Error())
	}
	return out
}

func describe(f Flow) string {
	s := fmt.Sprintf("%v %v %v of %v on server %d, seen %v, timeout %v", f.Status, f.Identity, f.Key, f.Session, f.Server, f.Seen.Sub(start()), f.Timeout)
	if f.Media != "" {
		s += ", " + f.Media
	}
	return s
}

func parseTerms(args []string) (terms Terms, err error) {
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "server":
			var n int
			n, err = strconv.Atoi(value)
			terms.Server = Server(n)
		case "signalling":
			terms.Timeouts.Signalling, err = time.ParseDuration(value)
		case "media":
			terms.Timeouts.Media, err = time.ParseDuration(value)
		case "apart":
			terms.Timeouts.Apart = true
		default:
			err = fmt.Errorf("no term %q", a)
		}
		if err != nil {
			return terms, err
		}
	}
	return terms, nil
}

func parseFlow(text string) (k Key, err error) {
	protocol, rest, _ := strings.Cut(text, ":")
	k.Protocol = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}[protocol]
	rest = strings.ReplaceAll(rest, ":*", ":0")
	client, server, _ := strings.Cut(rest, ">")
	if k.Client, err = netip.ParseAddrPort(client); err != nil {
		return k, err
	}
	k.Server, err = netip.ParseAddrPort(server)
	return k, err
}
