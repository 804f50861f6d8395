#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fetches Debian's cloud kernel, unpacked, for appliances of tests: nothing is installed, and the host needs no kernel.
#
#   kernel.sh DIR      (prints the version; DIR/boot/vmlinuz-VERSION and DIR/lib/modules/VERSION are there then)
set -euo pipefail
place=$(realpath -m "$1")
if [ ! -e "$place/version" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [ -n "$package" ] || { echo "kernel.sh: this system's sources have no linux-image-cloud-amd64" >&2; exit 1; }
  cd "$work"
  apt-get download -qq "$package" >&2
  dpkg -x "$package"_*.deb unpacked
  version=${package#linux-image-}
  PATH=$PATH:/usr/sbin:/sbin depmod -b unpacked "$version"
  echo "$version" >unpacked/version
  mkdir -p "$(dirname "$place")"
  # Of two that do this at once, one is first, and the other's is thrown away.
  mv -T unpacked "$place" 2>/dev/null || [ -e "$place/version" ]
fi
cat "$place/version"
