// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"golang.org/x/sys/unix"
)

// nginxProxyTemplate is a reverse proxy with a worker for each core, which keeps connections to the servers and no files of answers.
const nginxProxyTemplate = `daemon off;
user root root;
worker_processes 2;
worker_rlimit_nofile 16384;
worker_shutdown_timeout 1h;
pid {{.Dir}}/nginx-proxy.pid;
error_log {{.Dir}}/nginx-proxy-error.log;
events { worker_connections 8192; }
http {
	access_log off;
	keepalive_requests 100000000;
	client_header_timeout 1h;
	client_body_temp_path {{.Dir}}/tmp;
	proxy_temp_path {{.Dir}}/tmp;
	fastcgi_temp_path {{.Dir}}/tmp;
	uwsgi_temp_path {{.Dir}}/tmp;
	scgi_temp_path {{.Dir}}/tmp;
	proxy_max_temp_file_size 0;
	proxy_http_version 1.1;
	proxy_set_header Connection "";
	proxy_set_header Host $host;
	map_hash_max_size 65536;
	map_hash_bucket_size 128;
	upstream files { server {{.Nginx}}:80; keepalive 1000; keepalive_requests 100000000; }
	upstream linked { server {{.Linked}}:80; keepalive 1000; keepalive_requests 100000000; }
	map $host $pool {
		default files;
{{- range .Routes}}
		{{.Host}} {{.Service}};
{{- end}}
	}
	server {
		listen {{.V4}}:80 backlog=4096;
		listen [{{.V6}}]:80 backlog=4096;
		location / { proxy_pass http://$pool; }
		location {{.LinkedPath}} { proxy_pass http://linked; }
	}
}
`

// NginxProxy is nginx as a reverse proxy for HTTP. Debian's nginx passes neither TLS nor TCP on without a further package, and no nginx speaks
// HTTP/2 to servers.
func NginxProxy() FrontReloader {
	const name = "nginx-proxy"
	return &proxy{
		name: name, program: "nginx", serves: []Service{Files, Linked},
		command: func(f *Farm) []string { return []string{"nginx", "-c", f.path(FrontHost, name+".conf")} },
		write: func(f *Farm, routes []Route) error {
			v := frontFiles(f, name)
			v.Routes = routes
			return writeTemplate(f.path(FrontHost, name+".conf"), nginxProxyTemplate, v)
		},
		reload: func(pid int) error { return unix.Kill(pid, unix.SIGHUP) },
	}
}

// Peers are the fronts to compare with, direct first.
func Peers() []Front {
	return []Front{Direct(), HAProxyHTTP(), HAProxyReuse(), HAProxyTCP(), NginxProxy()}
}
