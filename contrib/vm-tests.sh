#!/bin/sh
# Runs test binaries that `make vm` built, in a machine without Go and without a network:
#
#   contrib/vm-tests.sh PACKAGE...
set -u

src=$PWD
export REQUIRE_KERNEL=1 ORLOP_TEST_SLOW=15 # times slower than a machine that is not emulated
export ORLOP_BIN="$src/build/bin" ORLOP_CNI_BIN="$src/build/cni" ORLOP_CONMON="$src/build/bin/orlop-conmon"
export ORLOP_TEST_IMAGES="$src/build/test-images" ORLOP_TEST_CACHE=/var/tmp/orlop-cache TMPDIR=/var/tmp
status=0
for package; do
	binary=$src/build/vm/$(echo "$package" | tr / -).test
	[ -x "$binary" ] || continue # a package without tests
	echo "==> $package"
	cd "$src/$package" || exit 1
	"$binary" -test.timeout 30m || {
		echo "FAILED $package"
		status=1
	}
done
exit "$status"
