#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A part of whole.sh: makes the volume group `rl` of system.raw's second partition and data.raw, with an XFS of the guest's
# files in `rl/root`. LVM writes all that is on the disks but the volume's own entry: to make a volume it wants a device
# mapper, which not every host has; to restore a group from a text it does not.
extent=$((4 << 20)) partition=$((266240 * 512))

# The files, in an XFS of as many extents as both disks have.
attach() { losetup -f --show "$@"; }
first=$(attach -o $partition "$system")
second=$(attach "$out/data.raw")
detach() {
  umount "$work/root" 2>/dev/null || true
  losetup -d "$first" "$second"
}
trap 'detach; rm -rf "$work"' EXIT
lvm() { command lvm "$@" --config "devices { filter = [ \"a|^$first\$|\", \"a|^$second\$|\", \"r|.*|\" ] }" >>"$work/lvm.log" 2>&1 9>&-; }
lvm pvcreate -y "$first" "$second" && lvm vgcreate -s 4m -y rl "$first" "$second" && lvm vgcfgbackup -f "$work/group" rl ||
  { tail -n 5 "$work/lvm.log" >&2; exit 1; }
mapfile -t counts < <(sed -n 's/.*pe_count = \([0-9]*\).*/\1/p' "$work/group")
of_first=${counts[0]} of_second=${counts[1]}
start=$(($(sed -n 's/.*pe_start = \([0-9]*\).*/\1/p;T;q' "$work/group") * 512))

segment() {
  printf 'segment%d {\nstart_extent = %d\nextent_count = %d\ntype = "striped"\nstripe_count = 1\nstripes = ["pv%d", 0]\n}\n' \
    "$1" "$2" "$3" $(($1 - 1))
}
# The volume stands behind the group's last one, which is its physical volumes.
{
  awk '/^}/ && !done { exit } { print }' "$work/group"
  printf 'logical_volumes {\nroot {\nid = "000000-0000-0000-0000-0000-0000-000001"\nstatus = ["READ", "WRITE", "VISIBLE"]\nflags = []\nsegment_count = 2\n'
  segment 1 0 "$of_first"
  segment 2 "$of_first" "$of_second"
  printf '}\n}\n'
  awk '/^}/ { found = 1 } found { print }' "$work/group"
} >"$work/restored"
lvm vgcfgrestore -f "$work/restored" rl || { tail -n 5 "$work/lvm.log" >&2; exit 1; }

truncate -s $(((of_first + of_second) * extent)) "$work/root.xfs"
mkfs.xfs -q "$work/root.xfs"
mkdir "$work/root"
mount -o loop "$work/root.xfs" "$work/root"
cp -a "$files/." "$work/root/"
umount "$work/root"
dd if="$work/root.xfs" of="$system" bs=1M seek=$(((partition + start) >> 20)) count=$((of_first * extent >> 20)) conv=notrunc,sparse status=none
dd if="$work/root.xfs" of="$out/data.raw" bs=1M seek=$((start >> 20)) skip=$((of_first * extent >> 20)) conv=notrunc,sparse status=none
detach
trap 'rm -rf "$work"' EXIT
