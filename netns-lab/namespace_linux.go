// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespaceDir is where ip(8) looks for named network namespaces.
const namespaceDir = "/run/netns"

// ownNamespace is the calling thread's network namespace; /proc/self would be the main thread's.
const ownNamespace = "/proc/thread-self/ns/net"

// namespace is a named network namespace that the holder keeps open.
type namespace struct {
	name string
	fd   int // owned; -1 after close
}

// createNamespace makes a namespace and its name under /run/netns.
func createNamespace(name string) (*namespace, error) {
	if err := prepareNamespaceDir(); err != nil {
		return nil, err
	}
	path := filepath.Join(namespaceDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	_ = f.Close() // nothing was written
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare a network namespace (wants CAP_SYS_ADMIN): %w", err)
		}
		return nil
	}, func() error {
		if err := unix.Mount(ownNamespace, path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("namespace %s: %w", name, err), removeNamespace(name))
	}
	ns, err := openNamespace(name)
	if err != nil {
		return nil, errors.Join(err, removeNamespace(name))
	}
	return ns, nil
}

// openNamespace opens a namespace that exists.
func openNamespace(name string) (*namespace, error) {
	fd, err := unix.Open(filepath.Join(namespaceDir, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	return &namespace{name: name, fd: fd}, nil
}

// removeNamespace takes the name away. The kernel frees the namespace, and all links in it, once nobody uses it. No such name is no error.
func removeNamespace(name string) error {
	path := filepath.Join(namespaceDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("namespace %s: unmount: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return nil
}

func (n *namespace) close() error {
	if n.fd < 0 {
		return nil
	}
	fd := n.fd
	n.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// do runs f on a thread inside the namespace.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s (wants CAP_SYS_ADMIN): %w", n.name, err)
		}
		return nil
	}, f)
}

// onThread runs enter and f on a goroutine with a thread of its own and brings that thread back to the namespace it came from. If that fails the thread
// ends with its goroutine: no other code may ever run on it.
func onThread(enter, f func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errors.New("function ended its goroutine")
		runtime.LockOSThread()
		home, openErr := unix.Open(ownNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if openErr != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open own network namespace: %w", openErr)
			return
		}
		// Deferred, so that it happens as well when f calls runtime.Goexit, as testing's FailNow does.
		defer func() {
			back := unix.Setns(home, unix.CLONE_NEWNET)
			_ = unix.Close(home) // opened for reading only
			if back == nil {
				runtime.UnlockOSThread()
			}
			result <- err
		}()
		if entered := enter(); entered != nil {
			err = entered
			return
		}
		err = f()
	}()
	return <-result
}

// prepareNamespaceDir makes /run/netns a shared mount as ip-netns(8) does, so that removing a name here removes it in every mount namespace.
func prepareNamespaceDir() error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return fmt.Errorf("namespace directory: %w", err)
	}
	dir, err := os.Open(namespaceDir)
	if err != nil {
		return fmt.Errorf("namespace directory: %w", err)
	}
	defer dir.Close() //nolint:errcheck // opened for reading only
	// ip(8) takes the same lock.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", namespaceDir, err)
	}
	err = unix.Mount("", namespaceDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(namespaceDir, namespaceDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", namespaceDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share %s (wants CAP_SYS_ADMIN): %w", namespaceDir, err)
	}
	return nil
}
