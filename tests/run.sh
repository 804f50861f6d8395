#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs tests with cargo-nextest, as .config/nextest.toml says, and tells at the end what was left out, which ten took
# longest, and how many passed.
#
#   run.sh [--profile NAME] [ARGUMENTS of cargo nextest run]     (without any: all)
set -euo pipefail
cd "$(dirname "$0")/.."
profile=default
[ "${1:-}" != --profile ] || profile=$2
said=$(mktemp)
trap 'rm -f "$said"' EXIT
status=0
cargo nextest run --locked "$@" 2>&1 | tee "$said" || status=$?

report=${CARGO_TARGET_DIR:-target}/nextest/$profile/junit.xml
# A run that did not begin has an older one's report, or none.
if grep -q 'Summary \[' "$said"; then
  [ $# -gt 0 ] || tests/left-out.sh
  grep -oh 'LEFT OUT: [^<]*\|left out: [^<]*' "$report" | sort -u || true
  echo "The ten that took longest, in seconds:"
  sed -n 's/.*<testcase name="\([^"]*\)" classname="\([^"]*\)".* time="\([^"]*\)".*/\3 \2 \1/p' "$report" |
    sort -rn | sed -n 1,10p
  grep 'Summary \[' "$said" | tail -n 1
fi
exit "$status"
