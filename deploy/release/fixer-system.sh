#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the root of the fixer's image of what this machine has, as the Dockerfile's stage `fixer-system` makes it of Debian
# 13: hyper2kvm, QEMU with its firmware and what it loads, and the appliance.
#
#   fixer-system.sh PROGRAMS KERNEL ROOT
#
# PROGRAMS holds hyper2kvm and hyper2kvm-appliance, KERNEL is what tests/images/kernel.sh makes. Prints the Debian packages
# that the files are of, a name and a version a line.
set -euo pipefail
programs=$1 kernel=$2 root=$3
PATH=$PATH:/usr/sbin:/sbin
firmware=/usr/share/OVMF
for need in qemu-system-x86_64 qemu-img lvm e2fsck xfs_repair ntfs-3g ntfsfix; do
  command -v "$need" >/dev/null || { echo "fixer-system.sh: $need is not installed" >&2; exit 1; }
done
[ -e "$firmware/OVMF_CODE_4M.fd" ] || { echo "fixer-system.sh: OVMF is not installed (Debian: ovmf)" >&2; exit 1; }
version=$(cat "$kernel/version")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$root"/usr/{local/bin,bin,lib/hyper2kvm,share} "$root/tmp" "$root/var/lib/hyper2kvm"
strip -o "$root/usr/local/bin/hyper2kvm" "$programs/hyper2kvm"
strip -o "$work/init" "$programs/hyper2kvm-appliance"
# bring FILE...: each at its own place.
bring() {
  local file
  for file in "$@"; do
    install -D -m "$([ -x "$file" ] && echo 0755 || echo 0644)" "$file" "$root$file"
    echo "$file" >>"$work/brought"
  done
}
bring /usr/bin/qemu-system-x86_64 /usr/bin/qemu-img "$firmware"/OVMF_{CODE,VARS}_4M.fd
# What it loads by itself: how to translate, and no display.
for module in "/usr/lib/$(uname -m)-linux-gnu/qemu"/{accel,hw-display-virtio}-*.so; do
  [ ! -e "$module" ] || bring "$module"
done
libraries() { ldd "$@" | grep -o '/[^ :]*\.so[^ :]*' | sort -u; }
mapfile -t found < <(libraries "$root"/usr/local/bin/* "$root"/usr/bin/*)
bring "${found[@]}"
mapfile -t found < <(find /usr/share/qemu /usr/share/seabios -maxdepth 1 \
  \( -name 'bios*.bin' -o -name 'linuxboot*.bin' -o -name 'kvmvapic.bin' -o -name 'vgabios-stdvga.bin' \))
bring "${found[@]}"
"$programs/hyper2kvm" appliance build --kernel "$kernel/boot/vmlinuz-$version" --modules "$kernel/lib/modules/$version" \
  --init "$work/init" --output "$root/usr/lib/hyper2kvm/appliance" >/dev/null
chmod -R u=rwX,go=rX "$root/usr/lib/hyper2kvm"
chmod 1777 "$root/tmp"

command -v dpkg-query >/dev/null || exit 0
# Those of the appliance, too.
mapfile -t tools < <(command -v lvm e2fsck xfs_repair ntfs-3g ntfsfix | xargs -n 1 realpath)
{ cat "$work/brought"; printf '%s\n' "${tools[@]}"; libraries "${tools[@]}"; } | sort -u >"$work/all"
# A path is known by its name before or after /usr was merged.
{ cat "$work/all"; xargs realpath <"$work/all"; } | sed 'p; s|^/usr/|/|' | sort -u >"$work/names"
{ xargs dpkg-query -S <"$work/names" 2>/dev/null || true; } | sed 's/: .*//; s/, /\n/g' | sort -u >"$work/packages"
# shellcheck disable=SC2016
xargs dpkg-query -W -f '${Package} ${Version}\n' <"$work/packages"
echo "linux-image-$version $(grep -aoE 'SMP[A-Z_ ]* Debian [^ ]+' "$kernel/boot/vmlinuz-$version" | head -n 1 | sed 's/.* //')"
