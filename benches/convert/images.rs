// SPDX-License-Identifier: Apache-2.0
//! The sources, made once and kept for the next run.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;

use crate::measure::text_of;
use crate::vmdk::Sparse;

const GIB: u64 = 1 << 30;

/// Makes `name` in `directory`, and what it is made of, unless it is there. `gib` is the file system's size.
pub(crate) fn make(directory: &Path, name: &str, gib: u64) -> Result<()> {
    let at = |name: &str| directory.join(name);
    let path = at(name);
    if path.exists() {
        return Ok(());
    }
    eprintln!("bench: making {name}");
    let unfinished = at("unfinished");
    let convert = |from: &str, words: &[&str]| -> Result<()> {
        make(directory, from, gib)?;
        let (from, to) = (at(from).display().to_string(), unfinished.display().to_string());
        let words = [&["convert", "-f", "raw"], words, &[from.as_str(), to.as_str()]].concat();
        text_of("qemu-img", &words).map(drop)
    };
    let ova = |disk: &str, digest: bool| -> Result<()> {
        make(directory, disk, gib)?;
        make_ova(directory, &unfinished, disk, gib * GIB, digest)
    };
    let stream = ["-O", "vmdk", "-o", "subformat=streamOptimized"];
    let vhd = ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"];
    match name {
        "disk.raw" => make_file_system(&unfinished, gib)?,
        "disk.vhd" => convert("disk.raw", &vhd)?,
        "disk.vhdx" => convert("disk.raw", &["-O", "vhdx", "-o", "subformat=dynamic"])?,
        "disk.vdi" => convert("disk.raw", &["-O", "vdi"])?,
        "disk.qcow2" => convert("disk.raw", &["-O", "qcow2"])?,
        "zlib.qcow2" => convert("disk.raw", &["-O", "qcow2", "-c"])?,
        "zstd.qcow2" => convert("disk.raw", &["-O", "qcow2", "-c", "-o", "compression_type=zstd"])?,
        "sparse.vmdk" => convert("disk.raw", &["-O", "vmdk", "-o", "subformat=monolithicSparse"])?,
        "stream.vmdk" => convert("disk.raw", &stream)?,
        "noise.raw" => make_noise(&unfinished)?,
        "noise.vmdk" => convert("noise.raw", &stream)?,
        "empty.raw" => sparse(&unfinished, 64 * GIB, 64, 1 << 20)?,
        "empty.vmdk" => convert("empty.raw", &stream)?,
        "ends-2040.raw" => sparse(&unfinished, 2040 * GIB, 2, 65536)?,
        "ends.vhd" => convert("ends-2040.raw", &vhd)?,
        "ends-2048.raw" => sparse(&unfinished, 2048 * GIB - 65536, 2, 65536)?,
        "ends.vmdk" => convert("ends-2048.raw", &["-O", "vmdk", "-o", "subformat=monolithicSparse"])?,
        "dense.vmdk" => make_dense(&unfinished, 512 * GIB)?,
        "stream.ova" => ova("stream.vmdk", false)?,
        "digest.ova" => ova("stream.vmdk", true)?,
        "digest-sparse.ova" => ova("sparse.vmdk", true)?,
        "digest-vhd.ova" => ova("disk.vhd", true)?,
        "digest-vdi.ova" => ova("disk.vdi", true)?,
        "digest-qcow2.ova" => ova("disk.qcow2", true)?,
        other => anyhow::bail!("no rule makes {other}"),
    }
    Ok(fs::rename(unfinished, path)?)
}

/// A file of `len` bytes with `pieces` pieces of data in it, the first and the last at its ends.
fn sparse(path: &Path, len: u64, pieces: u64, piece: usize) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(len)?;
    let data: Vec<u8> = (0..piece).map(|at| (at / 5).to_le_bytes()[0] | 1).collect();
    for number in 0..pieces {
        let step = (len - piece as u64) / (pieces - 1) / 512 * 512;
        file.write_all_at(&data, if number + 1 == pieces { len - piece as u64 } else { number * step })?;
    }
    Ok(())
}

/// 1 GiB that nothing makes smaller.
fn make_noise(path: &Path) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..GIB / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_le_bytes())?;
    }
    Ok(out.flush()?)
}

/// A streamOptimized VMDK with every grain in it, all the same small stream.
fn make_dense(path: &Path, capacity: u64) -> Result<()> {
    let text: Vec<u8> = b"every grain of this disk is there. ".iter().copied().cycle().take(65536).collect();
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&text)?;
    let stream = encoder.finish()?;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    Sparse::stream_optimized(capacity).write_stored(&mut out, |_| Some(stream.clone()))?;
    Ok(out.flush()?)
}

/// An ext4 file system with a third of its size in files of this machine: real programs, libraries and texts.
fn make_file_system(raw: &Path, gib: u64) -> Result<()> {
    let files = raw.with_extension("files");
    fs::create_dir_all(&files)?;
    let wanted = (gib * 345) << 20; // 2.7 GiB of 8
    let mut have = 0;
    for (n, tree) in ["/usr/lib", "/usr/bin", "/usr/share", "/usr/local"].iter().cycle().take(64).enumerate() {
        if have >= wanted {
            break;
        }
        have += copy_tree(Path::new(tree), &files.join(n.to_string()), wanted - have)?;
    }
    File::create(raw)?.set_len(gib << 30)?;
    text_of("mke2fs", &["-q", "-t", "ext4", "-F", "-d", &files.display().to_string(), &raw.display().to_string()])?;
    fs::remove_dir_all(&files)?;
    // mke2fs writes zeros of files as data; what a guest's trim would free is freed.
    text_of("fallocate", &["--dig-holes", &raw.display().to_string()])?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path, budget: u64) -> Result<u64> {
    fs::create_dir_all(to)?;
    let mut copied = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if copied >= budget {
            break;
        }
        if kind.is_dir() {
            copied += copy_tree(&entry.path(), &to.join(entry.file_name()), budget - copied).unwrap_or(0);
        } else if kind.is_file() {
            copied += fs::copy(entry.path(), to.join(entry.file_name())).unwrap_or(0);
        }
    }
    Ok(copied)
}

/// An OVA around the disk, with or without a manifest, in a ustar archive.
fn make_ova(directory: &Path, path: &Path, disk: &str, capacity: u64, digest: bool) -> Result<()> {
    let [ovf, mf] = ["ovf", "mf"].map(|extension| format!("{disk}.{extension}"));
    let envelope = format!(
        r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References><File ovf:id="file1" ovf:href="{disk}"/></References>
  <DiskSection><Info>Disks</Info><Disk ovf:diskId="d1" ovf:fileRef="file1" ovf:capacity="{capacity}" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection>
  <VirtualSystem ovf:id="vm"><Info>A machine</Info></VirtualSystem>
</Envelope>
"#
    );
    fs::write(directory.join(&ovf), envelope)?;
    let (at, path) = (directory.display().to_string(), path.display().to_string());
    let mut words = vec!["--format=ustar", "-C", &at, "-cf", &path, &ovf];
    if digest {
        let sum = crate::digest_of(&directory.join(disk))?;
        fs::write(directory.join(&mf), format!("SHA256({disk})= {sum}\n"))?;
        words.push(&mf);
    }
    words.push(disk);
    text_of("tar", &words).map(drop)
}
