// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// nginxTemplate configures a server as it is common, with logs off. One worker: the farm stands for several machines on two cores.
const nginxTemplate = `daemon off;
user root root;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/nginx-error.log;
events { worker_connections 8192; }
http {
	access_log off;
	server_tokens off;
	default_type application/octet-stream;
	root {{.Root}};
	sendfile on;
	tcp_nopush on;
	keepalive_requests 100000000;
	client_body_temp_path {{.Dir}}/tmp;
	proxy_temp_path {{.Dir}}/tmp;
	fastcgi_temp_path {{.Dir}}/tmp;
	uwsgi_temp_path {{.Dir}}/tmp;
	scgi_temp_path {{.Dir}}/tmp;
{{- if .Web}}
	server {
		listen 80 backlog=4096;
		listen [::]:80 backlog=4096;
		location {{.PacedPath}} { alias {{.Root}}/; limit_rate {{.Pace}}; }
	}
{{- end}}
	server {
		listen 443 ssl http2 backlog=4096;
		listen [::]:443 ssl http2 backlog=4096;
		server_name {{.Name}};
		ssl_certificate {{.Certificate}};
		ssl_certificate_key {{.Key}};
	}
	server {
		listen 8080 http2;
		listen [::]:8080 http2;
	}
}
`

// redisTemplate configures a server that keeps nothing.
const redisTemplate = `bind * -::*
port 6379
protected-mode no
save ""
appendonly no
dir {{.Dir}}
`

// pacedPath is where nginx sends the same files slowly.
const pacedPath = "/paced/"

// serverFiles fills in the templates.
type serverFiles struct {
	Dir, Root, Name, Certificate, Key, PacedPath string
	Pace                                         int64
	Web                                          bool // plain HTTP, which on MixedHost is the demo server's
}

// writeFiles makes the servers' configurations, certificates and contents.
func (f *Farm) writeFiles() error {
	dir := filepath.Join(f.dir, "farm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var err error
	if f.authority, err = newAuthority(dir); err != nil {
		return err
	}
	for _, host := range f.Servers() {
		if err := f.writeContent(host); err != nil {
			return err
		}
	}
	for i, s := range []struct{ host, name string }{{NginxHost, ShopName}, {MixedHost, VaultName}} {
		cert, err := f.authority.issue(s.name, int64(i)+2)
		if err != nil {
			return err
		}
		v := serverFiles{Dir: f.path(s.host, "."), Root: f.path(s.host, "www"), Name: s.name, Certificate: cert.Certificate, Key: cert.Key, PacedPath: pacedPath, Pace: f.cfg.Pace, Web: s.host == NginxHost}
		if err := writeTemplate(f.path(s.host, "nginx.conf"), nginxTemplate, v); err != nil {
			return err
		}
	}
	return writeTemplate(f.path(MixedHost, "redis.conf"), redisTemplate, serverFiles{Dir: f.path(MixedHost, ".")})
}

// writeContent makes what a host serves.
func (f *Farm) writeContent(host string) error {
	root := f.path(host, "www")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	big, err := os.Create(filepath.Join(root, "big"))
	if err != nil {
		return err
	}
	return errors.Join(
		big.Truncate(f.cfg.BigSize), big.Close(),
		os.WriteFile(filepath.Join(root, "who"), []byte(host+"\n"), 0o644),
		os.WriteFile(filepath.Join(root, "small"), []byte(strings.Repeat("a short answer\n", 7)), 0o644),
		writeNoise(filepath.Join(root, "noise"), f.Noise),
		// A front that routes by path leaves the path as it is.
		os.Symlink(".", filepath.Join(root, strings.Trim(LinkedPath, "/"))),
	)
}

func writeTemplate(path, text string, v any) (err error) {
	t, err := template.New(filepath.Base(path)).Parse(text)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(t.Execute(file, v), file.Close())
}
