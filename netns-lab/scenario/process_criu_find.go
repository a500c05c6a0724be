// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// CRIUEnvironment names the environment variable that says where CRIU is.
const CRIUEnvironment = "REHOME_CRIU"

// minCRIU is the oldest CRIU that dumps TCP sockets on the kernels of the day.
const minCRIU = "4.2"

// ErrNoCRIU says that there is no CRIU that is new enough.
var ErrNoCRIU = errors.New("no CRIU >= " + minCRIU + ": `.ci/criu .cache/criu` fetches one; $" + CRIUEnvironment + " names it")

// FindCRIU returns the path of CRIU: the program given, else $REHOME_CRIU, else the machine's own. It is an ErrNoCRIU if that does not run or is too old.
func FindCRIU(ctx context.Context, program string) (string, error) {
	if program == "" {
		program = os.Getenv(CRIUEnvironment)
	}
	if program == "" {
		program = "criu"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoCRIU, err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrNoCRIU, path, err)
	}
	if major, minor := criuVersion(string(out)); major < 4 || major == 4 && minor < 2 {
		return "", fmt.Errorf("%w: %s is %d.%d", ErrNoCRIU, path, major, minor)
	}
	return path, nil
}

// criuVersion reads what `criu --version` prints; what is no version is 0.0.
func criuVersion(text string) (major, minor int) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "Version:"); ok {
			if n, _ := fmt.Sscanf(strings.TrimSpace(v), "%d.%d", &major, &minor); n == 2 {
				return major, minor
			}
		}
	}
	return 0, 0
}
