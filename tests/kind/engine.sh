#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Debian's docker or podman, unpacked and not installed, in a network and a mount namespace of its own, with a /run of its
# own: nothing of it meets an engine of this machine. A command within:
#
#   engine.sh up docker|podman DIRECTORY    (what an earlier one left there is ended first)
#   engine.sh run DIRECTORY COMMAND...      (with docker, podman and kind in front of the PATH)
#   engine.sh down DIRECTORY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
die() { echo "tests/kind/engine.sh: $*" >&2; exit 1; }

# packages NAME...: their files below DIRECTORY/programs.
packages() {
  local name
  mkdir -p "$place/packages" "$place/programs"
  for name; do
    [ ! -e "$place/packages/$name" ] || continue
    (cd "$place/packages" && apt-get download -qq "$name" 2>/dev/null) || die "Debian's package $name can't be fetched"
    dpkg -x "$place/packages/$name"_*.deb "$place/programs"
    touch "$place/packages/$name"
  done
}

network() { echo "h2kind$(printf %s "$place" | sha256sum | cut -c1-6)"; }

# within COMMAND...: in the engine's namespaces.
within() {
  local pid
  pid=$(cat "$place/pid" 2>/dev/null) || die "no engine in $place"
  nsenter --net="/run/netns/$(network)" --mount="/proc/$pid/ns/mnt" --wd="$PWD" env \
    PATH="$place/wrappers:$place/programs/usr/bin:$place/programs/usr/sbin:$PATH" \
    DOCKER_HOST="unix://$place/run/docker.sock" CONTAINERS_CONF="$place/containers.conf" \
    CONTAINERS_STORAGE_CONF="$place/storage.conf" CONTAINERS_REGISTRIES_CONF="$place/registries.conf" \
    KUBECONFIG="$place/kubeconfig" DOCKER_CONFIG="$place/docker" \
    HTTP_PROXY= HTTPS_PROXY= http_proxy= https_proxy= NO_PROXY= no_proxy= "$@"
}

# hold COMMAND...: a process that holds the namespaces, or is the daemon in them, and bears our mark. Mounts are shared
# among its own containers and with nobody else: unshare makes them private first.
hold() {
  (exec env HYPER2KVM_ENGINE_OF="$place" setsid nsenter --net="/run/netns/$(network)" unshare --mount bash -c \
    'mount -t tmpfs tmpfs /run && mount --make-rshared / && exec "$@"' engine "$@" \
    >>"$place/engine.log" 2>&1 </dev/null 9>&-) &
  echo $! >"$place/pid"
}

# The control groups in which the engines put their containers.
groups() { find /sys/fs/cgroup -maxdepth 2 -type d \( -name docker -o -name libpod_parent \) | sort; }

ours() { grep -qzxF "HYPER2KVM_ENGINE_OF=$place" "/proc/$1/environ" 2>/dev/null; }

up() {
  local engine=$1
  down
  mkdir -p "$place"/{run,docker,wrappers,root,state}
  groups >"$place/groups"
  echo "{}" >"$place/docker/config.json"
  ip netns add "$(network)"
  ip -n "$(network)" link set lo up
  runtime=$(command -v runc)
  # Where root lacks CAP_SYS_RESOURCE, no privileged container starts without help.
  if ! grep -q '^CapEff:.*[13579bdf]......$' <(sed -n 's/^CapEff:\t\(.*\)$/CapEff:\1/p' /proc/self/status); then
    runtime=$here/runc.sh
  fi
  case $engine in
    docker)
      packages docker.io tini
      ln -sf "$place/programs/usr/bin/docker" "$place/wrappers/docker"
      hold env PATH="$place/programs/usr/sbin:$place/programs/usr/bin:$PATH" dockerd --data-root "$place/root" \
        --exec-root "$place/state" --pidfile "$place/run/docker.pid" --host "unix://$place/run/docker.sock" \
        --add-runtime "h2k=$runtime" --default-runtime h2k
      for _ in $(seq 300); do
        if within docker version >/dev/null 2>&1; then return; fi
        sleep 0.2
      done
      die "dockerd does not answer: see $place/engine.log"
      ;;
    podman)
      packages podman conmon netavark aardvark-dns golang-github-containers-common golang-github-containers-image
      cat >"$place/containers.conf" <<C
[engine]
runtime = "h2k"
conmon_path = ["$place/programs/usr/bin/conmon"]
helper_binaries_dir = ["$place/programs/usr/lib/podman"]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$place/run/libpod"
[engine.runtimes]
h2k = ["$runtime"]
[network]
network_backend = "netavark"
network_config_dir = "$place/networks"
[containers]
default_ulimits = []
C
      printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$place/root" "$place/state" >"$place/storage.conf"
      : >"$place/registries.conf"
      hold sleep infinity
      until within true 2>/dev/null; do sleep 0.1; done
      ;;
    *) die "usage: engine.sh up docker|podman DIRECTORY" ;;
  esac
}

down() {
  local pid
  if pid=$(cat "$place/pid" 2>/dev/null) && ours "$pid"; then
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do [ -e "/proc/$pid" ] || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  fi
  # Shims and conmon outlive it; they bear its mark.
  for pid in $(grep -lzxF "HYPER2KVM_ENGINE_OF=$place" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3); do
    [ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null || true
  done
  # Those that were not there before are ours, and empty now.
  [ ! -e "$place/groups" ] || groups | comm -13 "$place/groups" - | while read -r group; do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
  ip netns del "$(network)" 2>/dev/null || true
  rm -rf "$place"/{root,state,run,pid,groups,networks}
}

action=${1:-}
shift || true
case $action in
  up) [ $# = 2 ] || die "usage: engine.sh up docker|podman DIRECTORY"; place=$(realpath -m "$2"); up "$1" ;;
  run) place=$(realpath "$1"); shift; within "$@" ;;
  down) place=$(realpath -m "$1"); down ;;
  *) die "usage: engine.sh up|run|down" ;;
esac
