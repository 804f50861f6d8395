#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the Dockerfile with binaries that are built already, and brings the image into the node.
#
#   image.sh DIRECTORY     (holds hyper2kvm, hyper2kvmctl and hyper2kvm-operator; prints the image's name)
#
# Neither a registry nor a Docker daemon is needed: the stage `build` is replaced by a directory, the base by an image
# of this machine's own C library.
. "$(dirname "$0")/environment.sh"
binaries=${1:?usage: image.sh DIRECTORY}
programs=(hyper2kvm hyper2kvmctl hyper2kvm-operator)
command -v buildah >/dev/null || die "left out: the image; buildah is not installed"

tag=$(cd "$binaries" && cat "${programs[@]}" "$checkout/Dockerfile" "$here/image.sh" | sha256sum | cut -c1-16)
name=localhost/hyper2kvm-operator:$tag
loaded() { ctr -a "$containerd_socket" -n k8s.io images ls -q 2>/dev/null | grep -qx "$name"; }
alone
if ! loaded; then
  work=$(mktemp -d "$S/image.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  buildah() { command buildah --storage-driver vfs --root "$S/buildah" --runroot "$S/buildah-run" "$@"; }

  mkdir -p "$work"/build/image/{bin,state/queue,state/output} "$work/base/tmp" "$work/base/etc/ssl/certs"
  for program in "${programs[@]}"; do
    # Symbols are most of what would be copied into every pod.
    strip -o "$work/build/image/bin/$program" "$binaries/$program"
  done
  chmod -R ug=rwX,o=rX "$work/build/image/state"
  chmod 1777 "$work/base/tmp"
  echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$work/base/etc/passwd"
  for library in $(ldd "$work"/build/image/bin/* | grep -o '/[^ :]*\.so[^ :]*' | sort -u); do
    install -D -m 0755 "$library" "$work/base$library"
  done

  base=$(buildah from scratch)
  buildah copy --quiet "$base" "$work/base" / >/dev/null
  # Files settle in no time: the tests bring them whole.
  buildah config --env HYPER2KVM_TEST_LOOK_INTERVAL_MS=50 "$base"
  buildah commit --quiet "$base" localhost/base:1 >/dev/null
  buildah rm "$base" >/dev/null
  buildah build --quiet --isolation chroot --file "$checkout/Dockerfile" --build-arg BASE=localhost/base:1 \
    --build-arg REVISION="$tag" --build-context build="$work/build" --tag "$name" "$checkout" >&2
  buildah push --quiet "$name" "docker-archive:$work/image.tar:$name" >&2
  ctr -a "$containerd_socket" -n k8s.io images import "$work/image.tar" >/dev/null
  buildah rmi --all --force >/dev/null 2>&1 || true
fi
echo "$name"
