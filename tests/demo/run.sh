#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demonstration: a sample appliance is dropped into a directory, the daemon makes a qcow2 of it. Ends by itself.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build --quiet --locked --profile demo --no-default-features --bins --examples
bin=$PWD/target/demo

place=$(mktemp -d "${TMPDIR:-/tmp}/hyper2kvm-demo.XXXXXX")
mkdir "$place/queue" "$place/output"
daemon=
end() {
  [ -z "$daemon" ] || kill -TERM "$daemon" 2>/dev/null || true
  wait 2>/dev/null || true
}
trap end EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$1"; }

say "1. A sample appliance: an OVA with one streamOptimized disk"
"$bin/examples/sample_ova" "$place/web01.ova" 256
"$bin/hyper2kvm" inspect "$place/web01.ova"

say "2. By hand: hyper2kvm convert web01.ova"
"$bin/hyper2kvm" convert "$place/web01.ova" --output-dir "$place/by-hand" --progress bar

say "3. By itself: the daemon watches $place/queue"
"$bin/hyper2kvm" daemon --watch-dir "$place/queue" --output-dir "$place/output" 2>"$place/daemon.log" &
daemon=$!
cp "$place/web01.ova" "$place/queue/"
processed() { "$bin/hyper2kvmctl" --output-dir "$place/output" --json stats 2>/dev/null | grep -q '"total_processed": 1'; }
for _ in $(seq 300); do
  ! processed || break
  kill -0 "$daemon" 2>/dev/null || { cat "$place/daemon.log"; exit 1; }
  sleep 0.1
done
processed || { cat "$place/daemon.log"; echo "no disk after 30 s" >&2; exit 1; }
grep -vE 'WARN|DEBUG' "$place/daemon.log" | cut -c1-150
published=$(find "$place/output" -path "$place/output/.work" -prune -o -name '*.qcow2' -print)
echo "$published"
! command -v qemu-img >/dev/null || qemu-img check "$published"

say "4. hyper2kvmctl stats"
"$bin/hyper2kvmctl" --output-dir "$place/output" stats

say "Next: $bin/hyper2kvm convert YOUR.ova --output-dir DIR"
echo "What the demonstration made lies in $place"
