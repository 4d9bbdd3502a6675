#!/bin/sh
# Installs what building, running or testing needs from Debian's packages, and only what is missing:
#
#   contrib/prerequisites.sh build|run|test|check...
#
# It needs root to install. Without root it says what is missing and fails.
set -eu

missing=

# need PACKAGE COMMAND [ARG...] notes the package unless the command succeeds.
need() {
	package=$1
	shift
	"$@" >/dev/null 2>&1 || missing="$missing $package"
}

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed$'; }

for purpose; do
	case $purpose in
	build)
		need gcc command -v gcc
		need libc6-dev installed libc6-dev
		need pkg-config command -v pkg-config
		need libseccomp-dev test -e "/usr/lib/$(uname -m)-linux-gnu/libseccomp.a" # orlop-conmon is linked statically
		;;
	run)
		need iproute2 command -v ip
		need nftables test -x /usr/sbin/nft   # the CNI plugins portmap and bridge (masquerade) call it
		need iptables test -x /usr/sbin/iptables # the same, for networks that ask for that backend
		need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
		need curl command -v curl
		;;
	test)
		need containerd command -v containerd # the kubelet is tested over it, too
		need runc command -v runc
		need dbus-daemon command -v dbus-daemon # a shutdown of the machine is told over a bus
		need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
		;;
	check)
		need shellcheck command -v shellcheck
		;;
	*)
		echo "prerequisites: unknown purpose $purpose; use build, run, test or check" >&2
		exit 2
		;;
	esac
done

if [ -n "$missing" ]; then
	install="apt-get install --no-install-recommends$missing"
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "prerequisites: missing:$missing; as root: $install" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	echo "==> installing$missing"
	apt-get update
	# shellcheck disable=SC2086 # a list of words
	apt-get install -y --no-install-recommends $missing
fi

# The registry is unpacked and not installed: its package would start a service.
case " $* " in
*" test "*)
	tools=$(dirname "$0")/../build/tools
	if ! command -v docker-registry >/dev/null && [ ! -x "$tools/usr/bin/docker-registry" ]; then
		echo "==> fetching docker-registry into build/tools"
		mkdir -p "$tools"
		cd "$tools"
		# A fresh machine has no package lists yet.
		apt-get download docker-registry 2>/dev/null || { apt-get update && apt-get download docker-registry; }
		dpkg-deb -x docker-registry_*.deb .
		rm docker-registry_*.deb
	fi
	;;
esac
