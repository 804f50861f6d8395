// SPDX-License-Identifier: Apache-2.0
//! What the name of the output says of its format.

use std::ffi::OsStr;
use std::path::Path;

use hyper2kvm::conversion::OutputFormat;

/// Extensions that other programs, or this one, take for a disk in another form. An output under any other extension is
/// known by its content.
const OTHERS: [&str; 27] = [
    "vmdk", "ova", "ovf", "vhd", "vhdx", "hdd", "hds", "ami", "avhd", "avhdx", "vhdfixed", "qcow", "qed", "dmg", "iso",
    "dd", "gz", "xz", "zst", "bz2", "zip", "tar", "tgz", "txz", "tzst", "tbz2", "7z",
];

/// The format that the extension of `output` names, if it is one that is written.
pub(super) fn format(output: &Path) -> Option<OutputFormat> {
    match extension(output)?.as_str() {
        "qcow2" => Some(OutputFormat::Qcow2),
        "raw" | "img" => Some(OutputFormat::Raw),
        "vdi" => Some(OutputFormat::Vdi),
        _ => None,
    }
}

/// Refuses a name under which the output would be taken for something else. `asked` is what `--format` says.
pub(super) fn check(output: &Path, asked: Option<OutputFormat>) -> Result<(), String> {
    let Some(extension) = extension(output) else { return Ok(()) };
    let shown = output.display();
    let fits = |asked: OutputFormat| match extension.as_str() {
        "img" => asked != OutputFormat::Vdi,
        "ami" | "dd" => asked == OutputFormat::Raw,
        _ => format(output) == Some(asked),
    };
    match asked {
        Some(asked) if fits(asked) => Ok(()),
        None if format(output).is_some() => Ok(()),
        Some(asked) if format(output).is_some() => Err(format!("{shown}: --format {asked} does not fit its extension")),
        asked if OTHERS.contains(&extension.as_str()) => {
            let asked = asked.unwrap_or(OutputFormat::Qcow2);
            let better = output.with_extension(asked.to_string());
            let better = better.display();
            Err(format!("{shown}: {extension} is not written; outputs are qcow2, raw and vdi. Call it {better}"))
        }
        _ => Ok(()),
    }
}

fn extension(output: &Path) -> Option<String> {
    output.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_never_written_under_the_name_of_another_format() {
        use OutputFormat::{Qcow2, Raw, Vdi};
        for (output, asked, words) in [
            ("x.vmdk", None, Some("x.vmdk: vmdk is not written; outputs are qcow2, raw and vdi. Call it x.qcow2")),
            ("a/x.VHDX", Some(Raw), Some("Call it a/x.raw")),
            ("x.raw", Some(Qcow2), Some("x.raw: --format qcow2 does not fit its extension")),
            ("x.qcow2", Some(Vdi), Some("does not fit")),
            ("x.img", Some(Vdi), Some("does not fit")),
            ("x.dd", None, Some("dd is not written")),
            ("x.img.gz", None, Some("gz is not written")),
            ("x.iso", Some(Raw), Some("iso is not written")),
            ("x.img", Some(Qcow2), None),
            ("x.RAW", Some(Raw), None),
            ("x.dd", Some(Raw), None),
            ("x.ami", Some(Raw), None),
            ("x", None, None),
            ("web01.example", None, None),
            ("web01.2026", Some(Raw), None),
        ] {
            let told = check(Path::new(output), asked);
            match words {
                None => assert_eq!(told, Ok(()), "{output}"),
                Some(words) => assert!(told.as_ref().is_err_and(|told| told.contains(words)), "{output}: {told:?}"),
            }
        }
        for (output, expected) in [("x.RAW", Some(Raw)), ("x.img", Some(Raw)), ("x.vdi", Some(Vdi)), ("x", None)] {
            assert_eq!(format(Path::new(output)), expected, "{output}");
        }
    }
}
