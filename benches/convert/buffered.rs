// SPDX-License-Identifier: Apache-2.0
//! The program's own copy where direct I/O is refused.
//!
//! The file systems that refuse it here keep all of a file in memory, which a small cgroup could never hold. So this is the
//! copy that such a file system gets, made on one that does not refuse: source and output through the page cache.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use hyper2kvm::conversion::{Compression, OutputFormat};
use hyper2kvm::disk::source::{self, Limits};
use hyper2kvm::disk::{self, CopyControl, CopyOptions, Error, Region};

/// Copies the only disk of a source: the program's words for an output, SOURCE, `-o`, OUTPUT.
pub(crate) fn child(words: &[String]) -> Result<()> {
    let [words @ .., from, _, to] = words else { bail!("no source and output") };
    let mut options = CopyOptions { buffered: true, ..CopyOptions::default() };
    for word in words {
        match word.as_str() {
            "--format=raw" => options.format = OutputFormat::Raw,
            "--compress=zlib" => options.compress = Compression::Zlib,
            "--compress=zstd" => options.compress = Compression::Zstd,
            other => bail!("{other} is not known here"),
        }
    }
    let name = Path::new(from).file_name().and_then(|name| name.to_str()).context("a source has a name")?;
    let file = File::open(from)?;
    let len = file.metadata()?.len();
    let limits = Limits { max_virtual_size: u64::MAX, max_scratch_bytes: 0, ovf_option: None };
    let mut no_scratch = || Err(Error::writing("scratch file", 0, std::io::ErrorKind::Unsupported.into()));
    let source = source::open(&Region::whole(Arc::new(file), name, len), &[], &limits, &mut no_scratch)?;
    let output = File::options().read(true).write(true).create_new(true).open(to)?;
    disk::copy(&source.disks[0].image, &output, "output", &options, &CopyControl::default())?;
    Ok(())
}
