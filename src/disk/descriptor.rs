//! What belongs together: bounded parsers of the two texts that name other files, OVF and VMDK descriptors.
//!
//! Nothing here opens a file. A name that comes out of here is a plain base name; whether it is there, and what is in
//! it, others find out.

pub mod ovf;
pub mod vmdk;

use super::Error;
use crate::conversion::Reason;
use crate::conversion::contract::{MAX_EXTENTS, NAME_MAX};

/// Longest descriptor that is read, in bytes. An OVF of 100 disks has about 100 KiB, a split disk of 8,192 extents with
/// the longest names 2.3 MiB.
pub const MAX_BYTES: usize = 4 << 20;
const _: () = assert!(MAX_EXTENTS * (NAME_MAX + 64) < MAX_BYTES);

/// Most disks, files or OVA members that one artifact may have (split VMDKs aside).
pub const MAX_MEMBERS: usize = 128;

/// What a primary's descriptor says about the files beside it, in the descriptor's order, each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Without these there is no conversion: disks and extents.
    pub required: Vec<String>,
    /// These belong to the artifact where they are there: manifest, certificate, NVRAM, CD images.
    pub optional: Vec<String>,
}

impl References {
    /// Whether the file stands alone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.optional.is_empty()
    }

    /// Whether `name` belongs to the artifact, required or not.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.required.iter().chain(&self.optional).any(|n| n == name)
    }
}

/// Which base names belong to the artifact whose primary is called `name` and begins with `bytes` (the whole file, or
/// its first [`MAX_BYTES`] + 1).
///
/// Only an `.ovf` and a VMDK text descriptor name others; every other file stands alone, whatever is in it.
///
/// # Errors
/// `UnsafeReference` where it names anything but a plain base name, a parent or a device; `Corrupt` and
/// `UnsupportedFormat` where the text can't be understood.
pub fn references(name: &str, bytes: &[u8]) -> Result<References, Error> {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    if extension.eq_ignore_ascii_case("ovf") {
        return Ok(ovf::parse(name, bytes)?.references(name));
    }
    if extension.eq_ignore_ascii_case("vmdk") && vmdk::is_text(bytes) {
        return vmdk::parse(name, bytes)?.references(name);
    }
    Ok(References::default())
}

/// Whether a file of this name is most likely an extent of a VMDK descriptor that comes later: `vm-flat.vmdk`,
/// `vm-s001.vmdk`, `vm-f001.vmdk`.
#[must_use]
pub fn looks_like_extent(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let Some((_, suffix)) = name.strip_suffix(".vmdk").and_then(|stem| stem.rsplit_once('-')) else {
        return false;
    };
    let numbered = |digits: &str| digits.len() >= 3 && digits.bytes().all(|b| b.is_ascii_digit());
    suffix == "flat" || suffix.strip_prefix(['s', 'f']).is_some_and(numbered)
}

/// Takes `name`, which `file` names, for a base name in the same directory.
///
/// # Errors
/// `UnsafeReference` for anything else: a path, a drive, `..`, a URL, control characters, over 255 bytes.
pub fn plain_name(file: &str, name: &str) -> Result<String, Error> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control);
    if plain {
        return Ok(name.to_owned());
    }
    Err(Error::refuse(Reason::UnsafeReference, file, format!("names {}, which is no plain file name", shown(name))))
}

/// A foreign text as a message may show it: escaped, and cut at 80 characters.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(references(name, text).unwrap(), References::default(), "{name}");
        }
        assert_eq!(references("vm.vmdk", b"KDMV\x01\0\0\0").unwrap(), References::default());
        assert_eq!(references("vm.VMDK", text).unwrap_err().reason, Reason::UnsafeReference);
    }
}
