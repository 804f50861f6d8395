# syntax=docker/dockerfile:1
# One image for controller, watcher, sidecar and worker, and another for workers that fix guests.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag hyper2kvm-operator .
#   docker buildx build --platform linux/amd64 --target fixer --tag hyper2kvm-fixer .
#
# The tests build this very file with `BASE` and the stages `build` and `fixer-system` replaced by what is at hand
# (tests/cluster/image.sh). arm64 is cross-compiled and so far untested; the fixer is for amd64 alone.
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.95-bookworm AS build
ARG BUILDARCH
ARG TARGETARCH
# true: faults and failpoints can be asked for, as the cluster suite does.
ARG CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=false
WORKDIR /src
RUN <<SH
    set -eu
    case "$TARGETARCH" in
        amd64) target=x86_64-unknown-linux-gnu gcc=x86-64-linux-gnu ;;
        arm64) target=aarch64-unknown-linux-gnu gcc=aarch64-linux-gnu ;;
        *) echo "no build for $TARGETARCH" >&2; exit 1 ;;
    esac
    rustup target add "$target"
    {
        echo "export CARGO_BUILD_TARGET=$target"
        if [ "$BUILDARCH" != "$TARGETARCH" ]; then
            apt-get update
            apt-get install -y --no-install-recommends "gcc-$gcc" "g++-$gcc"
            linker=$(echo "$gcc" | sed s/x86-64/x86_64/)-gcc
            name=$(echo "$target" | tr a-z- A-Z_)
            echo "export CARGO_TARGET_${name}_LINKER=$linker CC_$(echo "$target" | tr - _)=$linker"
        fi
    } > /cross
SH
# Dependencies first: they change less often than the source.
COPY Cargo.toml Cargo.lock ./
RUN <<SH
    set -eu
    . /cross
    for bin in hyper2kvm hyper2kvm-appliance hyper2kvmctl hyper2kvm-operator; do
        mkdir -p "src/bin/$bin"
        echo 'fn main() {}' > "src/bin/$bin/main.rs"
    done
    touch src/lib.rs
    cargo build --release --locked
    rm -r src
SH
COPY src src
RUN <<SH
    set -eu
    . /cross
    find src -name '*.rs' -exec touch {} +
    cargo build --release --locked
    mkdir -p /image/bin /image/appliance /image/state/queue /image/state/output
    for bin in hyper2kvm hyper2kvmctl hyper2kvm-operator; do
        cp "target/$CARGO_BUILD_TARGET/release/$bin" /image/bin/
    done
    cp "target/$CARGO_BUILD_TARGET/release/hyper2kvm-appliance" /image/appliance/
    if [ "$CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS" = false ] && grep --files-with-matches HYPER2KVM_TEST_ /image/bin/* /image/appliance/*; then
        echo "a release knows the switches of tests" >&2
        exit 1
    fi
    chmod -R u=rwX,go=rX /image/bin /image/appliance
    chmod -R ug=rwX,o=rX /image/state
SH

# QEMU of Debian 13 with the firmware of machines that are tried, and an appliance of its kernel, which is not run but
# started in QEMU.
FROM docker.io/library/debian:trixie-slim AS fixer-system
COPY --from=build /image/bin/hyper2kvm /usr/local/bin/
COPY --from=build /image/appliance/ /tmp/appliance/
RUN <<SH
    set -eu
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    apt-get install -y --no-install-recommends qemu-system-x86 qemu-utils ovmf kmod lvm2 e2fsprogs xfsprogs ntfs-3g
    cd /tmp
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    apt-get download "$package"
    dpkg -x "$package"_*.deb unpacked
    version=${package#linux-image-}
    depmod -b unpacked "$version"
    modules=$(find unpacked -type d -path "*/modules/$version")
    hyper2kvm appliance build --kernel "unpacked/boot/vmlinuz-$version" --modules "$modules" \
        --init appliance/hyper2kvm-appliance --output /usr/lib/hyper2kvm/appliance
    chmod -R u=rwX,go=rX /usr/lib/hyper2kvm
    # They are in the appliance.
    apt-get purge -y --auto-remove kmod lvm2 xfsprogs ntfs-3g
    # One of a dozen firmwares by EFI is looked for.
    find /usr/share/OVMF /usr/share/ovmf ! -type d ! -name OVMF_CODE_4M.fd ! -name OVMF_VARS_4M.fd -delete
    rm -rf /tmp/* /var/lib/apt/lists/* /var/cache/apt /usr/share/doc /usr/share/man /usr/share/locale
    mkdir -p /var/lib/hyper2kvm
SH

FROM scratch AS fixer
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="hyper2kvm-fixer" \
      org.opencontainers.image.description="hyper2kvm's worker with QEMU, its firmware and the appliance that makes guests ready for virtio" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-only AND GPL-2.0-or-later AND BSD-2-Clause-Patent" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=fixer-system / /
ENV PATH=/usr/local/bin:/usr/bin:/bin
USER 65532:65532
WORKDIR /var/lib/hyper2kvm
CMD ["hyper2kvm", "--help"]

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="hyper2kvm-operator" \
      org.opencontainers.image.description="Drop a disk image on a volume, get a verified KVM disk, by itself" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /image/bin/ /usr/local/bin/
# Some clusters choose a user ID of their own, always with group 0.
COPY --from=build --chown=65532:0 /image/state/ /var/lib/hyper2kvm/
# By number: `runAsNonRoot` can't look names up.
USER 65532:65532
WORKDIR /var/lib/hyper2kvm
CMD ["hyper2kvm", "--help"]
