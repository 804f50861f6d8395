// SPDX-License-Identifier: Apache-2.0
//! Tars whose member is a disk with holes, in each format that GNU tar has for them.
//!
//! Format: GNU tar's manual, "Storing Sparse Files".

use super::images::Dropped;
use crate::support::ova::{END, entry, header, pax, sum};

/// Bytes of the disk, and where it has data: more places than an old header holds.
const LEN: usize = 2 << 20;
const DATA: [(usize, usize); 6] =
    [(0, 512), (4096, 8192), (65_536, 512), (1 << 20, 65_536), (1_572_864, 512), (LEN, 0)];

/// One tar of each format.
pub(super) fn tars(content: &[u8]) -> [Dropped; 4] {
    let kept: Vec<u8> = DATA.iter().flat_map(|(start, len)| &content[*start..start + len]).copied().collect();
    let size = LEN.to_string();
    let numbers: Vec<String> = DATA.iter().flat_map(|(start, len)| [start.to_string(), len.to_string()]).collect();
    let member = |records: &[(&str, &str)], map: &[u8]| {
        let content = [map, &kept].concat();
        let member = entry(&header(b"GNUSparseFile.1/disk.raw", content.len() as u64, b'0'), &content);
        [pax(records), member, END.to_vec()].concat()
    };
    let mut single = vec![("GNU.sparse.size", size.as_str())];
    for pair in numbers.chunks(2) {
        single.extend([("GNU.sparse.offset", pair[0].as_str()), ("GNU.sparse.numbytes", pair[1].as_str())]);
    }
    let list = numbers.join(",");
    let listed =
        [("GNU.sparse.size", size.as_str()), ("GNU.sparse.name", "disk.raw"), ("GNU.sparse.map", list.as_str())];
    let before = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "disk.raw"),
        ("GNU.sparse.realsize", size.as_str()),
    ];
    let mut map = format!("{}\n{}\n", DATA.len(), numbers.join("\n")).into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    let dropped = |name, image| Dropped { name, image, siblings: Vec::new() };
    [
        dropped("old-sparse.tar", old(&kept)),
        dropped("sparse-0-0.tar", member(&single, &[])),
        dropped("sparse-0-1.tar", member(&listed, &[])),
        dropped("sparse-1-0.tar", member(&before, &map)),
    ]
}

fn old(kept: &[u8]) -> Vec<u8> {
    let mut first = header(b"disk.raw", kept.len() as u64, b'S');
    let mut more = [0; 512];
    first[257..265].copy_from_slice(b"ustar  \0");
    for (index, (start, len)) in DATA.into_iter().enumerate() {
        let range = format!("{start:011o}\0{len:011o}\0");
        let (block, at) = if index < 4 { (&mut first, 386 + index * 24) } else { (&mut more, (index - 4) * 24) };
        block[at..at + 24].copy_from_slice(range.as_bytes());
    }
    first[482] = 1;
    first[483..495].copy_from_slice(format!("{LEN:011o}\0").as_bytes());
    sum(&mut first);
    [&first[..], &more, &entry(&[0; 512], kept)[512..], &END].concat()
}
