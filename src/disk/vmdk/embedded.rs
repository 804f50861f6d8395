//! What the descriptor inside a sparse extent must say: that the file is the whole disk.

use crate::conversion::Reason;
use crate::disk::{Error, Region};

/// Content id of "no parent".
const NO_PARENT: &str = "ffffffff";

/// Checks the descriptor of `len` bytes at `offset`: one known `createType`, no parent, exactly one extent.
///
/// # Errors
/// `UnsafeReference` for a parent, `UnsupportedFormat` for another kind of disk, `Corrupt` for anything else.
pub(super) fn check(region: &Region, offset: u64, len: u64) -> Result<(), Error> {
    let wanted = usize::try_from(len).expect("the header bounds it to 1 MiB");
    let mut bytes = vec![0; wanted];
    region.read_exact_at(&mut bytes, offset)?;
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let refuse = |reason, message: String| Err(Error::refuse(reason, region.name(), message).at(offset));

    let mut kinds = Vec::new();
    let mut extents = 0;
    for line in text.lines().map(str::trim) {
        if is_extent(line) {
            extents += 1;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        match key.trim().to_ascii_lowercase().as_str() {
            "createtype" => kinds.push(value.to_owned()),
            "parentfilenamehint" => {
                return refuse(Reason::UnsafeReference, "is a child of another disk (parentFileNameHint)".to_owned());
            }
            "parentcid" if !value.eq_ignore_ascii_case(NO_PARENT) => {
                return refuse(Reason::UnsafeReference, "is a child of another disk (parentCID)".to_owned());
            }
            _ => {}
        }
    }
    match kinds.as_slice() {
        [kind] if ["monolithicsparse", "streamoptimized"].contains(&kind.to_ascii_lowercase().as_str()) => {}
        [kind] => return refuse(Reason::UnsupportedFormat, format!("has createType {kind:?} in a sparse extent")),
        kinds => return refuse(Reason::Corrupt, format!("has {} createType lines, needs one", kinds.len())),
    }
    if extents != 1 {
        return refuse(Reason::UnsafeReference, format!("names {extents} extents, needs exactly its own"));
    }
    Ok(())
}

/// Whether the line lists an extent: access, size in sectors, kind.
fn is_extent(line: &str) -> bool {
    let access = line.split_ascii_whitespace().next().unwrap_or_default();
    ["RW", "RDONLY", "NOACCESS"].iter().any(|known| access.eq_ignore_ascii_case(known))
}
