// SPDX-License-Identifier: Apache-2.0
//! The identifiers of regions and metadata items (MS-VHDX 2.2.3.2 and 2.6.2), as they lie in the file.

pub(super) type Guid = [u8; 16];

pub(super) const NIL: Guid = [0; 16];

pub(super) const BAT: Guid = guid(0x2DC2_7766, 0xF623, 0x4200, 0x9D64_115E_9BFD_4A08);
pub(super) const METADATA: Guid = guid(0x8B7C_A206, 0x4790, 0x4B9A, 0xB8FE_575F_050F_886E);

pub(super) const FILE_PARAMETERS: Guid = guid(0xCAA1_6737, 0xFA36, 0x4D43, 0xB3B6_33F0_AA44_E76B);
pub(super) const VIRTUAL_DISK_SIZE: Guid = guid(0x2FA5_4224, 0xCD1B, 0x4876, 0xB211_5DBE_D83B_F4B8);
pub(super) const VIRTUAL_DISK_ID: Guid = guid(0xBECA_12AB, 0xB2E6, 0x4523, 0x93EF_C309_E000_C746);
pub(super) const LOGICAL_SECTOR_SIZE: Guid = guid(0x8141_BF1D, 0xA96F, 0x4709, 0xBA47_F233_A8FA_AB5F);
pub(super) const PHYSICAL_SECTOR_SIZE: Guid = guid(0xCDA3_48C7, 0x445D, 0x4471, 0x9CC9_E988_5251_C556);
pub(super) const PARENT_LOCATOR: Guid = guid(0xA8D3_5F2D, 0xB30B, 0x454D, 0xABF7_D3D8_4834_AB0C);

/// The first three parts are little-endian in the file, the rest as written.
const fn guid(a: u32, b: u16, c: u16, rest: u64) -> Guid {
    let (a, b, c, r) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), rest.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]]
}
