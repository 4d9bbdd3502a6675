#!/bin/bash
# Runs `orlop serve` with all of its state below one directory, and the pod of examples/ in it, and shows it working.
# It stays until Ctrl-C and then removes everything. With ONCE=1 it ends by itself; its exit code says whether all of
# it worked, the removal too.
#
#   contrib/run-demo.sh BUILD
#
# BUILD is the directory that make filled: bin, cni and demo-image.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # ip, nft

build=$1
here=$(cd "$(dirname "$0")/.." && pwd)
once=${ONCE:-}
image=localhost/orlop-demo/nginx:1
bridge=orlopdemo0
port=8080

# The path must be short, for sockets, and on a file system that overlayfs takes.
dir=$(mktemp -d /var/tmp/orlop-demo.XXXXXX)
socket=$dir/run/orlop.sock
config=$dir/orlop.toml
daemon=

orlop() { "$build/bin/orlop" --config "$config" "$@"; }
title() { printf '\n==> %s\n' "$*"; }

# until_true SECONDS COMMAND... calls the command until it succeeds.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

# free_subnet prints the first three numbers of a network that no route of this machine goes to.
free_subnet() {
	local n routes
	routes=$(ip -4 route show table all; ip -4 addr show)
	for n in {88..188}; do
		if ! grep -qE "\b10\.$n\." <<<"$routes"; then
			echo "10.$n.0"
			return
		fi
	done
	echo "run-demo: every network from 10.88 to 10.188 is in use" >&2
	return 1
}

free_port() {
	while (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; do
		port=$((port + 1))
	done
}

# What the network plugins make once for the whole machine and leave there.
tables() { nft list tables 2>/dev/null | grep -E ' (cni_hostport|cni_plugins_masquerade)$' || :; }

cgroup_parent() {
	if [ -d /run/systemd/system ]; then
		echo orlopdemo.slice
	else
		echo /orlop-demo
	fi
}

write_files() {
	mkdir -p "$dir"/{run,net.d,logs}
	cat >"$config" <<-END
		root = "$dir/root"
		run_root = "$dir/run"
		socket = "$socket"

		[cgroup]
		parent = "$(cgroup_parent)"

		[cni]
		conf_dir = "$dir/net.d"
		bin_dirs = ["$build/cni"]
	END
	cat >"$dir/net.d/10-demo.conflist" <<-END
		{
		  "cniVersion": "1.0.0",
		  "name": "orlop-demo",
		  "plugins": [
		    {
		      "type": "bridge", "bridge": "$bridge", "isGateway": true, "hairpinMode": true,
		      "ipMasq": true, "ipMasqBackend": "nftables",
		      "ipam": {
		        "type": "host-local", "dataDir": "$dir/leases",
		        "ranges": [[{"subnet": "$subnet.0/24"}]],
		        "routes": [{"dst": "0.0.0.0/0"}]
		      }
		    },
		    {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}
		  ]
		}
	END
	sed -e "s|^log_directory:.*|log_directory: $dir/logs|" -e "s|host_port:.*|host_port: $port|" \
		"$here/examples/pod.yaml" >"$dir/pod.yaml"
	cp "$here/examples/container.yaml" "$dir/container.yaml"
}

start_daemon() {
	# A session of its own: Ctrl-C is for this script, which then ends the daemon after its pods.
	setsid "$build/bin/orlop" serve --config "$config" 2>>"$dir/serve.log" &
	daemon=$!
	if ! until_true 30 answers_or_gone || ! kill -0 "$daemon" 2>/dev/null; then
		echo "run-demo: orlop serve does not answer; its log:" >&2
		cat "$dir/serve.log" >&2
		return 1
	fi
}

answers_or_gone() { orlop status >/dev/null 2>&1 || ! kill -0 "$daemon" 2>/dev/null; }

show() {
	title "the image comes into the store from $build/demo-image"
	orlop image load "$build/demo-image" "$image"

	title "orlop pod run examples/pod.yaml examples/container.yaml"
	orlop pod run "$dir/pod.yaml" "$dir/container.yaml" | tee "$dir/made"
	ip=$(sed -n 's/^address //p' "$dir/made")

	title "curl http://$ip/"
	until_true 10 curl -sf -o "$dir/page" --max-time 2 "http://$ip/" || curl -sS --max-time 2 "http://$ip/"
	cat "$dir/page"
	grep -q Orlop "$dir/page"

	title "the same through the port mapping: curl http://127.0.0.1:$port/"
	curl -sSf --max-time 5 "http://127.0.0.1:$port/" | cmp - "$dir/page" && echo "the same page"

	title "orlop exec nginx -- sh -c 'head -n 1 /etc/os-release; hostname 2>/dev/null || cat /etc/hostname'"
	orlop exec nginx -- sh -c 'head -n 1 /etc/os-release; hostname 2>/dev/null || cat /etc/hostname'

	title "orlop logs nginx"
	orlop logs nginx | tee "$dir/log"
	grep -q 'GET / HTTP' "$dir/log"

	title "orlop status"
	orlop status
}

# processes prints those whose arguments name our directory. The pattern comes by a pipe, or grep would find itself.
processes() {
	local file
	grep -lsF -f <(echo "$dir/") /proc/[0-9]*/cmdline | while read -r file; do
		echo "$(basename "$(dirname "$file")") $(tr '\0' ' ' <"$file")"
	done 2>/dev/null
}

no_processes() { [ -z "$(processes)" ]; }

mounts() { awk -v d="$dir/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r; }

cgroups() { find /sys/fs/cgroup -type d \( -name orlop-demo -o -name orlopdemo.slice \) 2>/dev/null; }

# leftovers prints what a clean end does not leave.
leftovers() {
	processes | sed 's/^/process /'
	members | sed 's/^/process in a cgroup /'
	mounts | sed 's/^/mount /'
	find "$dir/leases" -name '10.*' 2>/dev/null | sed 's/^/lease /'
}

end_daemon() {
	[ -n "$daemon" ] || return 0
	kill "$daemon" 2>/dev/null || :
	wait "$daemon" 2>/dev/null || :
	# The monitor ends by itself when nobody is connected and no container is left.
	until_true 10 no_processes || :
}

# members prints the processes in the pods' cgroups: containers' arguments do not name our directory.
members() { cgroups | while read -r top; do find "$top" -name cgroup.procs -exec cat {} +; done | sort -u; }

# force removes what is left after a failure, so that a demo that went wrong leaves nothing either.
force() {
	local pid m
	{ processes; members; } | while read -r pid _; do kill -KILL "$pid" 2>/dev/null || :; done
	until_true 5 no_processes || :
	for m in $(mounts); do umount -l "$m" || :; done
}

restore_network() {
	local table
	ip link del "$bridge" 2>/dev/null || :
	tables | while read -r table; do
		# shellcheck disable=SC2086 # "table ip NAME" are three words
		grep -qxF "$table" <<<"$tables_before" || nft delete $table
	done
	echo "$forward_before" >/proc/sys/net/ipv4/ip_forward
}

remove_cgroups() {
	local top
	cgroups | while read -r top; do
		find "$top" -depth -type d -exec rmdir {} + 2>/dev/null || :
	done
	[ ! -d /run/systemd/system ] || systemctl stop orlopdemo.slice 2>/dev/null || :
}

cleaned=
clean_up() {
	[ -z "$cleaned" ] || return 0
	cleaned=yes
	trap '' INT TERM
	title "removing all of it"
	local status=0 left
	if [ -n "$daemon" ] && ! kill -0 "$daemon" 2>/dev/null; then
		echo "run-demo: orlop serve has died; another one takes over" >&2
		status=1
		start_daemon || :
	fi
	if [ -n "$daemon" ]; then
		orlop pod rm --all || status=1
	fi
	end_daemon
	left=$(leftovers)
	if [ -n "$left" ]; then
		printf 'run-demo: still there, and removed by force:\n%s\n' "$left" >&2
		status=1
		force
	fi
	restore_network
	remove_cgroups
	left=$(cgroups)
	if [ -n "$left" ]; then
		printf 'run-demo: cgroups are still there:\n%s\n' "$left" >&2
		status=1
	fi
	if [ "$status" != 0 ] || [ -n "$failed" ]; then
		echo "run-demo: the end of the daemon's log:" >&2
		tail -n 40 "$dir/serve.log" >&2 || :
	fi
	rm -rf "$dir" || status=1
	[ "$status" != 0 ] || echo "nothing is left"
	return "$status"
}

failed=yes # until all was shown
finish() {
	local status=$?
	clean_up || status=1
	[ -z "$failed" ] || [ "$status" != 0 ] || status=1
	exit "$status"
}

if [ "$(id -u)" != 0 ]; then
	echo "run-demo: pods need root: sudo make run" >&2
	exit 1
fi
if ip link show "$bridge" >/dev/null 2>&1; then
	echo "run-demo: the link $bridge exists; another demo runs, or one was killed: ip link del $bridge" >&2
	rmdir "$dir"
	exit 1
fi
tables_before=$(tables)
forward_before=$(cat /proc/sys/net/ipv4/ip_forward)
subnet=$(free_subnet)
free_port
trap finish EXIT
trap 'exit 130' INT TERM

write_files
title "orlop serve, with all of its state in $dir"
start_daemon
show
failed=

title "it runs; from another terminal:"
echo "crictl --runtime-endpoint unix://$socket pods"
echo "$build/bin/orlop --config $config status"
if [ -z "$once" ]; then
	echo
	echo "Ctrl-C ends it and removes everything."
	trap 'exit 0' INT TERM
	wait "$daemon" || :
	echo "run-demo: orlop serve has ended" >&2
	exit 1
fi
