#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Ends the cluster of up.sh and removes all of it: processes, mounts, control groups, network, state. Safe to repeat.
#
#   down.sh [--of-tests]     (leaves alone what was made by hand)
. "$(dirname "$0")/environment.sh"
alone
[ -d "$S" ] || exit 0
if [ "${1:-}" = --of-tests ] && ! alive keeper; then exit 0; fi
# The keeper itself becomes this script in the end.
[ "$(cat "$S/pids/keeper" 2>/dev/null || true)" = $$ ] || stop keeper

# Pods first, while nobody is left to start them again.
stop kubelet
stop containerd
if [ -s "$S/cgroup" ]; then
  group=$(cat "$S/cgroup")
  # Whatever runs in the control group that was made for this node was started by this node.
  for _ in $(seq 100); do
    pids=$(find /sys/fs/cgroup -path "*/$group/*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u)
    [ -n "$pids" ] || break
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    sleep 0.05
  done
fi
# What containerd keeps outside its own directories: sockets of shims, and the CNI library's cache.
for bundle in "$S"/containerd/state/io.containerd.runtime.v2.task/k8s.io/*/; do
  [ -d "$bundle" ] || continue
  socket=$(sed 's|^unix://||' "$bundle/address" 2>/dev/null || true)
  case $socket in /run/containerd/s/*) rm -f "$socket" ;; esac
  rm -f "/var/lib/cni/results/cni-loopback-$(basename "$bundle")-lo"
done
for name in scheduler manager apiserver etcd; do stop "$name"; done

# Deepest first; what a volume still holds open goes when its holder does.
awk -v top="$S/" 'index($2, top) == 1 {print length($2), $2}' /proc/self/mounts | sort -rn | while read -r _ mount; do
  umount "$mount" 2>/dev/null || umount -l "$mount" 2>/dev/null || true
done
if [ -s "$S/cgroup" ]; then
  find /sys/fs/cgroup -depth -type d \( -path "*/$(cat "$S/cgroup")" -o -path "*/$(cat "$S/cgroup")/*" \) \
    -exec rmdir {} \; 2>/dev/null || true
fi
close_network "$S/network"
close_network "$S/network.new"
# What the kubelet keeps outside its own: links to logs.
for link in /var/log/containers/*; do
  case $(readlink "$link" 2>/dev/null) in "$S"/*) rm -f "$link" ;; esac
done
[ ! -s "$S/cgroup" ] || rm -f "/var/lib/cni/results/$(cat "$S/cgroup")"-*
if awk -v top="$S/" 'index($2, top) == 1 {found = 1} END {exit !found}' /proc/self/mounts; then
  die "still mounted below $S: nothing there is removed"
fi
rm -rf "$S"
