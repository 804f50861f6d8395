//! Copies one disk image with the library alone: `copy_disk SOURCE OUTPUT [raw|none|zlib|zstd|zlib-strict] [THREADS]`.

use std::fs::File;
use std::sync::Arc;

use anyhow::Context;
use hyper2kvm::conversion::{Compression, OutputFormat};
use hyper2kvm::disk::pipeline::{CopyControl, CopyOptions, copy};
use hyper2kvm::disk::{Image, Region};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: copy_disk SOURCE OUTPUT [raw|none|zlib|zstd|zlib-strict] [THREADS]";
    let (source, output) = (arguments.next().context(usage)?, arguments.next().context(usage)?);
    let mut options = CopyOptions::default();
    match arguments.next().as_deref() {
        None | Some("none") => {}
        Some("raw") => options.format = OutputFormat::Raw,
        Some("zlib") => options.compress = Compression::Zlib,
        Some("zstd") => options.compress = Compression::Zstd,
        Some("zlib-strict") => options.compress = Compression::ZlibStrict,
        Some(other) => anyhow::bail!("unknown output {other}; {usage}"),
    }
    options.threads = arguments.next().map(|threads| threads.parse()).transpose().context(usage)?;

    let file = File::open(&source).with_context(|| format!("cannot open {source}"))?;
    let len = file.metadata()?.len();
    let region = Region::whole(Arc::new(file), source.as_str(), len);
    let image = match source.rsplit_once('.').map(|(_, extension)| extension) {
        Some("vmdk") => Image::vmdk(&region)?,
        Some("qcow2") => Image::qcow2(&region, u64::MAX)?,
        Some("vdi") => Image::vdi(&region, u64::MAX)?,
        Some("vhd") => Image::vhd(&region, u64::MAX)?,
        _ => Image::raw(&region)?,
    };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&output)?;
    let copied = copy(&image, &file, &output, &options, &CopyControl::default())?;
    println!("{}: {} bytes of guest, {} written", image.kind(), copied.virtual_size, copied.written);
    Ok(())
}
