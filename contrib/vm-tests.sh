#!/bin/sh
# Runs test binaries that `make vm` built, in a machine without Go and without a network:
#
#   contrib/vm-tests.sh [-run REGEXP] PACKAGE...
set -u

run=.
if [ "${1-}" = -run ]; then
	run=$2
	shift 2
fi
src=$PWD
export REQUIRE_KERNEL=1 ORLOP_TEST_SLOW=15 # times slower than a machine that is not emulated
export ORLOP_BIN="$src/build/bin" ORLOP_CNI_BIN="$src/build/cni" ORLOP_CONMON="$src/build/bin/orlop-conmon"
export ORLOP_TEST_IMAGES="$src/build/test-images" ORLOP_TEST_CACHE=/var/tmp/orlop-cache TMPDIR=/var/tmp
# What a machine that forwards packets has, and what a distribution loads on demand, which tests in a network namespace can't.
modprobe -a dummy br_netfilter ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_lblc ip_vs_lblcr ip_vs_sh ip_vs_dh ip_vs_sed \
	ip_vs_nq ip_vs_fo ip_vs_ovf ip_vs_mh ip_set_hash_ip ip_set_hash_ipport ip_set_hash_ipportip ip_set_hash_ipportnet xt_set \
	nf_conntrack_netlink
status=0
for package; do
	binary=$src/build/vm/$(echo "$package" | tr / -).test
	echo "==> $package"
	cd "$src/$package" || exit 1
	began=$(date +%s)
	"$binary" -test.timeout 40m -test.run "$run" || {
		echo "FAILED $package"
		status=1
	}
	echo "    $(($(date +%s) - began)) s"
done
exit "$status"
