// SPDX-License-Identifier: Apache-2.0
//! The same source and output make the same bytes with any number of threads: passed through or not, through the page
//! cache or around it, with a digest beside the copy or without.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hyper2kvm::conversion::{Compression, OutputFormat};
use hyper2kvm::disk::manifest::{Algorithm, Expected};
use hyper2kvm::disk::source::{self, Limits};
use hyper2kvm::disk::{self, CopyControl, CopyOptions, Image, Region};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::{SOURCES, have_qemu_img, noise, ovf, qemu_img, text};

/// A file that direct I/O reads where it may.
fn region(path: &Path) -> Region {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let direct = File::options().read(true).custom_flags(flags).open(path).ok().map(Arc::new);
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    Region::whole(Arc::new(file), path.file_name().unwrap().to_str().unwrap(), len).also_direct(direct)
}

/// The only disk of a source whose other files lie beside it.
fn open(path: &Path) -> Image {
    let beside = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let siblings: Vec<_> = beside.filter(|other| other != path).map(|other| region(&other)).collect();
    let limits = Limits { max_virtual_size: u64::MAX, max_scratch_bytes: 0, ovf_option: None };
    let mut source = source::open(&region(path), &siblings, &limits, &mut || unreachable!("no gzip")).unwrap();
    source.disks.remove(0).image
}

/// A digest of each of the image's files.
fn digests(image: &Image) -> Vec<Expected> {
    let digest = |region: &Region| {
        let mut bytes = vec![0; usize::try_from(region.len()).unwrap()];
        region.read_exact_at(&mut bytes, 0).unwrap();
        Expected { region: region.clone(), algorithm: Algorithm::Sha256, digest: Sha256::digest(&bytes).to_vec() }
    };
    image.regions.iter().map(digest).collect()
}

/// A guest's disk of a few batches: text, zeros that are written, noise, a hole, and text up to the end.
fn disk(place: &Path) -> PathBuf {
    const MIB: usize = 1 << 20;
    let path = place.join("truth.img");
    let text: Vec<u8> = (0..160_000u32).flat_map(|n| format!("line {n} of a log\n").into_bytes()).collect();
    let file = File::create_new(&path).unwrap();
    file.write_all_at(&[&text[..2 * MIB], &vec![0; MIB], &noise(MIB)].concat(), 0).unwrap();
    file.write_all_at(&text[MIB..2 * MIB + 70_144], 6 * MIB as u64).unwrap();
    path
}

fn outputs() -> Vec<CopyOptions> {
    let qcow2 = [Compression::None, Compression::Zlib, Compression::Zstd, Compression::ZlibStrict]
        .map(|compress| CopyOptions { compress, ..CopyOptions::default() });
    let others = [OutputFormat::Raw, OutputFormat::Vdi].map(|format| CopyOptions { format, ..CopyOptions::default() });
    qcow2.into_iter().chain(others).collect()
}

fn copied(image: &Image, options: &CopyOptions) -> Vec<u8> {
    let output = tempfile::NamedTempFile::new().unwrap();
    let control = CopyControl::default();
    disk::copy(image, output.as_file(), "output", options, &control).unwrap();
    disk::verify(output.as_file(), "output", options.format, None, &control).unwrap();
    fs::read(output.path()).unwrap()
}

fn makes_the_same_bytes(path: &Path) {
    let image = open(path);
    let digests = digests(&image);
    for options in outputs() {
        let by_one = copied(&image, &CopyOptions { threads: Some(1), ..options.clone() });
        for (threads, buffered, digests) in [(2, true, &[][..]), (3, false, &digests), (8, true, &digests)] {
            let others = CopyOptions { threads: Some(threads), buffered, digests: digests.to_vec(), ..options.clone() };
            assert!(by_one == copied(&image, &others), "{}: {threads} threads, {options:?}", path.display());
        }
    }
}

#[test]
fn every_pair_of_source_and_output_makes_the_same_bytes_for_every_number_of_threads() {
    if !have_qemu_img() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let truth = disk(place.path());
    makes_the_same_bytes(&truth);
    for (name, format, options) in SOURCES {
        let place = tempfile::tempdir().unwrap();
        let source = place.path().join(name);
        qemu_img(&[&["convert", "-f", "raw", "-O", format], options, &[text(&truth), text(&source)]].concat());
        makes_the_same_bytes(&source);
    }
    let disk = place.path().join("disk.vmdk");
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", text(&truth), text(&disk)]);
    fs::write(place.path().join("vm.ovf"), ovf("disk.vmdk")).unwrap();
    let tar = ["--format=ustar", "-cf", "vm.ova", "vm.ovf", "disk.vmdk"];
    assert!(Command::new("tar").current_dir(place.path()).args(tar).status().unwrap().success());
    makes_the_same_bytes(&place.path().join("vm.ova"));
}
