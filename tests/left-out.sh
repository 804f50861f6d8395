#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lists what `make test` could not run here, so that green never means more than it says.
set -euo pipefail
left_out() { echo "left out: $1"; }
command -v qemu-img >/dev/null || left_out "comparison of disk images with qemu-img (Debian: qemu-utils)"
command -v virt-xml-validate >/dev/null && command -v xmllint >/dev/null || left_out "validation of domain.xml (Debian: libvirt-clients, libxml2-utils)"
command -v promtool >/dev/null || left_out "check of the metrics (Debian: prometheus)"
command -v strace >/dev/null || left_out "the traced power cut (Debian: strace)"
command -v bindfs >/dev/null && [ -e /dev/fuse ] || left_out "a queue on a served volume (Debian: bindfs; /dev/fuse)"
[ "$(id -u)" = 0 ] || left_out "tests that mount a small file system or boot a node (root)"
PATH=$PATH:/usr/sbin:/sbin
for maker in mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs ntfs-3g:ntfs-3g mcopy:mtools mkfs.vfat:dosfstools sfdisk:fdisk pvcreate:lvm2; do
  command -v "${maker%:*}" >/dev/null || left_out "guests made with ${maker%:*} (Debian: ${maker#*:})"
done
[ "$(id -u)" = 0 ] && [ -e /dev/loop-control ] || left_out "guests whose file systems only a mount fills: btrfs, NTFS, LVM (root with loop devices)"
[ "$(id -u)" = 0 ] && [ -e /dev/loop-control ] && command -v losetup >/dev/null || left_out "disks on block devices and in file systems of their own (root with loop devices; Debian: mount, e2fsprogs)"
here=$(dirname "$0")/cluster
while read -r lack; do
  [ "$lack" = root ] || left_out "pods on a real node ($lack)"
done < <(. "$here/environment.sh" && missing_for_a_node)
command -v buildah >/dev/null || left_out "pods on a real node (Debian: buildah)"
command -v openssl >/dev/null || left_out "the whole cluster suite (Debian: openssl)"
"$here/go.sh" >/dev/null 2>&1 || left_out "the whole cluster suite: its API server is built with Go 1.26, or fetched by an older one (Debian: golang-go; KUBEBUILDER_ASSETS or KUBECONFIG name one that is there)"
"$here/go.sh" >/dev/null 2>&1 || left_out "KubeVirt's own validation of virtualmachine.yaml (Debian: golang-go)"
exit 0
