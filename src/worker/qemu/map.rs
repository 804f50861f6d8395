// SPDX-License-Identifier: Apache-2.0
//! What an overlay changes, as `qemu-img map` tells it: input from a program that has read hostile data.

use std::ops::Range;

use serde::Deserialize;

/// Longest answer that is read, in bytes: 64 KiB changed in every 128 KiB of 16 GiB.
pub(super) const MAX_ANSWER: u64 = 32 << 20;

/// A range of the disk that an overlay changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Change {
    /// Bytes of the disk.
    pub disk: Range<u64>,
    /// Where they lie in the overlay's file; absent where they are zeros.
    pub at: Option<u64>,
}

/// An answer that is not believed.
#[derive(Debug, thiserror::Error)]
pub(in crate::worker) enum MapError {
    #[error("it is no list of ranges")]
    Malformed(#[from] serde_json::Error),
    #[error("range {0} is not behind the one before it, and within the disk")]
    Order(usize),
    #[error("range {0} is not in the overlay's file")]
    Outside(usize),
}

#[derive(Deserialize)]
struct Told {
    start: u64,
    length: u64,
    present: bool,
    zero: bool,
    data: bool,
    offset: Option<u64>,
}

/// Reads the map of an overlay without what is behind it. `size`: bytes of the disk; `file`: those of the overlay's file.
pub(super) fn read(answer: &[u8], size: u64, file: u64) -> Result<Vec<Change>, MapError> {
    let told: Vec<Told> = serde_json::from_slice(answer)?;
    let mut changes = Vec::new();
    let mut end = 0;
    for (n, range) in told.iter().enumerate() {
        let to = range.start.checked_add(range.length).filter(|&to| range.start >= end && to <= size);
        end = to.ok_or(MapError::Order(n))?;
        if !range.present || range.length == 0 {
            continue;
        }
        let at = if range.data && !range.zero {
            let at = range.offset.filter(|at| at.checked_add(range.length).is_some_and(|to| to <= file));
            Some(at.ok_or(MapError::Outside(n))?)
        } else {
            None
        };
        changes.push(Change { disk: range.start..end, at });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_overlay_holds_is_a_change_and_what_it_leaves_is_none() {
        let answer = json!([
            {"start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "offset": 327_680},
            {"start": 65536, "length": 65536, "depth": 0, "present": false, "zero": true, "data": false},
            {"start": 131_072, "length": 512, "depth": 0, "present": true, "zero": true, "data": false},
        ]);
        let changes = [Change { disk: 0..65536, at: Some(327_680) }, Change { disk: 131_072..131_584, at: None }];
        assert_eq!(read(answer.to_string().as_bytes(), 131_584, 393_216).unwrap(), changes);
        let read = |size, file| read(answer.to_string().as_bytes(), size, file).unwrap_err().to_string();
        assert!(read(131_072, 393_216).contains("range 2"), "beyond the disk");
        assert!(read(131_584, 393_215).contains("range 0 is not in"), "beyond the file");
    }

    #[test]
    fn ranges_that_overlap_are_not_believed() {
        let range = |start: u64, length: u64| json!({"start": start, "length": length, "present": false, "zero": true, "data": false});
        for ranges in
            [json!([range(8, 8), range(0, 8)]), json!([range(0, 8), range(4, 8)]), json!([range(u64::MAX, 2)])]
        {
            assert!(matches!(read(ranges.to_string().as_bytes(), 64, 0), Err(MapError::Order(_))), "{ranges}");
        }
        assert!(matches!(read(b"{}", 64, 0), Err(MapError::Malformed(_))));
    }
}
