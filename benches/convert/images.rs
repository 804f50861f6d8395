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
        "disk.raw" => make_file_system(&unfinished, gib, |_| Ok(()))?,
        "guest.raw" => make_file_system(&unfinished, gib, add_system)?,
        "many.ovf" => make_many(directory, &unfinished)?,
        "scattered.ovf" => make_scattered(directory, &unfinished)?,
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
fn make_file_system(raw: &Path, gib: u64, add: fn(&Path) -> Result<()>) -> Result<()> {
    let files = raw.with_extension("files");
    fs::create_dir_all(&files)?;
    add(&files)?;
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

/// What makes a file system a guest: a release, a fstab, and three kernels, each with an initramfs of some 60 MiB, packed.
fn add_system(files: &Path) -> Result<()> {
    const KERNELS: u32 = 3;
    let write = |path: String, content: &[u8]| -> Result<()> {
        let path = files.join(path);
        fs::create_dir_all(path.parent().expect("it lies in a directory"))?;
        Ok(fs::write(path, content)?)
    };
    write("etc/os-release".into(), b"ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n")?;
    write("etc/fstab".into(), b"UUID=0fb5ee87-5d5b-4ed1-a0a1-f7b1c9e1c7a0 / ext4 defaults 0 1\n")?;
    let program = fs::read("/proc/self/exe")?;
    for kernel in 0..KERNELS {
        let version = format!("6.1.0-{kernel}-amd64");
        let mut archive = Vec::new();
        // Its modules are the last, so that all of it must be unpacked.
        let names = (0..8).map(|n| format!("usr/bin/program-{n}"));
        let module = format!("usr/lib/modules/{version}/kernel/virtio_blk.ko");
        for name in names.chain([module, "TRAILER!!!".to_owned()]) {
            let content = if name.contains("program") { &program[..program.len().min(8 << 20)] } else { b"" };
            let numbers = [1, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
            archive.extend(b"070701");
            archive.extend(numbers.iter().flat_map(|number| format!("{number:08X}").into_bytes()));
            archive.extend(name.as_bytes());
            archive.push(0);
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend(content);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        write(format!("boot/vmlinuz-{version}"), b"MZ")?;
        write(format!("boot/initrd.img-{version}"), &zstd::encode_all(&archive[..], 3)?)?;
        write(format!("lib/modules/{version}/modules.builtin"), b"kernel/virtio_pci.ko\n")?;
        write(format!("lib/modules/{version}/modules.dep"), b"kernel/virtio_blk.ko:\n")?;
    }
    Ok(())
}

/// An OVF of 128 disks, each with a few grains.
fn make_many(directory: &Path, ovf: &Path) -> Result<()> {
    const DISKS: usize = 128;
    let names: Vec<_> = (0..DISKS).map(|number| format!("many-{number:03}.vmdk")).collect();
    for name in &names {
        let mut out = BufWriter::new(File::create(directory.join(name))?);
        let grain = |number: u64| number.is_multiple_of(1000).then(|| vec![7; 64 << 10]);
        Sparse::stream_optimized(8 * GIB).write(&mut out, grain)?;
        out.flush()?;
    }
    Ok(fs::write(ovf, envelope(&names))?)
}

/// An OVF of 12 disks whose tables lie 64 KiB apart, most of them in holes: a few MiB that name 4 TiB each.
fn make_scattered(directory: &Path, ovf: &Path) -> Result<()> {
    const TABLES: u64 = 131_072;
    const APART: u64 = 128;
    let names: Vec<_> = (0..12).map(|number| format!("scattered-{number:02}.vmdk")).collect();
    for name in &names {
        let file = File::create(directory.join(name))?;
        let directory_sectors = TABLES * 4 / 512;
        let first = (21 + directory_sectors).next_multiple_of(APART);
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"KDMV\x01\0\0\0\x01\0\0\0");
        for (at, value) in [(12, TABLES * 512 * 128), (20, 128), (28, 1), (36, 20), (56, 21), (64, first)] {
            put(at, &u64::to_le_bytes(value));
        }
        put(44, &512_u32.to_le_bytes());
        put(73, b"\n \r\n");
        file.write_all_at(&header, 0)?;
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\
             RW {} SPARSE \"{name}\"\n",
            TABLES * 512 * 128
        );
        file.write_all_at(text.as_bytes(), 512)?;
        let tables: Vec<u8> =
            (0..TABLES).flat_map(|table| u32::try_from(first + table * APART).unwrap_or(0).to_le_bytes()).collect();
        file.write_all_at(&tables, 21 * 512)?;
        let end = first + TABLES * APART;
        // A grain for every five hundredth table.
        for (grain, table) in (0..TABLES).step_by(512).enumerate() {
            let place = u32::try_from(end + grain as u64 * 128)?;
            file.write_all_at(&place.to_le_bytes(), (first + table * APART) * 512)?;
        }
        file.set_len((end + TABLES / 512 * 128) * 512)?;
    }
    Ok(fs::write(ovf, envelope(&names))?)
}

/// An OVF of these disks.
fn envelope(names: &[String]) -> String {
    let files = names.iter().map(|name| format!("<File ovf:id='{name}' ovf:href='{name}'/>"));
    let disks =
        names.iter().map(|name| format!("<Disk ovf:diskId='{name}' ovf:fileRef='{name}' ovf:capacity='8589934592'/>"));
    format!(
        "<Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'><References>{}</References><DiskSection>{}</DiskSection>\
         <VirtualSystem ovf:id='vm'/></Envelope>",
        files.collect::<String>(),
        disks.collect::<String>()
    )
}
