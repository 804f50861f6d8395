//! Would a raw output be taken for a container by whoever opens it next?

/// Magic numbers at the start of a file, with their offsets: what QEMU and archivers probe for.
const HEADS: [(usize, &[u8], &str); 17] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"\xbe\xba\xfe\xca\x00\x00\x00\x00", "seSparse vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
    (257, b"ustar", "tar"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"koly", "dmg"),
];
/// Start of a VMDK's text descriptor; comments and blank lines may come before it.
const DESCRIPTOR: &[u8] = b"# disk descriptorfile";

/// The format for which a file would be taken that begins with `head` (4 KiB, or the whole file) and whose last 512
/// bytes are `tail`.
pub(super) fn taken_for(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let found = HEADS.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|head| head.starts_with(magic)));
    if let Some((_, _, name)) = found {
        return Some(name);
    }
    if is_descriptor(head) {
        return Some("vmdk");
    }
    let footers: [(&[u8], &str); 2] = [(b"conectix", "vhd"), (b"koly", "dmg")];
    footers.iter().find(|(magic, _)| tail.starts_with(magic)).map(|(_, name)| *name)
}

/// Whether the first line that is neither blank nor another comment opens a descriptor, as QEMU probes for it.
fn is_descriptor(head: &[u8]) -> bool {
    let text = head.split(|&byte| byte == 0).next().unwrap_or_default();
    let mut lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let described = lines.clone().any(|line| line.to_ascii_lowercase().starts_with(DESCRIPTOR));
    let version = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    described || version.is_some_and(|line| line.to_ascii_lowercase().starts_with(b"version="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 4096];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn containers_are_recognised_at_head_and_tail() {
        let cases: [(usize, &[u8], &str); 6] = [
            (0, b"QFI\xfb\0\0\0\x02", "qcow2"),
            (0, b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
            (0, b"#hello\n\nversion=3\n", "vmdk"),
            (64, b"\x7f\x10\xda\xbe", "vdi"),
            (257, b"ustar  ", "tar"),
            (0, b"vhdxfile", "vhdx"),
        ];
        for (at, magic, name) in cases {
            assert_eq!(taken_for(&head(at, magic), &[0; 512]), Some(name));
        }
        assert_eq!(taken_for(&[0; 4096], &head(0, b"conectix")[..512]), Some("vhd"));
    }

    #[test]
    fn guests_own_beginnings_pass() {
        let cases: [(usize, &[u8]); 3] = [(510, b"\x55\xaa"), (0, b"LUKS\xba\xbe"), (512, b"EFI PART")];
        for (at, magic) in cases {
            assert_eq!(taken_for(&head(at, magic), &[0; 512]), None);
        }
    }
}
