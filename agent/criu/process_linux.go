// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"cmp"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a running tree of processes, looked at from outside.
type Process struct {
	// PID is the number of its first process here, Inside the one that it sees itself.
	PID, Inside int
	// Name is that of its program.
	Name string
	// Tree are the numbers of all its processes here, parents first.
	Tree []int
	// IDs are the numbers that the tree uses, as it sees them: of processes, threads, groups and sessions.
	IDs []int
	// ShellJob is set when the tree's session is led by a process outside of it.
	ShellJob bool
	// Bytes is about how much memory it has that travels.
	Bytes uint64
	// Files are the files it has open or mapped, or runs.
	Files []File
	// Sockets are its sockets, each once.
	Sockets []Socket
}

// File is a file by its path, as the process sees it.
type File struct {
	Path string
	// Size is that of a regular file, in bytes; -1 when it does not matter.
	Size int64
}

// Inspect looks at the tree that begins with a process. The error, which is ErrNoProcess or ErrNotMovable, says what speaks against
// moving it.
func Inspect(pid int) (*Process, error) {
	if pid <= 1 || pid == os.Getpid() {
		return nil, fmt.Errorf("%w: %d is not a server", ErrNotMovable, pid)
	}
	for _, ns := range []string{"net", "user", "ipc", "uts"} {
		same, err := sameNamespace(pid, ns)
		if err != nil {
			return nil, err
		}
		if !same {
			return nil, fmt.Errorf("%w: process %d is in another %s namespace than the agent: run an agent in there", ErrNotMovable, pid, ns)
		}
	}
	tree, err := Tree(pid)
	if err != nil {
		return nil, err
	}
	p := &Process{PID: pid, Tree: tree}
	for _, member := range tree {
		if err := p.add(member); err != nil && (member == pid || !errors.Is(err, ErrNoProcess)) {
			return nil, err
		}
	}
	if p.Inside == 1 {
		return nil, fmt.Errorf("%w: process %d is the first of a PID namespace: move a process that it has started", ErrNotMovable, pid)
	}
	slices.Sort(p.IDs)
	p.IDs = slices.Compact(p.IDs)
	// Of a file that is open twice, the size counts that matters least.
	slices.SortFunc(p.Files, func(a, b File) int { return cmp.Or(strings.Compare(a.Path, b.Path), cmp.Compare(a.Size, b.Size)) })
	p.Files = slices.CompactFunc(p.Files, func(a, b File) bool { return a.Path == b.Path })
	return p, nil
}

// add looks at one process of the tree.
func (p *Process) add(pid int) error {
	s, err := readStatus(pid)
	if err != nil {
		return err
	}
	if s.tracer != 0 {
		return fmt.Errorf("%w: process %d is being traced by %d (a debugger, or strace)", ErrNotMovable, pid, s.tracer)
	}
	if pid == p.PID {
		p.Inside, p.Name = s.inside(), s.name
		p.ShellJob = last(s.sids) != s.inside()
	}
	p.IDs = append(p.IDs, s.inside(), last(s.pgid), last(s.sids))
	p.Bytes += s.resident
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return noProcess(pid, err)
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if s, err := readStatus(tid); err == nil {
			p.IDs = append(p.IDs, s.inside())
		}
	}
	p.links(pid)
	return p.descriptors(pid)
}

// links adds what a process has open besides descriptors: its program, its directories, what it maps.
func (p *Process) links(pid int) {
	for _, name := range []string{"exe", "cwd", "root"} {
		p.file(fmt.Sprintf("/proc/%d/%s", pid, name))
	}
	maps, err := os.ReadDir(fmt.Sprintf("/proc/%d/map_files", pid))
	if err != nil {
		return // CRIU will find out
	}
	seen := make(map[string]bool)
	for _, m := range maps {
		path := fmt.Sprintf("/proc/%d/map_files/%s", pid, m.Name())
		if to, err := os.Readlink(path); err == nil && !seen[to] {
			seen[to] = true
			p.file(path)
		}
	}
}

// file adds what a link of /proc leads to, and reports whether it has a name that matters.
func (p *Process) file(link string) bool {
	to, err := os.Readlink(link)
	if err != nil || !strings.HasPrefix(to, "/") || strings.HasSuffix(to, " (deleted)") || strings.HasPrefix(to, "/memfd:") {
		return false
	}
	if strings.HasPrefix(to, "/proc/") || strings.HasPrefix(to, "/dev/shm/") || strings.HasPrefix(to, "/dev/zero") {
		return false
	}
	info, err := os.Stat(link)
	if err != nil {
		return false
	}
	f := File{Path: to, Size: -1}
	if info.Mode().IsRegular() {
		f.Size = info.Size()
	}
	p.Files = append(p.Files, f)
	return true
}

// descriptors looks at what a process has open.
func (p *Process) descriptors(pid int) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		return noProcess(pid, err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return noProcess(pid, err)
	}
	defer unix.Close(pidfd) //nolint:errcheck // nothing was written
	for _, e := range list {
		link := dir + "/" + e.Name()
		to, err := os.Readlink(link)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		inode, isSocket := socketInode(to)
		if strings.HasPrefix(to, "/sys/fs/cgroup/") {
			return p.explain(pid, "has a file of its cgroup open ("+to+"), which is another at each host", "containermaxprocs=0")
		}
		if !isSocket {
			if p.file(link) && writes(pid, e.Name()) {
				p.Files[len(p.Files)-1].Size = -1 // it may grow until the freeze; CRIU compares it then
			}
			continue
		}
		if slices.ContainsFunc(p.Sockets, func(s Socket) bool { return s.Inode == inode }) {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		s, err := inspectSocket(pidfd, fd)
		if err != nil {
			continue // closed meanwhile
		}
		s.Inode, s.owner, s.fd = inode, pid, fd
		if s.Multipath {
			return p.explain(pid, "has a socket with Multipath TCP, which the kernel cannot freeze", "multipathtcp=0")
		}
		p.Sockets = append(p.Sockets, s)
	}
	return nil
}

// writes reports whether a descriptor is open for writing.
func writes(pid int, fd string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}

// explain says why a process cannot be moved, and what to do. A Go program has such things without having asked for them.
func (p *Process) explain(pid int, what, godebug string) error {
	advice := "turn that off in the server"
	if _, err := buildinfo.ReadFile(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		advice = "start the server, a Go program, with GODEBUG=multipathtcp=0,containermaxprocs=0 in its environment (here " + godebug + " is missing)"
	}
	return fmt.Errorf("%w: process %d %s: %s", ErrNotMovable, pid, what, advice)
}

// socketInode returns the number of the socket that a link of /proc/PID/fd leads to.
func socketInode(link string) (uint64, bool) {
	number, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode, err == nil
}

// Listeners returns the addresses that the tree listens at.
func (p *Process) Listeners() []netip.AddrPort {
	var list []netip.AddrPort
	for _, s := range p.Sockets {
		if s.Listens && !slices.Contains(list, s.Local) {
			list = append(list, s.Local)
		}
	}
	return list
}

// FindListener returns the first process of the tree that listens at an address which is wanted: the one whose parent does not.
func FindListener(wanted func(netip.AddrPort) bool) (int, error) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	listening := make(map[int]bool)
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if same, err := sameNamespace(pid, "net"); err != nil || !same {
			continue
		}
		p := &Process{PID: pid}
		if p.descriptors(pid) == nil && slices.ContainsFunc(p.Listeners(), wanted) {
			listening[pid] = true
		}
	}
	var found []int
	for pid := range listening {
		if s, err := readStatus(pid); err == nil && !listening[s.parent] {
			found = append(found, pid)
		}
	}
	switch len(found) {
	case 0:
		return 0, fmt.Errorf("%w listens there", ErrNoProcess)
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	return 0, fmt.Errorf("%w: several processes listen there: %v: name one by its PID", ErrNotMovable, found)
}
