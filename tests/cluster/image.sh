#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the Dockerfile with binaries that are built already, and brings an image of it into the node.
#
#   image.sh DIRECTORY [fixer]           (holds hyper2kvm, hyper2kvmctl and hyper2kvm-operator, for the fixer
#                                        hyper2kvm-appliance, too; prints the image's name)
#   image.sh DIRECTORY operator FILE     (writes the image into an archive instead; no cluster is needed)
#
# Neither a registry nor a Docker daemon is needed: the stages `build` and `fixer-system` are replaced by directories, the
# base by an image of this machine's own C library. QEMU is this machine's own, the appliance's kernel Debian's.
. "$(dirname "$0")/environment.sh"
binaries=${1:?usage: image.sh DIRECTORY [fixer]}
kind=${2:-operator}
archive=${3:-}
programs=(hyper2kvm hyper2kvmctl hyper2kvm-operator)
command -v buildah >/dev/null || die "left out: the image; buildah is not installed"
if [ "$kind" = fixer ]; then
  programs=(hyper2kvm hyper2kvm-appliance)
  for program in qemu-system-x86_64 qemu-img lvm e2fsck xfs_repair ntfs-3g; do
    command -v "$program" >/dev/null || die "left out: the fixer's image; $program is not installed"
  done
  [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || die "left out: the fixer's image; OVMF is not installed (Debian: ovmf)"
fi

tag=$(cd "$binaries" && cat "${programs[@]}" "$checkout"/{Dockerfile,deploy/release/fixer-system.sh} "$here/image.sh" | sha256sum | cut -c1-16)
name=localhost/hyper2kvm-$kind:$tag
loaded() { [ -z "$archive" ] && ctr -a "$containerd_socket" -n k8s.io images ls -q 2>/dev/null | grep -qx "$name"; }
alone
mkdir -p "$S"
if ! loaded; then
  work=$(mktemp -d "$S/image.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  buildah() { command buildah --storage-driver vfs --root "$S/buildah" --runroot "$S/buildah-run" "$@"; }

  # libraries ROOT PROGRAM...: what the programs load, at its own place below ROOT.
  libraries() {
    local root=$1 library
    shift
    for library in $(ldd "$@" | grep -o '/[^ :]*\.so[^ :]*' | sort -u); do
      install -D -m 0755 "$library" "$root$library"
    done
  }

  mkdir -p "$work"/build/image/{bin,appliance,state/queue,state/output} "$work/base/tmp" "$work/base/etc/ssl/certs" "$work/fixer"
  target=()
  if [ "$kind" = fixer ]; then
    kernel=$cache/guests/kernel
    "$checkout/tests/images/kernel.sh" "$kernel" >/dev/null || die "left out: the fixer's image; no kernel can be fetched"
    "$checkout/deploy/release/fixer-system.sh" "$binaries" "$kernel" "$work/fixer" >/dev/null
    target=(--target fixer)
  fi
  for program in "${programs[@]}"; do
    # Symbols are most of what would be copied into every pod.
    strip -o "$work/build/image/bin/$program" "$binaries/$program"
  done
  chmod -R ug=rwX,o=rX "$work/build/image/state"
  chmod 1777 "$work/base/tmp"
  echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$work/base/etc/passwd"
  libraries "$work/base" "$work"/build/image/bin/*

  base=$(buildah from scratch)
  buildah copy --quiet "$base" "$work/base" / >/dev/null
  # Files settle in no time: the tests bring them whole.
  buildah config --env HYPER2KVM_TEST_LOOK_INTERVAL_MS=50 "$base"
  buildah commit --quiet "$base" localhost/base:1 >/dev/null
  buildah rm "$base" >/dev/null
  buildah build --quiet --isolation chroot --file "$checkout/Dockerfile" --build-arg BASE=localhost/base:1 \
    --build-arg REVISION="$tag" --build-context build="$work/build" \
    --build-context fixer-system="$work/fixer" "${target[@]}" --tag "$name" "$checkout" >&2
  buildah push --quiet "$name" "docker-archive:${archive:-$work/image.tar}:$name" >&2
  [ -n "$archive" ] || ctr -a "$containerd_socket" -n k8s.io images import "$work/image.tar" >/dev/null
  buildah rmi --all --force >/dev/null 2>&1 || true
fi
echo "$name"
