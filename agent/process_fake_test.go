// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// fakeVersion, when set, makes this program a CRIU of that version without any feature, which fails at whatever it is asked for besides.
const fakeVersion = "REHOME_FAKE_CRIU"

// brokenCRIU, when set, makes this program a CRIU that is the real one of that path, but fails when it has been told to let a tree run.
const brokenCRIU = "REHOME_BROKEN_CRIU"

func TestMain(m *testing.M) {
	if v := os.Getenv(fakeVersion); v != "" {
		os.Exit(fakeCRIU(v))
	}
	if path := os.Getenv(brokenCRIU); path != "" {
		os.Exit(breakCRIU(path))
	}
	code := m.Run()
	removeProgram()
	os.Exit(code)
}

// fakeCRIU answers like "criu swrk 3".
func fakeCRIU(version string) int {
	v := &rpc.CriuVersion{MajorNumber: proto.Int32(0), MinorNumber: proto.Int32(0)}
	var patch int32
	if _, err := fmt.Sscanf(version, "%d.%d.%d", v.MajorNumber, v.MinorNumber, &patch); err != nil {
		return 2
	}
	v.Sublevel = &patch
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(3, b)
		if err != nil || n == 0 {
			return 0
		}
		req := &rpc.CriuReq{}
		if err := proto.Unmarshal(b[:n], req); err != nil {
			return 2
		}
		known := req.GetType() == rpc.CriuReqType_VERSION || req.GetType() == rpc.CriuReqType_FEATURE_CHECK // it has none
		resp := &rpc.CriuResp{Type: req.Type, Success: proto.Bool(known), Version: v}
		out, err := proto.Marshal(resp)
		if err != nil {
			return 2
		}
		if _, err := unix.Write(3, out); err != nil {
			return 0
		}
	}
}

// breakCRIU passes messages on between the agent and a real CRIU. When the agent says that a restored tree may run, CRIU hears that it may not.
func breakCRIU(path string) int {
	if slices.Contains(os.Args, "lazy-pages") {
		_ = unix.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ())
		return 2
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 2
	}
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr, os.NewFile(uintptr(fds[1]), "socket"), os.NewFile(4, "image")}
	if _, err := os.StartProcess(path, []string{path, "swrk", "3"}, &os.ProcAttr{Files: files, Env: os.Environ()}); err != nil {
		return 2
	}
	_ = unix.Close(fds[1])
	b := make([]byte, 64<<10)
	pass := func(from, to int, change func([]byte) []byte) bool {
		n, err := unix.Read(from, b)
		if err != nil || n == 0 {
			return false
		}
		_, err = unix.Write(to, change(b[:n]))
		return err == nil
	}
	restored := false
	for pass(3, fds[0], func(b []byte) []byte {
		if !restored {
			return b
		}
		out, err := proto.Marshal(&rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: proto.Bool(false)})
		if err != nil {
			return nil
		}
		return out
	}) {
		restored = false
		if !pass(fds[0], 3, func(b []byte) []byte {
			resp := &rpc.CriuResp{}
			restored = proto.Unmarshal(b, resp) == nil && resp.GetNotify().GetScript() == "post-restore"
			return b
		}) {
			break
		}
	}
	return 0
}
