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
  [ ! -e "$S/network" ] || inside=(nsenter --net="/run/netns/$(cat "$S/network")")
  # Each of these replaces itself by the next: the recorded pid is the daemon's.
  (exec env HYPER2KVM_CLUSTER_STATE="$S" setsid "${inside[@]}" "$@" >>"$S/logs/$name.log" 2>&1 </dev/null 9>&-) &
  echo $! >"$S/pids/$name"
}

# ours PID: whether that process was started for this cluster. A recorded pid alone may belong to somebody else by now.
ours() { grep -qzxF "HYPER2KVM_CLUSTER_STATE=$S" "/proc/$1/environ" 2>/dev/null; }

alive() { [ -s "$S/pids/$1" ] && ours "$(cat "$S/pids/$1")"; }

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
