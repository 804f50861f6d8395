// SPDX-License-Identifier: Apache-2.0
//! How output files are called.

use crate::conversion::OutputFormat;
use crate::conversion::contract::NAME_MAX;

/// Base names for `count` disks of an artifact: `{stem}.qcow2`, or `{stem}-disk0.qcow2` … for several. A stem that
/// would make a name too long is cut.
#[must_use]
pub fn disk_names(stem: &str, count: usize, format: OutputFormat) -> Vec<String> {
    (0..count)
        .map(|n| {
            let suffix = if count == 1 { format!(".{format}") } else { format!("-disk{n}.{format}") };
            let cut = stem.floor_char_boundary(NAME_MAX - suffix.len());
            format!("{}{suffix}", &stem[..cut])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disk_is_called_as_its_source_and_several_are_numbered() {
        assert_eq!(disk_names("vm", 1, OutputFormat::Qcow2), ["vm.qcow2"]);
        assert_eq!(disk_names("vm", 2, OutputFormat::Raw), ["vm-disk0.raw", "vm-disk1.raw"]);
    }

    #[test]
    fn no_name_is_too_long_for_the_file_system() {
        let stem = "ü".repeat(126);
        let names = disk_names(&stem, 11, OutputFormat::Qcow2);
        assert!(names.iter().all(|n| n.len() <= NAME_MAX && n.starts_with("üü")));
        assert!(names[10].ends_with("ü-disk10.qcow2"));
    }
}
