#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests and lints need: on Debian as root everything, elsewhere it says what is missing.
#
#   prerequisites.sh [tools]     (tools: only what cargo runs)
set -euo pipefail

# Debian packages: the oracle for disk images, libvirt's schema (its validator calls xmllint without asking for the
# package that has it), promtool, call traces, the makers of guests' file systems and of Windows' registries, what boots
# guests, what copies disks out of claims, a node's parts, and a browser for the daemon's page.
packages=(qemu-utils libvirt-clients libxml2-utils python3-vmdkstream prometheus strace bindfs xfsprogs btrfs-progs ntfs-3g libwin-hivex-perl mtools dosfstools fdisk lvm2 cpio kmod binutils busybox-static qemu-system-x86 ovmf debootstrap containerd runc containernetworking-plugins buildah iproute2 iptables jq openssl curl python3-venv chromium chromium-driver)
# Debian's Go is too old to build an API server, and good enough to fetch a newer one.
if [ -z "${KUBECONFIG:-}" ] && ! "$(dirname "$0")/cluster/go.sh" >/dev/null 2>&1; then
  packages+=(golang-go)
fi

missing=()
if [ "${1:-}" != tools ] && command -v dpkg-query >/dev/null; then
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

# tool NAME VERSION SHA256...: a program of cargo's, as a wheel of its built release (one checksum for each platform);
# from source, which takes minutes, where there is none or no Python that fetches it.
tool() {
  local name=$1 version=$2 hash place
  ! cargo "${name#cargo-}" --version >/dev/null 2>&1 || return 0
  shift 2
  place=$(mktemp -d)
  {
    printf 'astral-dev-toolchain-%s==%s' "$name" "$version"
    for hash in "$@"; do printf ' --hash=sha256:%s' "$hash"; done
  } >"$place/requirements"
  if python3 -m venv "$place/venv" >/dev/null 2>&1 && "$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    --only-binary :all: --require-hashes --requirement "$place/requirements"; then
    install -D -m 0755 "$place/venv/bin/$name" "${CARGO_HOME:-$HOME/.cargo}/bin/$name"
  else
    cargo install --quiet --locked "$name" --version "$version"
  fi
  rm -rf "$place"
}
tool cargo-nextest 0.9.148 \
  76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968 \
  ec00da98aa8e0c0e9520219a00f68290e62da70f0574e03110dc94393711df11
tool cargo-deny 0.20.2 \
  ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
  0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
