// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// fakeVersion, when set, makes this program a CRIU of that version which fails at whatever it is asked for besides.
const fakeVersion = "REHOME_FAKE_CRIU"

func TestMain(m *testing.M) {
	if v := os.Getenv(fakeVersion); v != "" {
		os.Exit(fakeCRIU(v))
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
		resp := &rpc.CriuResp{Type: req.Type, Success: proto.Bool(req.GetType() == rpc.CriuReqType_VERSION), Version: v}
		out, err := proto.Marshal(resp)
		if err != nil {
			return 2
		}
		if _, err := unix.Write(3, out); err != nil {
			return 0
		}
	}
}
