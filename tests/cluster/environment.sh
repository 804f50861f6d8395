# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: where a test cluster lives and how its processes are told from anybody else's.
#
# HYPER2KVM_CLUSTER  state directory (one per checkout unless set)
# HYPER2KVM_CACHE    where built binaries are kept
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
S=${HYPER2KVM_CLUSTER:-${TMPDIR:-/tmp}/hyper2kvm-cluster-$(printf %s "$checkout" | sha256sum | cut -c1-8)}
cache=${HYPER2KVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hyper2kvm-operator}
kubernetes_version=v1.35.4
containerd_socket=$S/run/containerd.sock
# Records in which network namespace the processes of `start` run.
network=$S/network

say() { echo "cluster: $*" >&2; }
die() { say "$*"; exit 1; }

# Waits until no other script works on this cluster. The lock lies beside the directory that down.sh removes.
alone() {
  exec 9>"$S.lock"
  flock 9
}

# close_network FILE: removes the network whose name that file records.
close_network() {
  [ -s "$1" ] || return 0
  # First the host's end: with the namespace it would go too, but only some time later. The route goes with it.
  ip link del "$(cat "$1")-host" 2>/dev/null || true
  ip netns del "$(cat "$1")" 2>/dev/null || true
  rm -f "$1"
}

# What a node needs and this machine lacks; empty where a node can run.
missing_for_a_node() {
  [ "$(id -u)" = 0 ] || echo "root"
  local tool
  for tool in containerd runc ctr ip nsenter cc; do
    command -v "$tool" >/dev/null || echo "$tool"
  done
  [ -x /usr/lib/cni/bridge ] || echo "/usr/lib/cni/bridge (containernetworking-plugins)"
}

# start NAME COMMAND...: in the background, inside the cluster's network where there is one, with log and pid recorded,
# and marked as ours by its environment.
start() {
  local name=$1 inside=()
  shift
  ! alive "$name" || return 0
  [ ! -e "$network" ] || inside=(nsenter --net="/run/netns/$(cat "$network")")
  # Each of these replaces itself by the next: the recorded pid is the daemon's.
  (exec env HYPER2KVM_CLUSTER_STATE="$S" setsid "${inside[@]}" "$@" >>"$S/logs/$name.log" 2>&1 </dev/null 9>&-) &
  echo $! >"$S/pids/$name"
}

# ours PID: whether that process was started for this cluster. A recorded pid alone may belong to somebody else by now.
ours() { grep -qzxF "HYPER2KVM_CLUSTER_STATE=$S" "/proc/$1/environ" 2>/dev/null; }

alive() { [ -s "$S/pids/$1" ] && ours "$(cat "$S/pids/$1")"; }

# end_node SUFFIX: ends a node as a power cut would: the kubelet first, so that nobody is left to start pods again.
end_node() {
  stop "kubelet$1"
  stop "containerd$1"
  [ -s "$S/cgroup$1" ] || return 0
  local group pids pid
  group=$(cat "$S/cgroup$1")
  # Whatever runs in the control group that was made for this node was started by this node.
  for _ in $(seq 100); do
    pids=$(find /sys/fs/cgroup -path "*/$group/*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u)
    [ -n "$pids" ] || break
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    sleep 0.05
  done
}

# unmount DIRECTORY: whatever is mounted below it, deepest first; what a volume still holds open goes when its holder does.
unmount() {
  awk -v top="$1/" 'index($2, top) == 1 {print length($2), $2}' /proc/self/mounts | sort -rn | while read -r _ mount; do
    umount "$mount" 2>/dev/null || umount -l "$mount" 2>/dev/null || true
  done
}

# clear_node SUFFIX DIRECTORY: removes what an ended node leaves outside of its directory, and its mounts.
clear_node() {
  local bundle socket group link
  # What containerd keeps outside its own directories: sockets of shims, and the CNI library's cache.
  for bundle in "$2"/containerd/state/io.containerd.runtime.v2.task/k8s.io/*/; do
    [ -d "$bundle" ] || continue
    socket=$(sed 's|^unix://||' "$bundle/address" 2>/dev/null || true)
    case $socket in /run/containerd/s/*) rm -f "$socket" ;; esac
    rm -f "/var/lib/cni/results/cni-loopback-$(basename "$bundle")-lo"
  done
  unmount "$2"
  # What the kubelet keeps outside its own: links to logs.
  for link in /var/log/containers/*; do
    case $(readlink "$link" 2>/dev/null) in "$2"/*) rm -f "$link" ;; esac
  done
  [ -s "$S/cgroup$1" ] || return 0
  group=$(cat "$S/cgroup$1")
  rm -f "/var/lib/cni/results/$group"-*
  find /sys/fs/cgroup -depth -type d \( -path "*/$group" -o -path "*/$group/*" \) -exec rmdir {} \; 2>/dev/null || true
}

# gone PID: whether nothing is left of a process that was killed. Its first thread ends before the others, which hold its
# ports a little longer.
gone() {
  local status
  status=$(cat "/proc/$1/status" 2>/dev/null) || return 0
  grep -q '^State:.*Z' <<<"$status" && grep -qx $'Threads:\t1' <<<"$status"
}

# stop NAME: at once; an API server without etcd would drain for a minute.
stop() {
  local pid
  [ -s "$S/pids/$1" ] || return 0
  pid=$(cat "$S/pids/$1")
  if ours "$pid"; then
    kill -9 "$pid" 2>/dev/null || true
    until gone "$pid"; do sleep 0.05; done
  fi
  rm -f "$S/pids/$1"
}

# until_ok SECONDS COMMAND...: waits until the command succeeds.
until_ok() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}
