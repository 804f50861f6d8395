#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes disks of a real Debian with host-only dracut, which boots by its own systemd and tells what it finds.
#
#   whole.sh CACHE OUT bios|efi|cards|lvm
#
# CACHE/tree is what debian.sh made. OUT gets system.raw, with lvm also data.raw, and sums: the digest of the list of its
# files' digests. Its initramfs knows VMware's controllers and SATA alone.
#
#   bios   GRUB by BIOS, ext4, /dev/sda1 in fstab; ens192 by DHCP
#   efi    GRUB on an EFI system partition under \EFI\debian alone, as a machine with an entry in NVRAM has it
#   cards  bios with two cards: ens192 by DHCP, ens224 with an address of its own
#   lvm    bios, /boot on ext4, / on XFS on a logical volume across two disks; dracut by lz4
#
# Needs root, and for lvm loop devices and a kernel that mounts XFS; no device mapper.
set -euo pipefail
cache=$1 out=$2 kind=$3
export PATH=$PATH:/usr/sbin:/sbin SOURCE_DATE_EPOCH=0
root_uuid=6c1f0f1e-0000-4000-8000-000000000011
boot_uuid=6c1f0f1e-0000-4000-8000-000000000012
[ -d "$cache/tree" ] || { echo "whole.sh: debian.sh has made no $cache/tree" >&2; exit 1; }
tree=$cache/dracut

# Runs a command in a tree, with the kernel's file systems for as long as it lasts.
within() {
  # shellcheck disable=SC2016
  unshare -m sh -c 'mount -t proc proc "$0/proc" && mount -t sysfs sys "$0/sys" && mount --bind /dev "$0/dev" && exec chroot "$0" "$@"' "$@"
}

# Half a tree of an earlier run is worth nothing: it is renamed when it is whole.
make_tree() {
  local new=$cache/new.dracut kernel
  rm -rf "$new"
  cp -a "$cache/tree" "$new"
  cp /etc/resolv.conf "$new/etc/resolv.conf"
  within "$new" sh -c 'apt-get -o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false update &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends dracut lvm2 xfsprogs lz4' >"$cache/dracut.log" 2>&1 ||
    { tail -n 5 "$cache/dracut.log" >&2; return 1; }
  kernel=$(ls "$new/lib/modules")
  cat >"$new/etc/dracut.conf.d/machine.conf" <<'CONF'
hostonly=yes
hostonly_cmdline=no
omit_drivers+=" virtio virtio_ring virtio_blk virtio_pci virtio_scsi virtio_net "
add_drivers+=" vmw_pvscsi mptspi ahci sd_mod "
CONF
  within "$new" dracut --force --filesystems ext4 --omit lvm --compress=zstd /tmp/initrd.ext4 "$kernel" >>"$cache/dracut.log" 2>&1
  within "$new" dracut --force --filesystems xfs --add lvm --compress=lz4 /tmp/initrd.lvm "$kernel" >>"$cache/dracut.log" 2>&1
  mv "$new/tmp/initrd.ext4" "$new/tmp/initrd.lvm" "$cache/"
  finish_tree "$new"
  rm -rf "$tree"
  mv "$new" "$tree"
}

finish_tree() {
  local new=$1
  rm -rf "$new"/usr/share/{doc,man,locale,info} "$new"/var/cache/apt "$new"/var/lib/apt/lists "$new"/boot/initrd* \
    "$new"/usr/lib/python3* "$new"/usr/share/python3 "$new"/etc/resolv.conf
  echo guest >"$new/etc/hostname"
  # A login would hang up the line that the guest tells by.
  ln -sf /dev/null "$new/etc/systemd/system/serial-getty@ttyS0.service"
  echo uninitialized >"$new/etc/machine-id"
  cat >"$new/etc/systemd/system/tell.service" <<'UNIT'
[Unit]
After=multi-user.target network-online.target
[Service]
Type=oneshot
ExecStart=/bin/sh /usr/lib/tell
StandardOutput=file:/dev/ttyS0
StandardError=inherit
UNIT
  mkdir -p "$new/etc/systemd/system/multi-user.target.wants"
  ln -s ../tell.service "$new/etc/systemd/system/multi-user.target.wants/tell.service"
  cat >"$new/usr/lib/tell" <<'TELL'
echo "TEST root $(findmnt -no SOURCE,FSTYPE / | tr -s ' ')"
echo "TEST firmware $([ -d /sys/firmware/efi ] && echo efi || echo bios)"
for card in /sys/class/net/*/device/driver; do
  name=${card%/device/driver} name=${name##*/}
  echo "TEST card $name $(cat "/sys/class/net/$name/address") $(ip -4 -br addr show "$name" | tr -s ' ' | cut -d ' ' -f 2-)"
done
echo "TEST failed $(systemctl --failed --no-legend --plain | cut -d ' ' -f 1 | tr '\n' ' ')"
cd / && echo "TEST sums $(sh /usr/lib/sums-of | sha256sum | cut -d ' ' -f 1)"
echo "TEST end"
systemctl poweroff --no-block
TELL
  # The same words on both sides: every file but those that a fix or a boot may write.
  cat >"$new/usr/lib/sums-of" <<'SUMS'
LC_ALL=C find boot etc usr -xdev -type f ! -name '*hyper2kvm*' ! -path 'boot/initrd*' ! -path 'boot/grub/*' ! -path 'boot/efi/*' ! -path etc/fstab \
  ! -path etc/machine-id ! -path etc/resolv.conf ! -path etc/adjtime ! -path etc/.updated ! -path 'etc/lvm/*' ! -path etc/mtab \
  -print0 | LC_ALL=C sort -z | xargs -0 cksum
SUMS
}

mkdir -p "$cache" "$out"
exec 9>"$cache/lock"
flock 9
[ -d "$tree" ] || make_tree
work=$(mktemp -d -p "$cache")
trap 'rm -rf "$work"' EXIT
cp -al "$tree" "$work/files"
files=$work/files
kernel=$(cd "$files/boot" && ls vmlinuz-*)
version=${kernel#vmlinuz-}
image=/boot/$kernel initrd=/boot/initrd.img-$version root=UUID=$root_uuid search=$root_uuid
rm -f "$files/etc/fstab" "$files/etc/network/interfaces"
printf 'auto lo\niface lo inet loopback\nauto ens192\niface ens192 inet dhcp\n' >"$files/etc/network/interfaces"
[ "$kind" != cards ] || printf 'auto ens224\niface ens224 inet static\n  address 192.0.2.7/24\n' >>"$files/etc/network/interfaces"
case $kind in
  lvm)
    cp "$cache/initrd.lvm" "$files$initrd"
    printf '/dev/mapper/rl-root / xfs defaults 0 0\nUUID=%s /boot ext4 defaults 0 2\n' $boot_uuid >"$files/etc/fstab"
    image=/$kernel initrd=/${initrd#/boot/} root=/dev/mapper/rl-root search=$boot_uuid
    ;;
  efi)
    cp "$cache/initrd.ext4" "$files$initrd"
    printf 'UUID=%s / ext4 errors=remount-ro 0 1\nUUID=0000-0001 /boot/efi vfat umask=0077 0 1\n' $root_uuid >"$files/etc/fstab"
    mkdir -p "$files/boot/efi"
    ;;
  *)
    cp "$cache/initrd.ext4" "$files$initrd"
    echo '/dev/sda1 / ext4 errors=remount-ro 0 1' >"$files/etc/fstab"
    ;;
esac
[ "$kind" = lvm ] || chmod 0644 "$files$initrd"
cat >"$files/boot/grub/grub.cfg" <<CFG
set timeout=0
menuentry "Debian" {
  search --no-floppy --fs-uuid --set=root $search
  linux $image root=$root ro console=ttyS0 panic=-1 rd.shell=0 rd.emergency=poweroff
  initrd $initrd
}
CFG
prefix=/boot/grub
[ "$kind" != lvm ] || prefix=/grub
printf 'search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)%s\nconfigfile $prefix/grub.cfg\n' "$search" $prefix >"$work/early.cfg"
loader() {
  local modules=(part_gpt part_msdos ext2 fat search search_fs_uuid configfile normal linux echo)
  LD_LIBRARY_PATH=$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu "$tree/usr/bin/grub-mkimage" -d "$tree/usr/lib/grub/$1" -O "$1" \
    -p $prefix -c "$work/early.cfg" -o "$work/loader" "${modules[@]}" "${@:2}"
}
mkfs() { mkfs.ext4 -q -F -E hash_seed=$2 -U "$2" -d "$3" "$1" "$4"; }
(cd "$files" && sh usr/lib/sums-of | sha256sum | cut -d ' ' -f 1) >"$out/sums"

system=$out/system.raw
rm -f "$system" "$out/data.raw"
truncate -s 1400M "$system"
by_bios() {
  loader i386-pc biosdisk
  # GRUB's first sector loads what follows it; both as grub-mkimage leaves them. The table of partitions stays.
  dd if="$tree/usr/lib/grub/i386-pc/boot.img" of="$system" bs=1 count=440 conv=notrunc status=none
  dd if="$work/loader" of="$system" bs=512 seek=1 conv=notrunc status=none
}
put() { dd if="$1" of="$system" bs=1M seek="$2" conv=notrunc,sparse status=none; }
case $kind in
  bios | cards)
    sfdisk -q "$system" <<<'label: dos
start=20480,type=83,bootable'
    by_bios
    mkfs "$work/root.ext4" $root_uuid "$files" 1200M
    put "$work/root.ext4" 10
    ;;
  efi)
    sfdisk -q "$system" <<<'label: gpt
start=2048,size=16384,type=uefi
start=20480,type=linux'
    loader x86_64-efi
    truncate -s 8M "$work/esp"
    mformat -i "$work/esp" -N 00000001 ::
    mmd -i "$work/esp" ::/EFI ::/EFI/debian
    mcopy -i "$work/esp" "$work/loader" ::/EFI/debian/grubx64.efi
    put "$work/esp" 1
    mkfs "$work/root.ext4" $root_uuid "$files" 1200M
    put "$work/root.ext4" 10
    ;;
  lvm)
    sfdisk -q "$system" <<<'label: dos
start=20480,size=245760,type=83,bootable
start=266240,type=8e'
    by_bios
    mv "$files/boot" "$work/boot"
    mkdir "$files/boot"
    mkfs "$work/boot.ext4" $boot_uuid "$work/boot" 120M
    put "$work/boot.ext4" 10
    truncate -s 600M "$out/data.raw"
    . "$(dirname "$0")/volumes.sh"
    ;;
  *) echo "whole.sh: $kind?" >&2; exit 2 ;;
esac
