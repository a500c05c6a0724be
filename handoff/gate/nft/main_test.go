// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"os"
	"testing"

	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) { os.Exit(leakcheck.Main(m, leakcheck.Config{})) }
