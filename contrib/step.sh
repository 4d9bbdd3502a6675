#!/bin/sh
# Runs a command under a title, and says every 20 seconds that it is still at it:
#
#   contrib/step.sh TITLE COMMAND [ARG...]
set -eu
title=$1
shift
echo "==> $title"
began=$(date +%s)
"$@" &
command=$!
# The parent ends the ticker, also when it is interrupted itself.
(
	trap 'kill "$nap" 2>/dev/null; exit' TERM
	while :; do
		sleep 20 &
		nap=$!
		wait "$nap"
		echo "    $title: $(($(date +%s) - began)) s"
	done
) &
ticker=$!
trap 'kill "$ticker" 2>/dev/null || :' EXIT
trap 'kill "$command" 2>/dev/null || :; exit 130' INT TERM
status=0
wait "$command" || status=$?
exit "$status"
