// SPDX-License-Identifier: Apache-2.0
//! The parts of a file's name.

use icu_normalizer::DecomposingNormalizerBorrowed;

/// Extensions that are accepted, in lower case.
pub(crate) const EXTENSIONS: [&str; 12] =
    ["vmdk", "ova", "ovf", "vhd", "vhdx", "raw", "img", "ami", "vdi", "qcow2", "hdd", "hds"];

/// Extensions of a file that is packed, in lower case; before it stands one of [`EXTENSIONS`], or `tar`.
pub(crate) const PACKED: [&str; 5] = ["gz", "xz", "zst", "bz2", "zip"];

/// Extensions of archives around one disk or one appliance, in lower case.
pub(crate) const ARCHIVES: [&str; 6] = ["zip", "tar", "tgz", "txz", "tzst", "tbz2"];

/// Extensions of a machine's description in its product's own form, in lower case.
pub(crate) const MACHINES: [&str; 7] = ["vmx", "vmxf", "vmtx", "vbox", "vmcx", "pvs", "xva"];

/// The name without its extension: all before the last dot, and of a packed disk all before the disk's own extension.
#[must_use]
pub fn stem(name: &str) -> &str {
    let Some((stem, last)) = name.rsplit_once('.') else { return name };
    if !is_one_of(&PACKED, last) {
        return stem;
    }
    stem.rsplit_once('.').filter(|(_, inner)| is_packable(inner)).map_or(stem, |(stem, _)| stem)
}

/// The extension without its dot: all after the last one, empty where there is none.
#[must_use]
pub(crate) fn extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// Whether a file of this name is taken: a disk or an appliance, packed or not.
#[must_use]
pub(crate) fn is_taken(name: &str) -> bool {
    let Some((stem, last)) = name.rsplit_once('.') else { return false };
    is_disk_extension(last)
        || is_one_of(&ARCHIVES, last)
        || (is_one_of(&PACKED, last) && stem.rsplit_once('.').is_some_and(|(_, inner)| is_packable(inner)))
}

/// Whether this is the extension of a disk or an appliance, in any case.
#[must_use]
pub(crate) fn is_disk_extension(extension: &str) -> bool {
    is_one_of(&EXTENSIONS, extension)
}

/// The name of what a file of this name packs; `None` where the name does not say that it packs anything.
#[must_use]
pub(crate) fn unpacked(name: &str) -> Option<String> {
    let (stem, last) = name.rsplit_once('.')?;
    if is_one_of(&PACKED, last) {
        return Some(stem.to_owned());
    }
    let is_packed_tar = is_one_of(&ARCHIVES, last) && !last.eq_ignore_ascii_case("tar");
    is_packed_tar.then(|| format!("{stem}.tar"))
}

/// By this two names are compared that may be spelled otherwise: without regard to case, and to whether an accent is a
/// character of its own, as macOS writes it.
#[must_use]
pub(crate) fn folded(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    DecomposingNormalizerBorrowed::new_nfd().normalize(&name.to_lowercase()).into_owned()
}

fn is_packable(extension: &str) -> bool {
    is_disk_extension(extension) || extension.eq_ignore_ascii_case("tar")
}

fn is_one_of(list: &[&str], extension: &str) -> bool {
    list.iter().any(|one| one.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_dot_parts_stem_and_extension() {
        for (name, parts) in
            [("vm.ova", ("vm", "ova")), ("a.b.vmdk", ("a.b", "vmdk")), ("vm", ("vm", "")), ("vm.", ("vm", ""))]
        {
            assert_eq!((stem(name), extension(name)), parts, "{name}");
        }
    }

    #[test]
    fn names_that_look_alike_are_folded_to_the_same() {
        for (one, other, alike) in [
            ("Disk.VMDK", "disk.vmdk", true),
            ("caf\u{e9}.vmdk", "cafe\u{301}.vmdk", true),
            ("CAF\u{c9}.vmdk", "cafe\u{301}.VMDK", true),
            ("\u{d55c}.vmdk", "\u{1112}\u{1161}\u{11ab}.vmdk", true),
            ("cafe.vmdk", "caf\u{e9}.vmdk", false),
            ("a.vmdk", "b.vmdk", false),
        ] {
            assert_eq!(folded(one) == folded(other), alike, "{one} {other}");
        }
    }

    #[test]
    fn a_packed_disk_has_two_extensions() {
        for (name, parts) in [
            ("vm.img.xz", ("vm", Some("vm.img"), true)),
            ("a.b.QCOW2.ZST", ("a.b", Some("a.b.QCOW2"), true)),
            ("vm.vhdx.zip", ("vm", Some("vm.vhdx"), true)),
            ("vm.tar.gz", ("vm", Some("vm.tar"), true)),
            ("vm.tgz", ("vm", Some("vm.tar"), true)),
            ("vm.zip", ("vm", Some("vm"), true)),
            ("vm.tar", ("vm", None, true)),
            ("vm.gz", ("vm", Some("vm"), false)),
            ("notes.txt.gz", ("notes.txt", Some("notes.txt"), false)),
            ("gz", ("gz", None, false)),
            ("vm.iso", ("vm", None, false)),
        ] {
            assert_eq!((stem(name), unpacked(name).as_deref(), is_taken(name)), parts, "{name}");
        }
    }
}
