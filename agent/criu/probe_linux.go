// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"
)

// DefaultPath is the name that CRIU is looked up under in PATH.
const DefaultPath = "criu"

// Features are what CRIU and this kernel can do together. None is needed.
type Features struct {
	// DirtyTracking tells which pages have changed (soft-dirty).
	DirtyTracking bool
	// LazyPages lets pages follow a restored process (userfaultfd).
	LazyPages bool
}

// Find returns the CRIU to run, its version and what it can do. path is a program, or a name to look up in PATH; DefaultPath when empty.
//
// Errors to expect: ErrMissing, ErrTooOld.
func Find(path string) (string, Version, error) {
	found, err := exec.LookPath(withDefault(path))
	if err != nil {
		return "", Version{}, fmt.Errorf("%w (%w)", ErrMissing, err)
	}
	v, err := version(found)
	if err != nil {
		return "", Version{}, err
	}
	return found, v, v.check()
}

func withDefault(path string) string {
	if path == "" {
		return DefaultPath
	}
	return path
}

// version asks for the version over the protocol, so that a program which cannot speak it is found out.
func version(path string) (Version, error) {
	m, err := ask(path, &rpc.CriuReq{Type: rpc.CriuReqType_VERSION.Enum()})
	if err != nil {
		return Version{}, &OpError{Op: "version", Err: err}
	}
	v := m.GetVersion()
	return Version{Major: int(v.GetMajorNumber()), Minor: int(v.GetMinorNumber()), Patch: int(v.GetSublevel())}, nil
}

// Probe asks what CRIU and the kernel can do.
func Probe(path string) (Features, error) {
	m, err := ask(withDefault(path), &rpc.CriuReq{
		Type:     rpc.CriuReqType_FEATURE_CHECK.Enum(),
		Features: &rpc.CriuFeatures{MemTrack: proto.Bool(true), LazyPages: proto.Bool(true)},
	})
	if err != nil {
		return Features{}, &OpError{Op: "feature check", Err: err}
	}
	return Features{DirtyTracking: m.GetFeatures().GetMemTrack(), LazyPages: m.GetFeatures().GetLazyPages()}, nil
}

// CanFollow returns why memory cannot follow a tree on this host, or nil.
func CanFollow(path string) error {
	f, err := Probe(path)
	if err == nil && !f.LazyPages {
		err = ErrNotLazy
	}
	return err
}

// ask starts a CRIU for one question.
func ask(path string, req *rpc.CriuReq) (*rpc.CriuResp, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "swrk", fmt.Sprint(socketFD))
	cmd.ExtraFiles = []*os.File{theirs}
	var said strings.Builder
	cmd.Stderr = &said
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_ = ours.Close()
		return nil, explain(path, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // the answer says whether it went well
	}()
	w := &worker{socket: ours, ended: ended}
	m, err := w.call(req, nil)
	w.close()
	if err != nil && said.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, lastLine(said.String()))
	}
	return m, err
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
