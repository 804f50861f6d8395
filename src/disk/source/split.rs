// SPDX-License-Identifier: Apache-2.0
//! VMDKs whose descriptor is a file of its own: flat and split kinds.

use std::collections::HashMap;

use super::accepted::Limits;
use super::checks::{blank, check_size, read_text};
use crate::conversion::file_name::folded;
use crate::conversion::{Reason, Remedy};
use crate::disk::descriptor::vmdk::{self, CreateType, ExtentKind, ExtentLine};
use crate::disk::descriptor::{MAX_BYTES, shown};
use crate::disk::detect::{self, Content};
use crate::disk::image::{Image, Reader};
use crate::disk::units::SECTOR;
use crate::disk::{Error, Region};

/// Opens the disk that the descriptor in `region` (called `name` within its group) makes of `members`.
pub(super) fn open(region: &Region, name: &str, members: &[(&str, &Region)], limits: &Limits) -> Result<Image, Error> {
    let descriptor = vmdk::parse(region.name(), &read_text(region, MAX_BYTES)?)?;
    descriptor.references(name).map_err(|e| Error { file: region.name().to_owned(), ..e })?;
    // Before the parts' tables are walked.
    check_size(region.name(), descriptor.virtual_size(), limits)?;
    let beside = Beside::of(members);
    let parts = descriptor.extents.iter().enumerate();
    let parts = parts.map(|(number, extent)| open_extent(region.name(), extent, number == 0, &beside));
    Ok(Image::joined(kind(descriptor.create_type), parts.collect::<Result<_, _>>()?))
}

const fn kind(create_type: CreateType) -> &'static str {
    match create_type {
        CreateType::MonolithicSparse => "vmdk monolithicSparse",
        CreateType::StreamOptimized => "vmdk streamOptimized",
        CreateType::TwoGbMaxExtentSparse => "vmdk twoGbMaxExtentSparse",
        CreateType::MonolithicFlat => "vmdk monolithicFlat",
        CreateType::TwoGbMaxExtentFlat => "vmdk twoGbMaxExtentFlat",
        CreateType::Vmfs => "vmdk vmfs",
    }
}

/// The files beside a descriptor.
struct Beside<'a> {
    by_name: HashMap<&'a str, &'a Region>,
    /// By their folded names; `None` where several are alike.
    alike: HashMap<String, Option<&'a Region>>,
}

impl<'a> Beside<'a> {
    /// Of several of one name the first counts.
    fn of(members: &[(&'a str, &'a Region)]) -> Self {
        let mut beside = Self { by_name: HashMap::new(), alike: HashMap::new() };
        for (name, region) in members {
            if !beside.by_name.contains_key(name) {
                beside.by_name.insert(name, region);
                beside.alike.entry(folded(name)).and_modify(|alike| *alike = None).or_insert(Some(region));
            }
        }
        beside
    }

    /// The file of the first of these names that is there, else the only one that differs in case or composition.
    fn find(&self, names: &[&str]) -> Option<&'a Region> {
        let exact = names.iter().find_map(|name| self.by_name.get(name).copied());
        exact.or_else(|| names.iter().find_map(|name| self.alike.get(&folded(name)).copied().flatten()))
    }
}

fn open_extent(file: &str, extent: &ExtentLine, is_first: bool, beside: &Beside) -> Result<Image, Error> {
    let size = extent.sectors * SECTOR;
    let Some((name, other)) = extent.file_names(file)? else { return Ok(blank(size, "vmdk zero extent")) };
    let names: Vec<&str> = std::iter::once(name.as_str()).chain(other.as_deref()).collect();
    let Some(region) = beside.find(&names) else {
        let message = format!("names the extent {}, which is not beside it", shown(&name));
        return Err(Error::refuse(Reason::MissingMember, file, message));
    };
    match extent.kind {
        ExtentKind::Zero => unreachable!("it has no name"),
        ExtentKind::Flat => open_flat(region, extent.offset, size, is_first),
        ExtentKind::Sparse => {
            let reader = Reader::Vmdk(crate::disk::vmdk::open_extent(region, size)?);
            Ok(Image { regions: vec![region.clone()], reader })
        }
    }
}

/// Raw bytes. A file that is an image or an archive by itself is refused as a flat extent: the descriptor then names a
/// file that is not its own. Behind the first extent any file of the guest may begin, so that only disk images count.
fn open_flat(region: &Region, sector: u64, size: u64, is_first: bool) -> Result<Image, Error> {
    let (head, tail) = detect::ends(region)?;
    let is_disk = || {
        let content = detect::detect(region.name(), &head, &tail).unwrap_or(Content::Raw);
        !matches!(content, Content::Raw | Content::Xml | Content::Tar | Content::Zip | Content::Packed(_))
    };
    if let Some(what) = detect::would_probe(&head, &tail).filter(|_| is_first || is_disk()) {
        let message = format!("is a {what} by itself and no flat extent of another disk");
        let error = Error::refuse(Reason::UnsafeReference, region.name(), message);
        return Err(error.with_remedy(Remedy::ConvertExtentAlone));
    }
    let part = sector.checked_mul(SECTOR).and_then(|start| region.part(region.name(), start, size));
    let part = part.ok_or_else(|| {
        let message = format!("has {} bytes, its descriptor says {size} from sector {sector}", region.len());
        Error::truncated(region.name(), region.len(), message)
    })?;
    Image::raw(&part)
}
