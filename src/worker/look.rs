// SPDX-License-Identifier: Apache-2.0
//! The look into the guests of what was copied, for their machines. It can't fail a conversion: what it does not find out
//! is a doubt.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::conversion::Conversion;
use super::machines::machines;
use crate::conversion::guest::report::GuestReport;
use crate::conversion::guest::{Doubt, Guest};
use crate::conversion::machine::Machine;
use crate::conversion::report::DiskReport;
use crate::disk::source::{Source, SourceDisk};
use crate::disk::{CopyControl, Image, Reader, open_output};
use crate::guest::{Limits, inspect};

/// How long the look may take where nobody says otherwise: what a person does not notice beside a copy.
pub(super) const LOOK_TIME: Duration = Duration::from_secs(1);

/// The machines of a source whose disks became `disks`, and the guest where there is one machine. Nothing in reports of
/// the first contract version.
pub(super) fn machines_and_guest(
    conversion: &Conversion<'_>,
    source: &Source,
    disks: &[DiskReport],
    control: &CopyControl,
) -> (Vec<Machine>, Option<GuestReport>) {
    if conversion.contract_version < 2 {
        return (Vec::new(), None);
    }
    look(source, disks, conversion.look_time, |n| {
        let made = &disks[n];
        let file = conversion.reopen(n, &made.file).map_err(|failure| failure.message)?;
        let opened = open_output(&file, &made.file, made.format, made.virtual_size_bytes, control);
        opened.map_err(|error| error.to_string())
    })
}

/// The machines of a source whose disks are to be `disks`, and the guest where there is one machine. The look takes
/// `time` at most. `unpacked` opens a disk, by index, that the source has in a packed stream.
pub(super) fn look(
    source: &Source,
    disks: &[DiskReport],
    time: Duration,
    unpacked: impl Fn(usize) -> Result<Image, String>,
) -> (Vec<Machine>, Option<GuestReport>) {
    let end = Instant::now() + time;
    let mut left = u32::try_from(source.machines.len().max(1)).unwrap_or(u32::MAX);
    machines(source, disks, |members| {
        // What one machine does not need is the others'.
        let time = end.saturating_duration_since(Instant::now()) / left;
        left = left.saturating_sub(1).max(1);
        let disks = members.iter().map(|n| (*n, &source.disks[*n], &disks[*n]));
        let looked = catch_unwind(AssertUnwindSafe(|| {
            let (images, doubts) = images(disks, &unpacked);
            let disks: Vec<_> = images.iter().map(|(name, image)| (*name, image)).collect();
            let mut guest = inspect(&disks, &Limits { time, ..Limits::default() });
            guest.doubts.extend(doubts);
            guest
        }));
        let guest = looked.unwrap_or_else(|_| {
            let why = "the look into it ended by a fault of this program, which is worth a report".to_owned();
            Guest { doubts: vec![Doubt { what: "disks".to_owned(), why }], ..Guest::default() }
        });
        GuestReport::of(&guest)
    })
}

/// The images to look into, and doubts about those that there are not. A packed raw disk can be read in one direction
/// only, so it is looked into where it was unpacked to.
fn images<'a>(
    disks: impl Iterator<Item = (usize, &'a SourceDisk, &'a DiskReport)>,
    unpacked: impl Fn(usize) -> Result<Image, String>,
) -> (Vec<(&'a str, Image)>, Vec<Doubt>) {
    let (mut images, mut doubts) = (Vec::new(), Vec::new());
    for (n, disk, made) in disks {
        let opened = if matches!(disk.image.reader, Reader::Packed(_)) { unpacked(n) } else { Ok(disk.image.clone()) };
        match opened {
            Ok(image) => images.push((made.file.as_str(), image)),
            Err(why) => doubts.push(Doubt { what: made.file.clone(), why }),
        }
    }
    (images, doubts)
}
