// SPDX-License-Identifier: Apache-2.0
//! A registry hive without keys, as Windows would begin one: everything else is put into it by others.

/// The root's offset.
const ROOT: u32 = 32;
/// Flags of a root that may not be deleted and has a narrow name.
const ROOT_FLAGS: u16 = 0x2C;
/// A descriptor that lets everybody do everything: revision 1, self-relative, no lists.
const OPEN: [u8; 20] = [1, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The file of a hive of version 1.`minor` with an empty root.
pub(crate) fn empty(minor: u32) -> Vec<u8> {
    let mut cells = Vec::new();
    let mut cell = |content: &[u8]| {
        let len = (content.len() + 4).next_multiple_of(8);
        cells.extend((-i32::try_from(len).unwrap()).to_le_bytes());
        cells.extend(content);
        cells.resize(cells.len().next_multiple_of(8), 0);
        32 + u32::try_from(cells.len()).unwrap()
    };
    let mut root = vec![0; 76];
    root[..2].copy_from_slice(b"nk");
    root[2..4].copy_from_slice(&ROOT_FLAGS.to_le_bytes());
    for at in [28, 32, 40, 48] {
        root[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    }
    root[72] = 4;
    root.extend(b"ROOT");
    // The descriptor stands behind the root.
    let security = ROOT + u32::try_from((root.len() + 4).next_multiple_of(8)).unwrap();
    root[44..48].copy_from_slice(&security.to_le_bytes());
    assert_eq!(cell(&root), security);
    let links = [security, security, 1, u32::try_from(OPEN.len()).unwrap()];
    let links: Vec<u8> = links.iter().flat_map(|number| number.to_le_bytes()).collect();
    cell(&[&b"sk\0\0"[..], &links, &OPEN].concat());
    let free = 4096 - 32 - cells.len();
    cells.extend(u32::try_from(free).unwrap().to_le_bytes());
    cells.resize(4096 - 32, 0);
    let mut file = vec![0; 4096];
    file[..4].copy_from_slice(b"regf");
    for (at, number) in [(4, 7), (8, 7), (20, 1), (24, minor), (32, 1), (36, ROOT), (40, 4096), (44, 1)] {
        file[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
    }
    let sum = file[..508].as_chunks::<4>().0.iter().fold(0, |sum, word| sum ^ u32::from_le_bytes(*word));
    file[508..512].copy_from_slice(&sum.to_le_bytes());
    let mut bin = [&b"hbin"[..], &[0; 4], &4096_u32.to_le_bytes()].concat();
    bin.resize(32, 0);
    [file, bin, cells].concat()
}
