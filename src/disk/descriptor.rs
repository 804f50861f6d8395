// SPDX-License-Identifier: Apache-2.0
//! Which files belong together: bounded parsers of the two texts that name other files, OVF and VMDK descriptors.
//!
//! Nothing here opens a file. Every name that is returned is a plain base name; whether the file exists and what is in
//! it is checked elsewhere.

pub(crate) mod hyperv;
#[cfg(test)]
pub(crate) mod mutation;
mod names;
pub(crate) mod ovf;
pub(crate) mod vmdk;
pub(crate) mod vmx;

#[cfg(test)]
use self::names::plain_name;
pub(crate) use self::names::shown;
pub(crate) use self::names::{MAX_BYTES, MAX_MEMBERS, References, StatedSize};
use super::Error;
use crate::conversion::file_name::extension;

/// Which base names belong to the artifact whose primary is called `name` and begins with `bytes` (the whole file, or
/// its first [`MAX_BYTES`] + 1). `option` is the deployment option of an OVF; absent: its default one.
///
/// Only an `.ovf` and a VMDK text descriptor name others; every other file stands alone, whatever is in it.
///
/// # Errors
/// `UnsafeReference` where it names a parent, a device, or anything but a plain base name; `Corrupt` and
/// `UnsupportedFormat` where the text can't be understood.
pub(crate) fn references(name: &str, bytes: &[u8], option: Option<&str>) -> Result<References, Error> {
    let extension = extension(name);
    if extension.eq_ignore_ascii_case("ovf") {
        return Ok(ovf::parse(name, bytes, option)?.references(name));
    }
    if extension.eq_ignore_ascii_case("vmdk") && vmdk::is_text(bytes) {
        return vmdk::parse(name, bytes)?.references(name);
    }
    Ok(References::default())
}

/// Whether a file of this name is most likely an extent of a VMDK descriptor that comes later: `vm-flat.vmdk`,
/// `vm-s001.vmdk`, `vm-f001.vmdk`, or one of a kind that is not read.
#[must_use]
pub(crate) fn looks_like_extent(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let Some((_, suffix)) = name.strip_suffix(".vmdk").and_then(|stem| stem.rsplit_once('-')) else {
        return false;
    };
    let numbered = |digits: &str| digits.len() >= 3 && digits.bytes().all(|b| b.is_ascii_digit());
    matches!(suffix, "flat" | "delta" | "sesparse" | "rdm" | "rdmp")
        || suffix.strip_prefix(['s', 'f']).is_some_and(numbered)
}

/// The usual name of the descriptor of an extent; `None` where the name is not that of an extent.
#[must_use]
pub(crate) fn descriptor_of(name: &str) -> Option<String> {
    let (stem, _) = name.rsplit_once('-').filter(|_| looks_like_extent(name))?;
    Some(format!("{stem}.vmdk"))
}

/// Whether an extent of this name may be a whole disk.
#[must_use]
pub(crate) fn is_flat_extent(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with("-flat.vmdk")
}

/// What to do with an extent of `bytes` bytes that has no descriptor, for a person.
#[must_use]
pub(crate) fn without_descriptor(name: &str, bytes: u64) -> String {
    let stem = name.rsplit_once('-').map_or(name, |(stem, _)| stem);
    let bring = format!("bring the descriptor ({stem}.vmdk) and every file that it names");
    // The other kinds are no disk by themselves.
    if is_flat_extent(name) {
        return format!("{bring}, or rename it to {stem}.raw if its {bytes} bytes are the whole disk");
    }
    bring
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversion::Reason;

    #[test]
    fn extents_are_known_by_their_names() {
        for name in ["vm-flat.vmdk", "VM-FLAT.VMDK", "vm-s001.vmdk", "vm-f012.vmdk", "a-b-s1234.vmdk"] {
            assert!(looks_like_extent(name), "{name}");
        }
        for name in ["vm.vmdk", "flat.vmdk", "vm-flat.raw", "vm-s1.vmdk", "vm-disk1.vmdk", "vm-s0x1.vmdk", "-flat"] {
            assert!(!looks_like_extent(name), "{name}");
        }
    }

    #[test]
    fn only_a_base_name_is_plain() {
        for name in ["disk.vmdk", "-x.vmdk", "a,b.vmdk", "ü.vmdk", "a..b", ".hidden", &"x".repeat(255)] {
            assert_eq!(plain_name("vm.ovf", name).unwrap(), name);
        }
        let long = "x".repeat(256);
        for name in ["", ".", "..", "/etc/shadow", "../x", "a/b", "a\\b", "c:x", "nbd://h", "a\nb", "a\0b", &long] {
            let error = plain_name("vm.ovf", name).unwrap_err();
            assert_eq!(error.reason, Reason::UnsafeReference, "{name:?}");
            assert!(!error.to_string().contains(['\n', '\0']));
        }
    }

    #[test]
    fn a_file_that_is_no_descriptor_stands_alone() {
        let text = b"# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"/etc/shadow\" 0\n";
        for name in ["vm.raw", "vm.ova", "vm", "vm.qcow2"] {
            assert_eq!(references(name, text, None).unwrap(), References::default(), "{name}");
        }
        assert_eq!(references("vm.vmdk", b"KDMV\x01\0\0\0", None).unwrap(), References::default());
        assert_eq!(references("vm.VMDK", text, None).unwrap_err().reason, Reason::UnsafeReference);
    }
}
