// SPDX-License-Identifier: Apache-2.0
//! The size of a disk, by the beginning of its image alone: for an inspection that does not unpack all of it.
//!
//! Places of the fields: the modules of the formats.

use super::Region;
use super::detect::Content;
use super::fields::{be64, le32, le64};
use super::units::SECTOR;

/// What the header says, unchecked; `None` where it says nothing or is not in `beginning`.
pub(super) fn virtual_size(content: Content, beginning: &Region) -> Option<u64> {
    let mut head = [0; 512];
    beginning.read_exact_at(&mut head, 0).ok()?;
    let size = match content {
        Content::Qcow2 => be64(&head, 24),
        Content::VmdkSparse => le64(&head, 12).checked_mul(SECTOR)?,
        Content::Vdi => le64(&head, 0x170),
        Content::Vhd => be64(&head, 48),
        Content::Parallels if head.starts_with(super::parallels::OLD) => u64::from(le32(&head, 36)) * SECTOR,
        Content::Parallels => le64(&head, 36).checked_mul(SECTOR)?,
        _ => return None,
    };
    (size > 0).then_some(size)
}
