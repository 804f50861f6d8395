// SPDX-License-Identifier: Apache-2.0
//! Kernel modules by `modules.dep`: which ones a driver needs, in the order in which they are loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

/// Most modules that one driver may need. btrfs, the largest here, needs a dozen.
const MAX_MODULES: usize = 256;
/// Longest module that is unpacked; a distribution's largest (amdgpu) has 20 MiB.
const MAX_MODULE: u64 = 64 << 20;
/// Memory that a decoder of xz may take. Modules have dictionaries of 2 MiB.
const XZ_MEMORY: u64 = 64 << 20;

/// The modules of a kernel.
#[derive(Debug, Default)]
pub struct Modules {
    /// By name with `_`: its file, and the files that it needs, both relative to the directory of `modules.dep`.
    files: BTreeMap<String, (String, Vec<String>)>,
}

/// Modules that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("modules.dep has no module {0}")]
    Missing(String),
    #[error("modules.dep says that {0} needs more than {MAX_MODULES} modules")]
    TooMany(String),
    #[error("cannot unpack the module {file}")]
    Unpack { file: String, source: io::Error },
    #[error("the module {0} is no ELF file, or is packed in a way that is not read")]
    Form(String),
}

impl Modules {
    /// By the lines of `modules.dep`. What is no module's line is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let files = lines.filter_map(|(file, needs)| {
            let needs = needs.split_ascii_whitespace().map(str::to_owned).collect();
            Some((name(file)?, (file.to_owned(), needs)))
        });
        Self { files: files.collect() }
    }

    #[must_use]
    pub fn has(&self, module: &str) -> bool {
        self.files.contains_key(module)
    }

    /// Files of `wanted` (names with `_`) and of all they need, each behind what it needs.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<String>, Error> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for module in wanted {
            if !self.has(module) {
                return Err(Error::Missing((*module).to_owned()));
            }
            self.visit(module, &mut seen, &mut order)?;
            if order.len() > MAX_MODULES {
                return Err(Error::TooMany((*module).to_owned()));
            }
        }
        Ok(order)
    }

    fn visit(&self, module: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) -> Result<(), Error> {
        // Also ends a circle, which a hostile `modules.dep` may have; its depth is bounded by the same number.
        if !seen.insert(module.to_owned()) {
            return Ok(());
        }
        if seen.len() > MAX_MODULES {
            return Err(Error::TooMany(module.to_owned()));
        }
        let (file, needs) = self.files.get(module).ok_or_else(|| Error::Missing(module.to_owned()))?;
        // depmod lists what is to be loaded first last.
        for need in needs.iter().rev() {
            let need = name(need).ok_or_else(|| Error::Missing(need.clone()))?;
            self.visit(&need, seen, order)?;
        }
        order.push(file.clone());
        Ok(())
    }
}

/// The name of the module in `file`, with `_`.
#[must_use]
pub fn name(file: &str) -> Option<String> {
    Some(file_name(file)?.strip_suffix(".ko")?.replace('-', "_"))
}

/// The file's name without directories and without the end of its packing: `virtio-rng.ko`.
#[must_use]
pub fn file_name(file: &str) -> Option<&str> {
    let base = file.rsplit('/').next()?;
    let base = [".xz", ".zst", ".gz"].iter().find_map(|end| base.strip_suffix(end)).unwrap_or(base);
    let stem = base.strip_suffix(".ko")?;
    let is_plain = stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (is_plain && !stem.is_empty()).then_some(base)
}

/// The module in `packed`, the content of `file`, as the kernel loads it: unpacked.
pub fn unpack(file: &str, packed: Vec<u8>) -> Result<Vec<u8>, Error> {
    let wrong = |source| Error::Unpack { file: file.to_owned(), source };
    let mut module = Vec::new();
    let mut read = |source: &mut dyn Read| source.take(MAX_MODULE).read_to_end(&mut module).map_err(wrong);
    if packed.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        read(&mut zstd::stream::read::Decoder::with_buffer(&packed[..]).map_err(wrong)?)?;
    } else if packed.starts_with(&[0xFD, b'7', b'z', b'X', b'Z', 0]) {
        let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(|error| wrong(error.into()))?;
        read(&mut liblzma::bufread::XzDecoder::new_stream(&packed[..], stream))?;
    } else if packed.starts_with(&[0x1F, 0x8B]) {
        read(&mut flate2::bufread::GzDecoder::new(&packed[..]))?;
    } else {
        module = packed;
    }
    if module.starts_with(b"\x7FELF") { Ok(module) } else { Err(Error::Form(file.to_owned())) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// As Debian 12 and a RHEL with packed modules have it.
    const DEP: &str = "\
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci_modern_dev.ko.xz:
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_pci_modern_dev.ko.xz kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko.zst: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/a/circle-one.ko: kernel/a/circle-two.ko
kernel/a/circle-two.ko: kernel/a/circle-one.ko
kernel/a/broken.ko: kernel/a/nothing.ko
no line
";

    #[test]
    fn a_module_comes_behind_what_it_needs() {
        let modules = Modules::parse(DEP);
        let names = |wanted: &[&str]| -> Vec<String> {
            modules.closure(wanted).unwrap().iter().map(|file| name(file).unwrap()).collect()
        };
        assert_eq!(names(&["virtio_blk"]), ["virtio_ring", "virtio", "virtio_blk"]);
        assert_eq!(
            names(&["virtio_pci", "virtio_blk"]),
            ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"]
        );
        assert_eq!(names(&["circle_one"]), ["circle_two", "circle_one"]);
        assert!(matches!(modules.closure(&["virtio_scsi"]), Err(Error::Missing(name)) if name == "virtio_scsi"));
        assert!(matches!(modules.closure(&["broken"]), Err(Error::Missing(name)) if name == "nothing"));
        let lines: Vec<_> = (0..400).map(|n| format!("m{n}.ko: m{}.ko\n", n + 1)).collect();
        let long = lines.concat();
        assert!(matches!(Modules::parse(&long).closure(&["m0"]), Err(Error::TooMany(_))));
    }

    #[test]
    fn packed_modules_are_unpacked_and_others_refused() {
        let module = b"\x7FELF module".repeat(100);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&module).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&module).unwrap();
        for packed in
            [module.clone(), zstd::encode_all(&module[..], 1).unwrap(), gzip.finish().unwrap(), xz.finish().unwrap()]
        {
            assert_eq!(unpack("a.ko", packed).unwrap(), module);
        }
        for broken in [b"".to_vec(), b"text".to_vec(), vec![0x28, 0xB5, 0x2F, 0xFD, 1], vec![0x1F, 0x8B, 1, 2]] {
            assert!(unpack("a.ko", broken).is_err());
        }
        for (file, expected) in [
            ("kernel/a/b-c.ko.xz", Some("b-c.ko")),
            ("b.ko", Some("b.ko")),
            (".ko", None),
            ("a b.ko", None),
            ("a\n.ko", None),
            ("kernel/a.so", None),
        ] {
            assert_eq!(file_name(file), expected, "{file:?}");
        }
    }
}
