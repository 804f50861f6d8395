// SPDX-License-Identifier: Apache-2.0
//! The security descriptor of what is added to an NTFS: without one, everybody may change it.
//!
//! From Microsoft's "Windows Data Types" (MS-DTYP), 2.4.

/// Kinds of control: self-relative, with a list of rights that is not inherited.
const CONTROL: u16 = 0x8000 | 0x1000 | 0x0004;
/// Whom the rights are given to: the system, administrators, users (S-1-5-18, S-1-5-32-544, S-1-5-32-545).
const SYSTEM: &[u32] = &[18];
const ADMINISTRATORS: &[u32] = &[32, 544];
const USERS: &[u32] = &[32, 545];
/// Everything; and reading and starting.
const FULL: u32 = 0x001F_01FF;
const READ: u32 = 0x0012_00A9;
/// What stands in a directory gets the same.
const INHERITED: u8 = 3;
const HEADER: usize = 20;

/// System and administrators may do everything, users may read and start. The owner are the administrators.
pub(super) fn descriptor() -> Vec<u8> {
    let rights = [(FULL, SYSTEM), (FULL, ADMINISTRATORS), (READ, USERS)];
    let entries: Vec<u8> = rights.iter().flat_map(|(mask, who)| entry(*mask, who)).collect();
    let list_len = length(8 + entries.len()).to_le_bytes();
    let list = [&[2, 0][..], &list_len, &length(rights.len()).to_le_bytes(), &[0; 2], &entries].concat();
    let (owner, group) = (identity(ADMINISTRATORS), identity(SYSTEM));
    let owner_at = HEADER + list.len();
    let places = [owner_at, owner_at + owner.len(), 0, HEADER].map(|place| u32::from(length(place)).to_le_bytes());
    [&[1, 0][..], &CONTROL.to_le_bytes(), &places.concat(), &list, &owner, &group].concat()
}

fn entry(mask: u32, who: &[u32]) -> Vec<u8> {
    let who = identity(who);
    [&[0, INHERITED][..], &length(8 + who.len()).to_le_bytes(), &mask.to_le_bytes(), &who].concat()
}

/// S-1-5-…
fn identity(parts: &[u32]) -> Vec<u8> {
    let count = u8::try_from(parts.len()).expect("there are two at most");
    let parts: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
    [&[1, count, 0, 0, 0, 0, 0, 5][..], &parts].concat()
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a descriptor has some hundred bytes")
}
