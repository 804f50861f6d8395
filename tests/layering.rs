//! The layers of the library import only downwards.

use std::fs;
use std::path::{Path, PathBuf};

/// Every top-level module and those it may name besides itself.
const MAY_NAME: [(&str, &[&str]); 13] = [
    ("conversion", &[]),
    ("disk", &["conversion"]),
    ("worker", &["conversion", "disk", "files"]),
    ("stats", &["conversion"]),
    ("telemetry", &["conversion", "stats"]),
    ("control", &["conversion", "stats"]),
    ("notification", &["conversion", "stats"]),
    ("config", &["conversion", "notification"]),
    ("files", &["conversion"]),
    ("ledger", &["conversion", "files", "stats"]),
    ("executor", &["conversion", "files", "ledger", "stats"]),
    (
        "queue",
        &[
            "config",
            "control",
            "conversion",
            "disk::descriptor",
            "executor",
            "files",
            "ledger",
            "notification",
            "stats",
            "telemetry",
        ],
    ),
    (
        "cluster",
        &[
            "config",
            "control",
            "conversion",
            "executor",
            "files",
            "ledger",
            "notification",
            "queue",
            "stats",
            "telemetry",
        ],
    ),
];

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a folder of the package") {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// Every `crate::a` and `crate::a::b` that a source names, `crate::{a, b}` included.
fn named_modules(source: &str) -> Vec<String> {
    let mut named = Vec::new();
    for part in source.split("crate::").skip(1) {
        let path = |text: &str| {
            let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
            text[..end].trim_end_matches(':').to_owned()
        };
        match part.strip_prefix('{') {
            Some(list) => named.extend(list.split('}').next().unwrap_or("").split(',').map(|m| path(m.trim()))),
            None => named.push(path(part)),
        }
    }
    named
}

#[test]
fn a_layer_names_only_those_below_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_NAME {
        let mut files = vec![source.join(format!("{module}.rs"))];
        let folder = source.join(module);
        if folder.is_dir() {
            files.extend(rust_files(&folder));
        }
        for file in files.iter().filter(|f| f.exists()) {
            let text = fs::read_to_string(file).expect("a source file");
            let code: Vec<_> = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
            for named in named_modules(&code.join("\n")) {
                let top = named.split("::").next().unwrap_or("");
                let known = MAY_NAME.iter().any(|(m, _)| *m == top);
                let fits = top == module || allowed.iter().any(|a| named == *a || named.starts_with(&format!("{a}::")));
                if known && !fits {
                    wrong.push(format!("{} names crate::{named}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_folder_of_the_library_is_a_layer() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(source).expect("src") {
        let name = entry.expect("a folder entry").file_name().into_string().expect("a UTF-8 name");
        let name = name.trim_end_matches(".rs");
        let known = MAY_NAME.iter().any(|(m, _)| *m == name) || ["bin", "lib"].contains(&name);
        assert!(known, "src/{name} is no layer of the architecture");
    }
}

#[test]
fn the_check_sees_what_it_should() {
    assert_eq!(
        named_modules(
            "use crate::queue::settle::X; crate::{disk, ledger::Row}; use crate::disk::descriptor::references;"
        ),
        ["queue::settle::X", "disk", "ledger::Row", "disk::descriptor::references"]
    );
}
