// SPDX-License-Identifier: Apache-2.0
//! Which modules an initramfs holds: its archives are walked, packed or not, and nothing is kept but names.
//!
//! The kernel's `buffer-format`: any number of cpio archives ("newc"), one behind the other, the last usually packed; NULs
//! between them. The first are often unpacked, with microcode for the processor.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use crate::guest::budget::Budget;
use crate::guest::error::{Error, Result};
use crate::guest::fields::slice;

/// Header of a file in an archive: "070701" and thirteen numbers of eight hexadecimal digits.
const HEADER: usize = 110;
/// Longest name in an archive.
const MAX_NAME: usize = 4096;
/// Longest `modules.builtin`; a distribution's has 10 KiB.
const MAX_BUILTIN: u64 = 1 << 20;
/// Memory that a decoder of xz may take. Initramfs tools write dictionaries of 1 to 8 MiB.
const XZ_MEMORY: u64 = 32 << 20;
/// Largest window of zstd as log2: 8 MiB are what its highest ordinary level has.
const ZSTD_WINDOW_LOG: u32 = 25;
/// Largest block of lz4's legacy frames, by its definition.
const LZ4_BLOCK: usize = 8 << 20;
/// Most archives in one initramfs.
const MAX_ARCHIVES: usize = 64;
/// Most entries that are listed; a distribution's largest initramfs has a tenth of that.
const MAX_ENTRIES: usize = 50_000;
/// A link's kind in a mode, and the mask of kinds.
const LINK: u64 = 0o120_000;
const KINDS: u64 = 0o170_000;

/// What was found in an initramfs.
#[derive(Debug, Default)]
pub(in crate::guest) struct Initramfs {
    /// How the last archive is packed.
    pub(in crate::guest) compression: Option<&'static str>,
    /// Those modules that were asked for and are there.
    pub(in crate::guest) modules: BTreeSet<String>,
    /// Whether modules of any name were found.
    pub(in crate::guest) has_modules: bool,
    /// Content of its `modules.builtin`.
    pub(in crate::guest) builtin: Option<String>,
}

/// An entry of an initramfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it stands there, mostly relative to the root: `usr/bin/kmod`.
    pub path: String,
    /// Kind and permissions (stat(2)).
    pub mode: u32,
    /// Where a link leads.
    pub target: Option<String>,
}

/// The entries of an initramfs, in the order in which the kernel unpacks them; a later one takes the place of an earlier.
pub(in crate::guest) fn list(source: impl Read, budget: &Rc<Budget>) -> Result<Vec<Entry>> {
    let mut walk = Walk::new(&NOTHING, budget);
    walk.entries = Some(Vec::new());
    walk.whole(source)?;
    Ok(walk.entries.unwrap_or_default())
}

/// Walks an initramfs for modules of the names `wanted` (with `_`), and stops once all are found.
pub(in crate::guest) fn read(source: impl Read, wanted: &BTreeSet<&str>, budget: &Rc<Budget>) -> Result<Initramfs> {
    let mut walk = Walk::new(wanted, budget);
    walk.whole(source)?;
    Ok(walk.found)
}

/// How the archive that begins with `head` is packed.
fn packing(head: &[u8]) -> Option<&'static str> {
    let magics: [(&[u8], &str); 10] = [
        (b"07070", "none"),
        (&[0x1F, 0x8B], "gzip"),
        (&[0xFD, b'7', b'z', b'X', b'Z', 0], "xz"),
        (&[0x5D, 0, 0], "lzma"),
        (&[0x28, 0xB5, 0x2F, 0xFD], "zstd"),
        // A frame that is skipped: parallel writers begin with it.
        (&[0x50, 0x2A, 0x4D, 0x18], "zstd"),
        (&[0x02, 0x21, 0x4C, 0x18], "lz4"),
        (&[0x04, 0x22, 0x4D, 0x18], "lz4 frame"),
        (b"BZh", "bzip2"),
        (&[0x89, b'L', b'Z', b'O'], "lzo"),
    ];
    magics.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}

fn unpacked<'a>(packing: &str, source: &'a mut (impl BufRead + 'a)) -> Result<Box<dyn Read + 'a>> {
    use liblzma::stream::Stream;
    let lzma = |e: liblzma::stream::Error| Error::from(io::Error::from(e));
    Ok(match packing {
        "gzip" => Box::new(flate2::bufread::GzDecoder::new(source)),
        "xz" => Box::new(liblzma::bufread::XzDecoder::new_stream(
            source,
            Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(lzma)?,
        )),
        "lzma" => Box::new(liblzma::bufread::XzDecoder::new_stream(
            source,
            Stream::new_lzma_decoder(XZ_MEMORY).map_err(lzma)?,
        )),
        "zstd" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        "lz4" => Box::new(Lz4 { source, block: Vec::new(), at: 0, started: false }),
        "bzip2" => Box::new(bzip2::bufread::BzDecoder::new(source)),
        other => return Err(Error::unsupported(format!("is packed with {other}, which is not read"))),
    })
}

/// Counts what comes out of a decoder.
struct Counted<'a, R> {
    source: R,
    budget: &'a Budget,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let len = self.source.read(target)?;
        self.budget.decoded(len)?;
        Ok(len)
    }
}

/// lz4's legacy frame, as kernels have it: blocks of 8 MiB, each with its packed length before it.
struct Lz4<R> {
    source: R,
    block: Vec<u8>,
    at: usize,
    started: bool,
}

impl<R: BufRead> Read for Lz4<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if !self.started {
                self.source.read_exact(&mut [0; 4])?;
                self.started = true;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let mut len = [0; 4];
            self.source.read_exact(&mut len)?;
            if len == [0x02, 0x21, 0x4C, 0x18] {
                // Another frame.
                continue;
            }
            let len = u64::from(u32::from_le_bytes(len));
            if len == 0 || len > (LZ4_BLOCK + LZ4_BLOCK / 255 + 16) as u64 {
                // What follows the last block is padding.
                return Ok(0);
            }
            let mut packed = Vec::new();
            self.source.by_ref().take(len).read_to_end(&mut packed)?;
            self.block.resize(LZ4_BLOCK, 0);
            let unpacked = lz4_flex::block::decompress_into(&packed, &mut self.block).map_err(io::Error::other)?;
            self.block.truncate(unpacked);
            self.at = 0;
            if unpacked == 0 {
                return Ok(0);
            }
        }
        let len = target.len().min(self.block.len() - self.at);
        target[..len].copy_from_slice(&self.block[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// Skips NULs; at most as many as the budget has steps.
fn skip_zeros(source: &mut impl BufRead, budget: &Budget) -> Result<()> {
    loop {
        budget.step()?;
        let bytes = source.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let is_end = zeros < bytes.len() || bytes.is_empty();
        source.consume(zeros);
        if is_end {
            return Ok(());
        }
    }
}

/// Modules that are looked for where only the entries are wanted.
static NOTHING: BTreeSet<&str> = BTreeSet::new();

/// A walk over archives.
struct Walk<'a> {
    wanted: &'a BTreeSet<&'a str>,
    found: Initramfs,
    /// What is listed, if anything is.
    entries: Option<Vec<Entry>>,
    /// Archives that were whole.
    trailers: usize,
    budget: &'a Budget,
}

impl<'a> Walk<'a> {
    fn new(wanted: &'a BTreeSet<&'a str>, budget: &'a Budget) -> Self {
        Self { wanted, found: Initramfs::default(), entries: None, trailers: 0, budget }
    }

    /// Walks all archives of an initramfs.
    fn whole(&mut self, source: impl Read) -> Result<()> {
        let mut source = BufReader::with_capacity(256 << 10, source);
        for _ in 0..MAX_ARCHIVES {
            skip_zeros(&mut source, self.budget)?;
            let head: Vec<u8> = source.fill_buf()?.iter().take(8).copied().collect();
            if head.is_empty() || self.is_done() {
                break;
            }
            let Some(packing) = packing(&head) else {
                // What follows a whole archive is no reason to doubt it.
                if self.trailers > 0 {
                    break;
                }
                return Err(Error::unsupported("is packed in an unknown way"));
            };
            if packing != "none" {
                self.found.compression = Some(packing);
            }
            let before = self.trailers;
            let walked = if packing == "none" {
                // No further than its trailer: what follows may be packed.
                self.archive(&mut source)
            } else {
                unpacked(packing, &mut source).and_then(|unpacked| {
                    self.archives(&mut BufReader::with_capacity(
                        64 << 10,
                        Counted { source: unpacked, budget: self.budget },
                    ))
                })
            };
            match walked {
                Err(error) if error.is_final() => return Err(error),
                // Padding behind a packed archive, which its decoder took for more of it.
                Err(_) if self.trailers > before => break,
                walked => walked?,
            }
        }
        if self.trailers == 0 && !self.is_done() {
            return Err(Error::corrupt("ends before its archive does"));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.entries.is_none() && self.found.modules.len() == self.wanted.len()
    }

    /// Walks unpacked archives, up to their end or to what is no archive.
    fn archives(&mut self, source: &mut impl BufRead) -> Result<()> {
        loop {
            skip_zeros(source, self.budget)?;
            let head = source.fill_buf()?;
            if head.is_empty() || (self.trailers > 0 && !head.starts_with(b"0")) {
                return Ok(());
            }
            self.archive(source)?;
            if self.is_done() {
                return Ok(());
            }
        }
    }

    /// Walks one archive, up to its trailer.
    fn archive(&mut self, source: &mut impl BufRead) -> Result<()> {
        loop {
            self.budget.step()?;
            let mut header = [0; HEADER];
            source.read_exact(&mut header)?;
            if !matches!(&header[..6], b"070701" | b"070702") {
                return Err(Error::corrupt("has no cpio archive where one belongs"));
            }
            let (len, name_len) = (number(&header, 6)?, usize::try_from(number(&header, 11)?).unwrap_or(usize::MAX));
            if name_len == 0 || name_len > MAX_NAME {
                return Err(Error::corrupt("has a file with a name of no possible length"));
            }
            // Names and contents are padded to four bytes, counted from the header.
            let mut name = vec![0; (HEADER + name_len).next_multiple_of(4) - HEADER];
            source.read_exact(&mut name)?;
            name.truncate(name_len - 1);
            if name == b"TRAILER!!!" {
                self.trailers += 1;
                return Ok(());
            }
            self.file(&name, number(&header, 1)?, len, source)?;
            if self.is_done() {
                return Ok(());
            }
        }
    }

    /// Looks at one file, and passes over its content.
    fn file(&mut self, path: &[u8], mode: u64, len: u64, source: &mut impl Read) -> Result<()> {
        let padded = len.next_multiple_of(4);
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let mut rest = padded;
        if let Some(entries) = &mut self.entries {
            if entries.len() == MAX_ENTRIES {
                return Err(Error::unsupported(format!("has more than {MAX_ENTRIES} files")));
            }
            let mut target = None;
            if mode & KINDS == LINK && len <= MAX_NAME as u64 {
                let mut content = Vec::new();
                source.by_ref().take(len).read_to_end(&mut content)?;
                rest -= content.len() as u64;
                target = Some(String::from_utf8_lossy(&content).into_owned());
            }
            let path = String::from_utf8_lossy(path).into_owned();
            entries.push(Entry { path, mode: u32::try_from(mode).unwrap_or_default(), target });
        }
        if self.entries.is_none() && name == b"modules.builtin" && len <= MAX_BUILTIN {
            let mut content = Vec::new();
            source.by_ref().take(len).read_to_end(&mut content)?;
            self.found.builtin = Some(String::from_utf8_lossy(&content).into_owned());
            rest -= len;
        } else if let Some(module) = module_name(name) {
            self.found.has_modules = true;
            if self.wanted.contains(module.as_str()) {
                self.found.modules.insert(module);
            }
        }
        let skipped = io::copy(&mut source.by_ref().take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(Error::corrupt("ends before its archive does"));
        }
        Ok(())
    }
}

/// Number `index` of a header.
fn number(header: &[u8], index: usize) -> Result<u64> {
    let digits = slice(header, 6 + index * 8, 8)?;
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    text.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or_else(|| Error::corrupt("has a broken cpio header"))
}

/// The name of the module in a file of this name, with `_`; `None` where it is no module.
pub(in crate::guest) fn module_name(file: &[u8]) -> Option<String> {
    let file = std::str::from_utf8(file).ok()?;
    let file = [".xz", ".zst", ".gz"].iter().find_map(|end| file.strip_suffix(end)).unwrap_or(file);
    Some(file.strip_suffix(".ko")?.replace('-', "_"))
}
