// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/dispatcher/gateway"
)

// What the documentation shows as a part of a file is read as a part of these.
const (
	dispatcherRest = `
host: front
interfaces: [eth0]
tls: {certificate: a.pem, key: a.key, authority: ca.pem}
peers: [{name: b1, address: 10.77.0.11}, {name: b2, address: 10.77.0.12}]
services: [{name: other, mode: tcp, addresses: ["203.0.113.77:7777"], default: files}]
pools:
  - {name: files, delivery: linked, backends: [{host: b1}, {host: b2}]}
  - {name: media, delivery: unmodified, backends: [{host: b1}]}
  - {name: shop, delivery: linked, backends: [{host: b1}, {host: b2}]}
`
	agentRest = `
host: web-1
interfaces: [eth0]
tls: {certificate: a.pem, key: a.key, authority: ca.pem}
peers: [{name: entry-1, address: 10.77.0.2}, {name: web-2, address: 10.77.0.12}]
services: [{name: files, addresses: ["203.0.113.77:7777"], entry: entry-1, servers: [web-1, web-2]}]
`
)

// overlay puts a part into a file: lists of named things are joined, and what is said of a thing by its name; all else is replaced.
func overlay(rest, part string) (string, error) {
	var whole, some map[string]any
	if err := errors.Join(yaml.Unmarshal([]byte(rest), &whole), yaml.Unmarshal([]byte(part), &some)); err != nil {
		return "", err
	}
	name := func(v any) any {
		m, _ := v.(map[string]any)
		return m["name"]
	}
	for key, value := range some {
		old, _ := whole[key].([]any)
		list, isList := value.([]any)
		if isList && len(list) > 0 && name(list[0]) != nil {
			for _, v := range old {
				i := slices.IndexFunc(list, func(x any) bool { return name(x) == name(v) })
				if i < 0 {
					list = append(list, v)
					continue
				}
				was, _ := v.(map[string]any)
				is, _ := list[i].(map[string]any)
				for k, x := range was {
					if _, ok := is[k]; !ok {
						is[k] = x
					}
				}
			}
			value = list
		}
		whole[key] = value
	}
	out, err := yaml.Marshal(whole)
	return string(out), err
}

// TestDocumentedConfigurations: what the documentation shows as configuration loads, in whole or as a part of a file.
func TestDocumentedConfigurations(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```")
	blocks := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range block.FindAllSubmatchIndex(text, -1) {
			blocks++
			line := 1 + strings.Count(string(text[:at[0]]), "\n")
			t.Run(fmt.Sprintf("%s:%d", filepath.Base(file), line), func(t *testing.T) {
				if err := loads(string(text[at[2]:at[3]])); err != nil {
					t.Error(err)
				}
			})
		}
	}
	if blocks < 8 {
		t.Errorf("%d blocks of YAML are shown", blocks)
	}
}

// loads reads a configuration as whatever it can be.
func loads(text string) error {
	dispatcherRead := func(text string) error { _, err := dispatcher.ReadConfig(strings.NewReader(text)); return err }
	agentRead := func(text string) error { _, err := agent.ReadConfig(strings.NewReader(text)); return err }
	gatewayRead := func(text string) error { _, err := gateway.ReadConfig(strings.NewReader(text)); return err }
	var errs []error
	for _, kind := range []struct {
		name, rest string
		read       func(string) error
	}{{"dispatcher", dispatcherRest, dispatcherRead}, {"agent", agentRest, agentRead}, {"gateway", "", gatewayRead}} {
		whole := text
		if !strings.HasPrefix(text, "host:") && !strings.Contains(text, "\nhost:") {
			if kind.rest == "" {
				continue
			}
			var err error
			if whole, err = overlay(kind.rest, text); err != nil {
				return err
			}
		}
		err := kind.read(whole)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("as %s: %w", kind.name, err))
	}
	return errors.Join(errs...)
}

// TestDocumentedConfigurationsNotice: a key that nobody knows, and a file without what it needs, do not load.
func TestDocumentedConfigurationsNotice(t *testing.T) {
	for _, text := range []string{"cheks: {}\n", "host: b2\ninterfaces: [eth0]\npeers: [{name: front, address: 10.77.0.2}]\n", "services: [}\n"} {
		if loads(text) == nil {
			t.Errorf("%q loads", text)
		}
	}
}
