#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A part of whole.sh: makes the volume group `rl` of system.raw's second partition and data.raw in a virtual machine, with
# an XFS of the guest's files in `rl/root`.

# The files as a disk, from which the machine starts by itself, by the initramfs of debian.sh, which knows virtio.
mkdir "$work/maker"
cp -al "$files/." "$work/maker/"
cat >"$work/maker/make-volumes" <<'MAKE'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec >/dev/ttyS0 2>&1
set -e
# The initramfs has mounted the others.
mount -t tmpfs tmp /tmp
modprobe dm-mod; modprobe xfs; modprobe dm-linear || true
pvcreate -y /dev/vdb2 /dev/vdc
vgcreate -y rl /dev/vdb2 /dev/vdc
lvcreate -y -Wn -Zn -l 100%FREE -n root rl
mkfs.xfs -q /dev/rl/root
mkdir /tmp/root && mount /dev/rl/root /tmp/root
mkdir /tmp/files && mount -o bind,ro / /tmp/files
cp -a /tmp/files/. /tmp/root/
rm /tmp/root/make-volumes
umount /tmp/root
vgchange -an rl
echo MADE
sync
exec poweroff -ff
MAKE
chmod +x "$work/maker/make-volumes"
mkfs "$work/maker.ext4" $root_uuid "$work/maker" 1100M
timeout 1500 qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine q35,accel=tcg -cpu max -m 768 \
  -kernel "$tree/boot/$kernel" -initrd "$cache/tree/boot/initrd.img-$version" \
  -append 'root=/dev/vda rw console=ttyS0 quiet panic=-1 init=/make-volumes' -serial "file:$work/console" \
  -drive "if=virtio,format=raw,file=$work/maker.ext4" -drive "if=virtio,format=raw,file=$system" \
  -drive "if=virtio,format=raw,file=$out/data.raw" </dev/null
grep -q MADE "$work/console" || { tail -n 20 "$work/console" >&2; exit 1; }
