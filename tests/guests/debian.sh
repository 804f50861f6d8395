#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes disks of a real Debian that boots and tells what it finds. Its files are made by debootstrap once, into CACHE.
#
#   debian.sh CACHE OUT bios|efi [data] [broken]
#
# OUT gets system.raw, with `data` also data.raw (mounted on /data by its UUID), and sums: the digest of the list of all
# files' digests. `broken` has an initramfs for VMware's controllers and SATA alone. Needs root, for debootstrap and for the
# owners of files.
set -euo pipefail
cache=$1 out=$2 firmware=$3 data='' broken=''
for word in "${@:4}"; do
  case $word in
    data) data=1 ;;
    broken) broken=1 ;;
    *) echo "debian.sh: $word?" >&2; exit 2 ;;
  esac
done
export PATH=$PATH:/usr/sbin:/sbin SOURCE_DATE_EPOCH=0
root_uuid=6c1f0f1e-0000-4000-8000-000000000001
data_uuid=6c1f0f1e-0000-4000-8000-000000000002
tree=$cache/tree

# Half a tree of an earlier run is worth nothing: it is renamed when it is whole.
make_tree() {
  local new=$cache/new class
  rm -rf "$new"
  debootstrap --variant=minbase \
    --include=linux-image-amd64,initramfs-tools,zstd,systemd-sysv,udev,ifupdown,isc-dhcp-client,iproute2,grub-common,grub-pc-bin,grub-efi-amd64-bin \
    bookworm "$new" http://deb.debian.org/debian >"$cache/debootstrap.log" 2>&1 ||
    { tail -n 5 "$cache/debootstrap.log" >&2; return 1; }
  # Nothing of this is looked for by anybody here, and each byte is read several times.
  rm -rf "$new"/usr/share/{doc,man,locale,info,i18n,zoneinfo} "$new"/var/cache/apt "$new"/var/lib/apt/lists "$new"/boot/System.map*
  for class in gpu media infiniband staging iio hwmon mmc mtd leds bluetooth isdn comedi net/wireless net/can platform firewire thunderbolt; do
    rm -rf "$new"/lib/modules/*/kernel/drivers/"$class"
  done
  rm -rf "$new"/lib/modules/*/kernel/sound
  find "$new"/lib/modules/*/kernel/drivers/net/ethernet -mindepth 1 -maxdepth 1 ! -name intel ! -name amd ! -name realtek -exec rm -rf {} +
  echo 'COMPRESS=zstd' >>"$new/etc/initramfs-tools/initramfs.conf"
  chroot "$new" sh -c 'depmod "$(ls /lib/modules)" && update-initramfs -u' >"$cache/initramfs.log" 2>&1
  # As on a guest that knew one hypervisor only.
  cp -a "$new/etc/initramfs-tools" "$new/tmp/narrow"
  sed -i 's/^MODULES=.*/MODULES=list/' "$new/tmp/narrow/initramfs.conf"
  printf '%s\n' mptspi vmw_pvscsi ahci ata_piix sd_mod ext4 crc32c >"$new/tmp/narrow/modules"
  chroot "$new" sh -c 'mkinitramfs -d /tmp/narrow -o /tmp/initrd "$(ls /lib/modules)"' >>"$cache/initramfs.log" 2>&1
  mv "$new/tmp/initrd" "$cache/initrd.narrow"
  rm -rf "$new/tmp/narrow"
  mkdir "$new/data" "$new/boot/grub"
  printf 'auto lo\niface lo inet loopback\n' >"$new/etc/network/interfaces"
  rm -rf "$tree"
  mv "$new" "$tree"
}

mkdir -p "$cache" "$out"
exec 9>"$cache/lock"
flock 9
[ -d "$tree" ] || make_tree

# The files of this disk: those of the tree by hard links, and its own.
work=$(mktemp -d -p "$cache")
trap 'rm -rf "$work"' EXIT
cp -al "$tree" "$work/files"
files=$work/files
rm -f "$files/etc/fstab"
echo "UUID=$root_uuid / ext4 errors=remount-ro 0 1" >"$files/etc/fstab"
[ -z "$data" ] || echo "UUID=$data_uuid /data ext4 defaults 0 2" >>"$files/etc/fstab"
kernel=$(cd "$files/boot" && ls vmlinuz-*)
rm -f "$files/init-test" "$files/sums-of"
# What the guest does instead of its own init: it tells its devices and the sum of all its files, and ends.
cat >"$files/init-test" <<'INIT'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -o remount,rw /; mount -a
exec >/dev/ttyS0 2>&1
echo "TEST root $(findmnt -no SOURCE /) data $(findmnt -no SOURCE /data || echo none)"
for bus in pci virtio; do
  for device in /sys/bus/$bus/devices/*; do modprobe -q "$(cat $device/modalias)" || true; done
done
for disk in /sys/block/[sv]d*; do echo "TEST disk $(basename $disk) $(cat $disk/size) $(readlink -f $disk)"; done
for page in /sys/block/sd*/device/vpd_pg80; do echo "TEST serial $(basename "${page%/device/vpd_pg80}") $(tr -cd 'a-z0-9-' <"$page")"; done
for card in /sys/class/net/*/device/driver; do echo "TEST card $(basename "$(readlink -f $card)") $(cat ${card%/device/driver}/address)"; done
echo "TEST firmware $([ -d /sys/firmware/efi ] && echo efi || echo bios)"
cd / && echo "TEST sums $(/sums-of | sha256sum | cut -d ' ' -f 1)"
echo "TEST end"
umount /data 2>/dev/null; mount -o remount,ro /; sync
exec poweroff -ff
INIT
# The same words on both sides.
cat >"$files/sums-of" <<'SUMS'
#!/bin/sh
LC_ALL=C find bin boot etc lib lib64 sbin usr data -xdev -type f -print0 2>/dev/null | LC_ALL=C sort -z | xargs -0 cksum
SUMS
chmod +x "$files/init-test" "$files/sums-of"
if [ -n "$broken" ]; then
  rm "$files/boot/initrd.img-${kernel#vmlinuz-}"
  cp "$cache/initrd.narrow" "$files/boot/initrd.img-${kernel#vmlinuz-}"
fi
cat >"$files/boot/grub/grub.cfg" <<CFG
set timeout=0
menuentry "Debian" {
  search --no-floppy --fs-uuid --set=root $root_uuid
  linux /boot/$kernel root=UUID=$root_uuid ro console=ttyS0 init=/init-test panic=-1 ${CMDLINE:-}
  initrd /boot/initrd.img-${kernel#vmlinuz-}
}
CFG
printf 'search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n' "$root_uuid" >"$work/early.cfg"
loader() {
  local modules=(part_gpt part_msdos ext2 fat search search_fs_uuid configfile normal linux echo)
  LD_LIBRARY_PATH=$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu "$tree/usr/bin/grub-mkimage" -d "$tree/usr/lib/grub/$1" -O "$1" \
    -p /boot/grub -c "$work/early.cfg" -o "$work/loader" "${modules[@]}" "${@:2}"
}

mkfs() { mkfs.ext4 -q -F -E hash_seed=$2 -U "$2" -d "$3" "$1" "$4"; }

mkfs "$work/root.ext4" $root_uuid "$files" 900M
system=$out/system.raw
rm -f "$system" "$out/data.raw"
truncate -s 1G "$system"
if [ "$firmware" = efi ]; then
  sfdisk -q "$system" <<<'label: gpt
start=2048,size=16384,type=uefi
start=20480,type=linux'
  loader x86_64-efi
  truncate -s 8M "$work/esp"
  mformat -i "$work/esp" -N 00000001 ::
  mmd -i "$work/esp" ::/EFI ::/EFI/BOOT
  mcopy -i "$work/esp" "$work/loader" ::/EFI/BOOT/BOOTX64.EFI
  dd if="$work/esp" of="$system" bs=1M seek=1 conv=notrunc,sparse status=none
else
  sfdisk -q "$system" <<<'label: dos
start=20480,type=83,bootable'
  loader i386-pc biosdisk
  # GRUB's first sector loads what follows it; both as grub-mkimage leaves them. The table of partitions stays.
  dd if="$tree/usr/lib/grub/i386-pc/boot.img" of="$system" bs=1 count=440 conv=notrunc status=none
  dd if="$work/loader" of="$system" bs=512 seek=1 conv=notrunc status=none
fi
dd if="$work/root.ext4" of="$system" bs=1M seek=10 conv=notrunc,sparse status=none
if [ -n "$data" ]; then
  mkdir "$work/data"
  for n in $(seq 200); do seq "$n" 2000 >"$work/data/$n"; done
  mkfs "$work/data.ext4" $data_uuid "$work/data" 32M
  truncate -s 40M "$out/data.raw"
  sfdisk -q "$out/data.raw" <<<'label: gpt
start=2048,type=linux'
  dd if="$work/data.ext4" of="$out/data.raw" bs=1M seek=1 conv=notrunc,sparse status=none
  cp "$work/data"/* "$files/data/"
fi
(cd "$files" && sh ./sums-of | sha256sum | cut -d ' ' -f 1) >"$out/sums"
