package images

import (
	"context"
	"slices"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// debianRoot is what every Debian image of ours begins with.
var debianRoot = []string{"base-files", "base-passwd", "bash", "coreutils", "dash", "grep", "libc-bin", "sed"}

// debian makes a layer of debianRoot and one of each further set of packages, without what is in those before.
func debian(ctx context.Context, cache string, sets ...[]string) ([]Layer, error) {
	var layers []Layer
	var wanted []string
	have := map[string]bool{}
	for _, set := range append([][]string{debianRoot}, sets...) {
		wanted = append(wanted, set...)
		files, err := debs(ctx, cache, wanted...)
		if err != nil {
			return nil, err
		}
		files = slices.DeleteFunc(files, func(f string) bool { return have[f] })
		b := newLayer("Debian packages " + strings.Join(set, " "))
		if len(layers) == 0 {
			b.usr().text("etc/passwd", passwd).text("etc/group", group).dir("tmp", 0o1777).dir("run", 0o755)
		}
		if err := b.packages(ctx, files); err != nil {
			return nil, err
		}
		if len(layers) == 0 && !b.have["usr/bin/sh"] {
			b.link("usr/bin/sh", "dash") // older releases make it when dash is installed
		}
		l, err := b.layer()
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
		for _, f := range files {
			have[f] = true
		}
	}
	return layers, nil
}

const nginxConf = `worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log /dev/stderr;
events { worker_connections 64; }
http {
  access_log /dev/stdout;
  server {
    listen 80 default_server;
    root /srv;
  }
}
`

const nginxPage = "<h1>Orlop</h1>\n<p>This page comes from nginx in a pod.</p>\n"

// nginx is Debian with nginx in three layers: the system, the server, and what it serves.
func nginx(ctx context.Context, cache string) (*Image, error) {
	layers, err := debian(ctx, cache, []string{"nginx"})
	if err != nil {
		return nil, err
	}
	b := newLayer("site").text("srv/index.html", nginxPage).text("etc/nginx/orlop.conf", nginxConf)
	site, err := b.layer()
	if err != nil {
		return nil, err
	}
	return Assemble(Format{}, imgspec.ImageConfig{
		Cmd: []string{"nginx", "-c", "/etc/nginx/orlop.conf"}, Env: []string{"PATH=/usr/sbin:/usr/bin"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGQUIT", WorkingDir: "/srv",
	}, "", append(layers, site)...)
}

// iptables is Debian with iptables for nftables, as an installation has it where nobody chose: see update-alternatives(1).
func iptables(ctx context.Context, cache string) (*Image, error) {
	layers, err := debian(ctx, cache, []string{"iptables", "kmod"})
	if err != nil {
		return nil, err
	}
	b := newLayer("alternatives")
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, what := range []string{"", "-save", "-restore"} {
			b.link("usr/sbin/"+program+what, program+"-nft"+what)
		}
	}
	links, err := b.layer()
	if err != nil {
		return nil, err
	}
	return Assemble(Format{}, imgspec.ImageConfig{Cmd: []string{"bash"}, Env: []string{"PATH=/usr/sbin:/usr/bin"}}, "", append(layers, links)...)
}

// big is about 200 MB unpacked in several layers, to time pulls.
func big(ctx context.Context, cache string) (*Image, error) {
	layers, err := debian(ctx, cache, []string{"nginx"}, []string{"python3"}, []string{"git"}, []string{"binutils", "vim"})
	if err != nil {
		return nil, err
	}
	return Assemble(Format{}, imgspec.ImageConfig{
		Cmd: []string{"bash"}, Env: []string{"PATH=/usr/sbin:/usr/bin"},
	}, "", layers...)
}
