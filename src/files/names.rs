// SPDX-License-Identifier: Apache-2.0
//! Names that never collide and never exceed the file system's limit.

use sha2::{Digest, Sha256};

use crate::conversion::contract::NAME_MAX;
use crate::conversion::{file_name, hex};

const ERROR_SUFFIX: &str = ".error.json";

/// Stem and extension (with its dot) of a file name; a leading dot begins no extension.
#[must_use]
pub(crate) fn split(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(dot) if dot > 0 => name.split_at(dot),
        _ => (name, ""),
    }
}

/// The `k`-th name for a file: `vm.vmdk`, `vm-1.vmdk`, `vm-2.vmdk`; of a packed one `vm-1.raw.gz`, which is taken like
/// the first. The stem is cut where the whole would be longer than [`NAME_MAX`].
#[must_use]
pub(crate) fn suffixed_file(name: &str, k: u32) -> String {
    let stem = file_name::stem(name);
    let is_disk = !stem.is_empty() && file_name::is_taken(name);
    let (stem, extension) = if is_disk { name.split_at(stem.len()) } else { split(name) };
    numbered(stem, extension, k)
}

/// The `k`-th name for a directory: `vm`, `vm-1`, `vm-2`; dots are part of it.
#[must_use]
pub(crate) fn suffixed_dir(stem: &str, k: u32) -> String {
    numbered(stem, "", k)
}

fn numbered(stem: &str, extension: &str, k: u32) -> String {
    let tail = if k == 0 { extension.to_owned() } else { format!("-{k}{extension}") };
    if stem.len() + tail.len() <= NAME_MAX {
        return format!("{stem}{tail}");
    }
    match NAME_MAX.checked_sub(tail.len()).filter(|&room| room > 0) {
        Some(room) => format!("{}{tail}", cut(stem, room)),
        // An extension that leaves no room for a stem does not count as one.
        None => numbered(&format!("{stem}{extension}"), "", k),
    }
}

/// Name of the error report beside the file `name`: `{name}.error.json`, or, where that would be too long, the
/// beginning of the name, `~` and eight hex digits of its SHA-256 in front of the suffix.
#[must_use]
pub(crate) fn error_file(name: &str) -> String {
    if name.len() + ERROR_SUFFIX.len() <= NAME_MAX {
        return format!("{name}{ERROR_SUFFIX}");
    }
    let digest = fingerprint(name);
    let room = NAME_MAX - ERROR_SUFFIX.len() - 1 - digest.len();
    format!("{}~{digest}{ERROR_SUFFIX}", cut(name, room))
}

/// Name of the temporary file that becomes `name`: hidden, and always the same, so that a crash leaves at most one,
/// which the next write overwrites.
#[must_use]
pub(crate) fn temporary(name: &str) -> String {
    format!(".{}.tmp", fingerprint(name))
}

fn fingerprint(name: &str) -> String {
    hex(&Sha256::digest(name.as_bytes())[..4])
}

/// The longest beginning of `text` of at most `bytes` that splits no character.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_goes_before_the_extension_of_a_file_and_after_a_directory() {
        for (name, k, file, dir) in [
            ("vm.vmdk", 0, "vm.vmdk", "vm.vmdk"),
            ("vm.vmdk", 1, "vm-1.vmdk", "vm.vmdk-1"),
            ("vm.1.vmdk", 12, "vm.1-12.vmdk", "vm.1.vmdk-12"),
            ("vm", 2, "vm-2", "vm-2"),
            ("vm.raw.gz", 1, "vm-1.raw.gz", "vm.raw.gz-1"),
            ("vm.tar.XZ", 2, "vm-2.tar.XZ", "vm.tar.XZ-2"),
            ("notes.txt.gz", 1, "notes.txt-1.gz", "notes.txt.gz-1"),
            (".raw.gz", 1, ".raw-1.gz", ".raw.gz-1"),
            ("-rf", 1, "-rf-1", "-rf-1"),
            (".vmdk", 1, ".vmdk-1", ".vmdk-1"),
        ] {
            assert_eq!(suffixed_file(name, k), file);
            assert_eq!(suffixed_dir(name, k), dir);
        }
    }

    #[test]
    fn no_name_grows_beyond_the_limit() {
        let ascii = format!("{}.vmdk", "x".repeat(250));
        let umlauts = format!("{}x.raw", "ü".repeat(125));
        let dotted = format!("a.{}", "x".repeat(253));
        for name in [&ascii, &umlauts, &dotted] {
            for k in [0, 1, 100, u32::MAX] {
                assert!(suffixed_file(name, k).len() <= NAME_MAX);
                assert!(suffixed_dir(name, k).len() <= NAME_MAX);
            }
            let error = error_file(name);
            assert!(error.len() <= NAME_MAX && error.ends_with(ERROR_SUFFIX), "{error}");
        }
        assert_eq!(suffixed_file(&ascii, 1), format!("{}-1.vmdk", "x".repeat(248)));
    }

    #[test]
    fn two_long_names_have_two_error_files_and_each_always_the_same_one() {
        let (a, b) = (format!("{}a", "x".repeat(254)), format!("{}b", "x".repeat(254)));
        assert_eq!(error_file(&a), error_file(&a));
        assert_ne!(error_file(&a), error_file(&b));
        assert_eq!(error_file("vm.vmdk"), "vm.vmdk.error.json");
    }
}
