#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make test-kind`: kind/up.sh and kind/drop.sh on a real kind of two nodes, with docker and with podman.
#
#   run.sh [docker|podman]...     (default: both)
#
# On Debian as root the engines are Debian's packages, unpacked for this run (engine.sh), and the node's image is made here
# (node-image.sh). Elsewhere it is the engine of this machine, if one answers, with kind's own node image and the Dockerfile
# built; what can be had neither way is left out, loudly. The operator's image is what the suite makes of target/debug.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
cd "$checkout"
[ $# -gt 0 ] || set -- docker podman
place=${HYPER2KVM_KIND:-${TMPDIR:-/tmp}/hyper2kvm-kind-$(printf %s "$checkout" | sha256sum | cut -c1-8)}
own=no
[ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null || ! command -v apt-get >/dev/null || own=yes

say() { echo "test-kind: $*"; }
left_out() { say "LEFT OUT: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
within() { if [ "$own" = yes ]; then "$here/engine.sh" run "$place" "$@"; else "$@"; fi; }

# expect CODE PATTERN COMMAND...: its exit code, and what it says.
expect() {
  local code=$1 pattern=$2 began=$SECONDS status=0
  shift 2
  within "$@" >"$place/said" 2>&1 || status=$?
  [ "$status" = "$code" ] && grep -qE -- "$pattern" "$place/said" || {
    cat "$place/said" >&2
    fail "$*: exit code $status instead of $code, or nothing of '$pattern' in what it said"
  }
  local words=()
  for word; do case $word in env | *=*) ;; *) words+=("${word#"$place/"}") ;; esac; done
  say "$((SECONDS - began)) s: ${words[*]}: $(grep -E -m 1 -- "$pattern" "$place/said" | tr -s ' ')"
}

clean() {
  within kind delete cluster --name hyper2kvm >/dev/null 2>&1 || true
  [ "$own" = no ] || "$here/engine.sh" down "$place"
}

# scenarios ENGINE: from nothing, again, a disk image that can't be converted, a link with an apostrophe in its name, and an
# operator that was built anew.
scenarios() {
  local engine=$1 image=()
  export KIND_EXPERIMENTAL_PROVIDER=$engine
  if [ "$own" = yes ]; then
    within "$engine" load --quiet --input "$place/operator.tar" >/dev/null 2>&1
    image=(OPERATOR_IMAGE="$operator" KIND_IMAGE=localhost/hyper2kvm-node:1)
    within "$engine" import --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' --change 'ENV container=docker' \
      "$node" localhost/hyper2kvm-node:1 >/dev/null 2>&1
  fi
  truncate -s 1M "$place/broken.vmdk"
  printf KDMV | dd of="$place/broken.vmdk" conv=notrunc status=none
  truncate -s 3M "$place/disk.raw"
  head -c 1M /dev/urandom | dd of="$place/disk.raw" conv=notrunc status=none
  qemu-img convert -f raw -O vmdk -o subformat=streamOptimized "$place/disk.raw" "$place/real.vmdk"
  ln -sf real.vmdk "$place/bob's.vmdk"

  expect 0 'empty-.* +demo +empty.raw +Succeeded' env "${image[@]}" kind/up.sh
  expect 0 'empty.raw was converted before' env "${image[@]}" kind/up.sh
  expect 1 'Failed: .*broken.vmdk' kind/drop.sh "$place/broken.vmdk"
  expect 0 "bob's.vmdk +Succeeded" kind/drop.sh "$place/bob's.vmdk"
  if [ "$own" = yes ]; then
    local container before
    before=$(within kubectl --context kind-hyper2kvm -n hyper2kvm get pods -o 'jsonpath={.items[0].spec.containers[0].image}')
    container=$(within "$engine" create "$operator")
    within "$engine" commit --change 'LABEL built=anew' "$container" localhost/hyper2kvm-operator:anew >/dev/null 2>&1
    expect 0 'empty.raw was converted before' env "${image[@]}" OPERATOR_IMAGE=localhost/hyper2kvm-operator:anew kind/up.sh
    [ "$before" != "$(within kubectl --context kind-hyper2kvm -n hyper2kvm get deploy -o 'jsonpath={.items[0].spec.template.spec.containers[0].image}')" ] ||
      fail "an operator that was built anew does not reach the controller"
  fi
  expect 0 'Deleted nodes|Deleting cluster' kind delete cluster --name hyper2kvm
}

# One run at a time: an engine that is made ends one that is there.
exec 9>"$place.lock"
flock 9
mkdir -p "$place"
kind=$("$checkout/tests/cluster/build.sh" kind)
kubectl=$("$checkout/tests/cluster/build.sh" kubernetes kubectl)
helm=$("$checkout/tests/cluster/build.sh" helm)
export PATH="$kind:$kubectl:$helm:$PATH"
if [ "$own" = yes ]; then
  node=$("$here/node-image.sh")
  cargo build --locked --bins
  rm -f "$place/operator.tar"
  operator=$(HYPER2KVM_CLUSTER=$place/image "$checkout/tests/cluster/image.sh" "${CARGO_TARGET_DIR:-target}/debug" operator "$place/operator.tar")
fi
ran=0
for engine; do
  if [ "$own" = yes ]; then
    trap clean EXIT
    "$here/engine.sh" up "$engine" "$place"
  elif ! "$engine" info >/dev/null 2>&1; then
    left_out "$engine: none answers here, and one of our own needs Debian, root and debootstrap"
    continue
  elif KIND_EXPERIMENTAL_PROVIDER=$engine kind get clusters 2>/dev/null | grep -qx hyper2kvm; then
    left_out "$engine: a cluster hyper2kvm is there, which may be somebody's"
    continue
  else
    trap clean EXIT
  fi
  say "$engine $(within "$engine" version --format '{{.Client.Version}}'), $(kind version), own engine: $own"
  scenarios "$engine"
  clean
  trap - EXIT
  ran=$((ran + 1))
done
rm -rf "$place"
say "$ran of $# engines"
