// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf/btf"
)

const (
	syncookiesPath  = "/proc/sys/net/ipv4/tcp_syncookies"
	reversePathPath = "/proc/sys/net/ipv4/conf/all/rp_filter"
)

// syncookies looks at the sysctl of the calling thread's network namespace, as the program does for each connection.
func syncookies() error {
	b, err := os.ReadFile(syncookiesPath)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: CONFIG_SYN_COOKIES is missing", ErrUnsupported)
	}
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) == "0" {
		return ErrSyncookies
	}
	return nil
}

// openReversePath keeps the sysctl of this namespace at hand: its path leads elsewhere on other threads.
func (in *Injector) openReversePath() error {
	f, err := os.Open(reversePathPath)
	if err != nil {
		return err
	}
	in.rpFilter = f
	return reversePath(f)
}

func reversePath(f *os.File) error {
	var b [2]byte
	if _, err := f.ReadAt(b[:1], 0); err != nil {
		return fmt.Errorf("read %s: %w", reversePathPath, err)
	}
	if b[0] == '1' {
		return ErrReversePath
	}
	return nil
}

// haveKfunc looks for the kernel function that the first program is about.
func haveKfunc() error {
	const name = "bpf_sk_assign_tcp_reqsk"
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("%w: kernel BTF: %w", ErrUnsupported, err)
	}
	var f *btf.Func
	if err := spec.TypeByName(name, &f); err != nil {
		return fmt.Errorf("%w: no %s: %w", ErrUnsupported, name, err)
	}
	return nil
}
