#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes what a release has, without a network, into target/release-VERSION/: programs, archives of the images, chart, bills of
# materials, krew manifest and checksums.
#
#   make.sh VERSION        (must be Cargo.toml's: version.sh VERSION sets it)
#
# What is fetched must be there: crates, Debian's kernel (target/guests/kernel), and the Go modules of helm where it was never
# built. The images have this machine's C library and QEMU. The fixer is for amd64 alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${1:-}
have=$(deploy/release/version.sh)
[ "$version" = "$have" ] || { echo "release: VERSION=$version, but Cargo.toml says $have" >&2; exit 2; }
out=target/release-$version
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in x86_64-*) arch=amd64 ;; aarch64-*) arch=arm64 ;; *) echo "release: no release for $target" >&2; exit 2 ;; esac
command -v buildah >/dev/null || { echo "release: buildah is missing (make prerequisites)" >&2; exit 1; }
rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --release --locked --offline
built=${CARGO_TARGET_DIR:-target}/release
for program in hyper2kvm hyper2kvm-appliance hyper2kvmctl hyper2kvm-operator; do
  install -m 755 "$built/$program" "$work/$program"
done
reproducible=(--owner=0 --group=0 --numeric-owner --sort=name --mtime=@"$(git log -1 --format=%ct)")
archive() { tar "${reproducible[@]}" -C "$1" -cf - "${@:3}" | gzip -n >"$out/$2"; }
cp LICENSE README.md "$work/"
archive "$work" "hyper2kvm-$version-linux-$arch.tar.gz" hyper2kvm hyper2kvm-appliance hyper2kvmctl hyper2kvm-operator LICENSE README.md
cp "$work/hyper2kvmctl" "$work/kubectl-hyper2kvm"
plugin=kubectl-hyper2kvm-$version-linux-$arch.tar.gz
archive "$work" "$plugin" kubectl-hyper2kvm LICENSE

# The Dockerfile with its stages `build` and `fixer-system` replaced by what was built, as in tests/cluster/image.sh.
buildah() { command buildah --storage-driver vfs --root "$work/buildah" --runroot "$work/buildah-run" "$@"; }
mkdir -p "$work"/build/image/{bin,state/queue,state/output} "$work"/base/{tmp,etc/ssl/certs}
install -m 755 "$built"/{hyper2kvm,hyper2kvmctl,hyper2kvm-operator} "$work/build/image/bin/"
chmod -R ug=rwX,o=rX "$work/build/image/state"
chmod 1777 "$work/base/tmp"
echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$work/base/etc/passwd"
for library in $(ldd "$work"/build/image/bin/* | grep -o '/[^ :]*\.so[^ :]*' | sort -u); do
  install -D -m 755 "$library" "$work/base$library"
done
base=$(buildah from scratch)
buildah copy --quiet "$base" "$work/base" / >/dev/null
buildah commit --quiet "$base" localhost/base:1 >/dev/null
mkdir "$work/fixer"
# image NAME OPTION...: builds it, and leaves its archive.
image() {
  local name=$1:$version
  buildah build --quiet --isolation chroot --file Dockerfile --build-arg BASE=localhost/base:1 --build-arg VERSION="$version" \
    --build-arg REVISION="$(git rev-parse HEAD)" --build-context build="$work/build" \
    --build-context fixer-system="$work/fixer" "${@:2}" --tag "localhost/$name" . >&2
  buildah push --quiet "localhost/$name" "docker-archive:$PWD/$out/$1-$version-image-$arch.tar:$name" >&2
}
image hyper2kvm-operator
materials() {
  cargo metadata --format-version 1 --locked --offline --filter-platform "$target" | deploy/release/sbom.py "$@"
}
if [ "$arch" = amd64 ]; then
  tests/images/kernel.sh target/guests/kernel >/dev/null
  deploy/release/fixer-system.sh "$work" target/guests/kernel "$work/fixer" >"$work/packages"
  image hyper2kvm-fixer --target fixer
  materials "$work/packages" >"$out/hyper2kvm-fixer-$version.cdx.json"
fi
"$(tests/cluster/build.sh helm)/helm" package charts/hyper2kvm-operator --destination "$out" >/dev/null
materials >"$out/hyper2kvm-operator-$version.cdx.json"
cat >"$out/hyper2kvm.yaml" <<KREW
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: hyper2kvm
spec:
  version: v$version
  homepage: "@HOMEPAGE@"
  shortDescription: Turn disk images into KVM disks
  description: |
    Watches and steers queues of the hyper2kvm operator, and brings disk images to them and disks back.
  platforms:
    - selector:
        matchLabels: {os: linux, arch: $arch}
      uri: "@BASE_URL@/$plugin"
      sha256: $(sha256sum "$out/$plugin" | cut -d' ' -f1)
      bin: kubectl-hyper2kvm
KREW
(cd "$out" && sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
ls -l "$out"
