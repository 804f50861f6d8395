// SPDX-License-Identifier: Apache-2.0
//! Failures in the words that help a person who runs this program by hand.

use std::borrow::Cow;
use std::path::Path;

use hyper2kvm::conversion::{Failure, Phase, Reason, Remedy, printable_json, stem};

/// Exit code of a wrong call, clap's own.
pub(crate) const USAGE: u8 = 2;

/// The exit code of a conversion or an inspection by hand: a name that was mistyped is a wrong call.
pub(crate) fn exit_code(failure: &Failure) -> u8 {
    if failure.reason == Reason::SourceMissing { USAGE } else { failure.exit_code() }
}

/// `failure` of `source` with what helps by hand, where its suggestion is for a daemon or names no file.
pub(crate) fn by_hand(mut failure: Failure, source: &Path) -> Failure {
    let name = source.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let known = Remedy::of_text(&failure.suggestion);
    let suggestion: Cow<'static, str> = match (failure.reason, known) {
        (_, Some(Remedy::RemoveManifest)) if name.to_ascii_lowercase().ends_with(".ovf") => format!(
            "Copy the files again; where somebody changed {name} on purpose, remove its manifest {}.mf",
            stem(&name)
        )
        .into(),
        (_, Some(Remedy::ConvertByQemuImg)) if is_plain(&name) => {
            format!("Convert it first: qemu-img convert -O qcow2 {name} {}.qcow2", stem(&name)).into()
        }
        (Reason::TooLarge, None) if failure.needed_bytes.is_none() => {
            "Raise --max-virtual-size if this image is trusted".into()
        }
        (Reason::MissingMember, None) => "Copy every file of the export into one directory".into(),
        (Reason::PermissionDenied, None) if failure.phase != Phase::OutputDirectoryCreation => {
            Remedy::LetRead.text().into()
        }
        (Reason::OutOfMemory, None) => "Use fewer --threads, or a machine with more memory".into(),
        (Reason::SourceIO, None) => "Check the disk or network volume that the source lies on (dmesg)".into(),
        _ => return failure,
    };
    failure.suggestion = suggestion.into_owned();
    failure
}

/// Whether a shell takes the name for one word as it is, and `qemu-img` for a name.
fn is_plain(name: &str) -> bool {
    !name.starts_with('-') && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_+".contains(c))
}

/// The refusal as `--json` shows it, by `inspect` and `convert` alike; without a reason where the call itself is wrong.
pub(crate) fn json(failure: Option<&Failure>, message: &str, suggestion: &str) -> String {
    let refusal = match failure {
        Some(failure) => serde_json::to_value(Failure { suggestion: suggestion.to_owned(), ..failure.clone() }),
        None => Ok(serde_json::json!({"message": message, "suggestion": suggestion})),
    };
    let refusal = refusal.expect("texts and numbers serialise");
    let text = serde_json::to_string_pretty(&serde_json::json!({"accepted": false, "refusal": refusal}));
    printable_json(&text.expect("texts and numbers serialise")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_by_hand_speaks_of_the_call_and_its_files() {
        let told = |reason, remedy: Option<Remedy>, source: &str| {
            by_hand(Failure::new(reason, "x").with_remedy(remedy), Path::new(source)).suggestion
        };
        for (reason, remedy, source, words) in [
            (
                Reason::ManifestMismatch,
                None,
                "/a/web01.ovf",
                "changed web01.ovf on purpose, remove its manifest web01.mf",
            ),
            (Reason::ManifestMismatch, None, "/a/web01.ova", "remove its manifest (NAME.mf)"),
            (Reason::UnsupportedFormat, Some(Remedy::ConvertByQemuImg), "b/vm.qed", "convert -O qcow2 vm.qed vm.qcow2"),
            (Reason::UnsupportedFormat, Some(Remedy::ConvertByQemuImg), "a;b.qed", "convert -O qcow2 FILE NAME.qcow2"),
            (Reason::UnsupportedFormat, Some(Remedy::ConvertByQemuImg), "-a.qed", "convert -O qcow2 FILE NAME.qcow2"),
            (Reason::TooLarge, None, "a.raw", "--max-virtual-size"),
            (Reason::MissingMember, None, "a.ovf", "into one directory"),
            (Reason::PermissionDenied, None, "a.raw", "Let this user read it"),
            (Reason::Truncated, None, "a.raw", "compare its size"),
        ] {
            let told = told(reason, remedy, source);
            assert!(told.contains(words), "{reason} {source}: {told}");
        }
    }
}
