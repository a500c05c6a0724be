// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// ftpTemplate configures vsftpd for anonymous clients that may fetch everything and store in /in.
const ftpTemplate = `listen=YES
listen_address={{.VIP}}
listen_port={{.Port}}
background=NO
anonymous_enable=YES
local_enable=NO
no_anon_password=YES
anon_root={{.Root}}
anon_umask=022
write_enable=YES
anon_upload_enable=YES
chown_uploads=NO
connect_from_port_20=YES
pasv_enable=YES
pasv_address={{.VIP}}
pasv_min_port={{.First}}
pasv_max_port={{.Last}}
port_enable=YES
seccomp_sandbox=NO
xferlog_enable=NO
secure_chroot_dir={{.Empty}}
ftp_username={{.User}}
`

// ftpSize is the length of the file that clients fetch and store.
const ftpSize = 256 << 10

func ftpContent() netnslab.Noise { return netnslab.Noise{Seed: 21, Size: ftpSize} }

// ServeFTP starts vsftpd on a server.
func (m *Media) ServeFTP(ctx context.Context, server string) error {
	root, empty := m.path(server, "ftp"), m.path(server, "empty")
	in := filepath.Join(root, "in")
	if err := errors.Join(os.MkdirAll(in, 0o755), os.MkdirAll(empty, 0o755), os.Chmod(in, 0o777)); err != nil {
		return err
	}
	first := ftpPorts + portsEach*m.number(server)
	if err := errors.Join(
		writeNoise(filepath.Join(root, "file"), ftpContent()),
		writeTemplate(m.path(server, "vsftpd.conf"), ftpTemplate, map[string]any{
			"VIP": m.VIP(), "Port": FTPPort, "Root": root, "Empty": empty, "First": first, "Last": first + portsEach - 1, "User": "ftp",
		}),
	); err != nil {
		return err
	}
	p, err := m.launch(ctx, server, "vsftpd", "vsftpd", m.path(server, "vsftpd.conf"))
	if err != nil {
		return err
	}
	return m.listening(ctx, p, server, "tcp", netip.AddrPortFrom(m.VIP(), FTPPort))
}

// FTPMode is how a client transfers a file.
type FTPMode string

// Modes of FTP, and the client that uses them.
const (
	FTPExtendedPassive FTPMode = "EPSV, curl"
	FTPPassive         FTPMode = "PASV, curl"
	FTPExtendedActive  FTPMode = "EPRT, curl"
	FTPActive          FTPMode = "PORT, curl"
	FTPStore           FTPMode = "EPSV and STOR, curl"
	FTPLftpPassive     FTPMode = "passive, lftp"
	FTPLftpActive      FTPMode = "active, lftp"
)

// FTPModes are all of them.
func FTPModes() []FTPMode {
	return []FTPMode{FTPExtendedPassive, FTPPassive, FTPExtendedActive, FTPActive, FTPStore, FTPLftpPassive, FTPLftpActive}
}

// FetchFTP transfers a file and compares it.
func (m *Media) FetchFTP(ctx context.Context, mode FTPMode) error {
	dir, err := os.MkdirTemp(m.path(ClientHost, "."), "ftp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // goes with the lab at the latest
	got := filepath.Join(dir, "file")
	url := "ftp://" + netip.AddrPortFrom(m.VIP(), FTPPort).String()
	curl := func(options ...string) []string {
		return append([]string{"curl", "-sS", "--max-time", "15", "-o", got, url + "/file"}, options...)
	}
	lftp := func(passive string) []string {
		return []string{"lftp", "-e", "set net:max-retries 1; set net:timeout 10; set ftp:passive-mode " + passive + "; get /file; bye", "-u", "anonymous,", url}
	}
	var command []string
	switch mode {
	case FTPExtendedPassive:
		command = curl()
	case FTPPassive:
		command = curl("--disable-epsv")
	case FTPExtendedActive:
		command = curl("--ftp-port", "-")
	case FTPActive:
		command = curl("--ftp-port", "-", "--disable-eprt")
	case FTPStore:
		return m.storeFTP(ctx, dir, url)
	case FTPLftpPassive:
		command = lftp("on")
	case FTPLftpActive:
		command = lftp("off")
	default:
		return fmt.Errorf("no such mode of FTP: %q", mode)
	}
	if _, err := m.run(ctx, startTimeout, dir, command...); err != nil {
		return err
	}
	return sameNoise(got, ftpContent())
}

// FetchFTPSlowly is FetchFTP for one of curl's ways to fetch, at a rate in bytes per second.
func (m *Media) FetchFTPSlowly(ctx context.Context, mode FTPMode, rate int) error {
	dir, err := os.MkdirTemp(m.path(ClientHost, "."), "ftp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // goes with the lab at the latest
	options := map[FTPMode][]string{FTPPassive: {"--disable-epsv"}, FTPActive: {"--ftp-port", "-", "--disable-eprt"}}[mode]
	// Curl's own limit looks at the clock after it has read what is there, which may be the whole file. Nobody gets more through a pipe than is taken.
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		return err
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // also to write: opening does not wait for curl, and there is no end before curl's
	if err != nil {
		return err
	}
	var group errgroup.Group
	got := make([]byte, ftpSize)
	group.Go(func() error { return readSlowly(reader, got, rate) })
	command := []string{"curl", "-sS", "--max-time", "30", "-o", pipe, "ftp://" + netip.AddrPortFrom(m.VIP(), FTPPort).String() + "/file"}
	_, err = m.run(ctx, 2*startTimeout, dir, append(command, options...)...)
	if err != nil {
		_ = reader.Close() // nothing comes any more
	}
	err = errors.Join(err, group.Wait())
	_ = reader.Close()
	want := make([]byte, ftpSize)
	if _, e := ftpContent().ReadAt(want, 0); e != nil {
		return e
	}
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("the file that arrived is not the one that was sent")
	}
	return err
}

// readSlowly fills b, with so many bytes a second.
func readSlowly(r io.Reader, b []byte, rate int) error {
	const pause = 50 * time.Millisecond
	piece := max(int(int64(rate)*int64(pause)/int64(time.Second)), 1)
	for len(b) > 0 {
		n, err := io.ReadFull(r, b[:min(piece, len(b))])
		if err != nil {
			return err
		}
		b = b[n:]
		time.Sleep(pause)
	}
	return nil
}

// storeFTP sends a file, which must be whole on exactly one server.
func (m *Media) storeFTP(ctx context.Context, dir, url string) error {
	file, name := filepath.Join(dir, "out"), "stored-"+strconv.FormatInt(time.Now().UnixNano(), 36)
	if err := writeNoise(file, ftpContent()); err != nil {
		return err
	}
	if _, err := m.run(ctx, startTimeout, dir, "curl", "-sS", "--max-time", "15", "-T", file, url+"/in/"+name); err != nil {
		return err
	}
	found := 0
	for _, server := range m.Servers() {
		path := filepath.Join(m.path(server, "ftp"), "in", name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		found++
		if err := sameNoise(path, ftpContent()); err != nil {
			return err
		}
	}
	if found != 1 {
		return fmt.Errorf("the file that was stored is on %d servers", found)
	}
	return nil
}

// sameNoise compares a file with what it should be.
func sameNoise(path string, n netnslab.Noise) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	want, err := io.ReadAll(io.NewSectionReader(n, 0, n.Size))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s: %d bytes that differ from the %d expected", path, len(got), len(want))
	}
	return nil
}
