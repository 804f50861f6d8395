#!/usr/bin/env bash
# Installs what the tests and lints need: on Debian as root everything, elsewhere it says what is missing.
set -euo pipefail

# Debian packages: the oracle for disk images, libvirt's schema (its validator calls xmllint without asking for the
# package that has it), promtool, call traces, and a node's parts.
packages=(qemu-utils libvirt-clients libxml2-utils python3-vmdkstream prometheus strace containerd runc containernetworking-plugins buildah iproute2 openssl curl python3-venv)
# Debian's Go is too old to build an API server, and good enough to fetch a newer one.
if [ -z "${KUBECONFIG:-}" ] && ! "$(dirname "$0")/cluster/go.sh" >/dev/null 2>&1; then
  packages+=(golang-go)
fi

missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
  done
fi
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Of prometheus only promtool is wanted; containerd is run by the tests, under a state directory of theirs.
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
  else
    echo "prerequisites: not root, so not installed: ${missing[*]}" >&2
  fi
fi

if ! command -v cargo-deny >/dev/null; then
  cargo install --quiet --locked cargo-deny --version 0.20.2
fi
