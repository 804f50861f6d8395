// SPDX-License-Identifier: Apache-2.0
//! Where sources end.

use super::claim;
use crate::conversion::{Claim, status::End};
use crate::files::paths::Paths;
use crate::files::placement::{Placement, PlacementError};

/// What becomes of the source when a conversion has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposal {
    /// To `.processed/<date>/`.
    Archive,
    /// Back under its name (`archive_processed: false`), or to the archive where that name was taken meanwhile.
    InPlace,
    /// To `.errors/`.
    Errors,
}

impl Disposal {
    /// What an end calls for. A conversion that is given back has its own way ([`claim::plan_return`]).
    #[must_use]
    pub const fn of(end: End, archive_processed: bool) -> Self {
        match (end, archive_processed) {
            (End::Succeeded | End::Duplicate, true) => Self::Archive,
            (End::Succeeded | End::Duplicate, false) => Self::InPlace,
            (End::Failed | End::Cancelled, _) => Self::Errors,
        }
    }
}

/// Chooses where the members go that lie in their claim. Record the placement, carry it out, then tidy up.
pub fn plan(paths: &Paths, claim: &Claim, disposal: Disposal) -> Result<Placement, PlacementError> {
    let from = paths.claim_dir(&claim.id);
    let archive = || Placement::choose(claim, &from, &paths.processed(&claim.date));
    match disposal {
        Disposal::Archive => archive(),
        Disposal::Errors => Placement::choose(claim, &from, &paths.errors()),
        Disposal::InPlace => match Placement::original(claim, &from, &claim::origin(paths, claim))? {
            Some(placement) => Ok(placement),
            None => archive(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rstest::rstest;
    use tempfile::tempdir;

    use super::super::claim::tests::{dropped, paths, visible};
    use super::*;
    use crate::files::{Method, Recorded};

    #[rstest]
    fn sources_end_where_users_look_for_them(
        #[values(Method::NoReplace, Method::Fallback)] method: Method,
        #[values(0, 1, 2)] moved: usize,
        #[values(Disposal::Archive, Disposal::InPlace, Disposal::Errors)] disposal: Disposal,
    ) {
        let dir = tempdir().unwrap();
        let paths = paths(&dir);
        let claim = dropped(&paths, &["vm.ovf", "a.vmdk"]);
        claim::take(&paths, &claim, method).unwrap();
        let placement = plan(&paths, &claim, disposal).unwrap();
        fs::create_dir_all(&placement.dir).unwrap();
        for planned in &placement.moves[..moved] {
            fs::rename(&planned.from, &planned.to).unwrap();
        }
        Recorded::found(placement).carry_out(method).unwrap();
        claim::remove(&paths, &claim.id).unwrap();
        claim::remove(&paths, &claim.id).unwrap();
        let end = match disposal {
            Disposal::Archive => paths.processed("2026-01-17"),
            Disposal::InPlace => paths.queue().to_owned(),
            Disposal::Errors => paths.errors(),
        };
        assert_eq!(visible(&end), ["a.vmdk", "vm.ovf"]);
        assert_eq!(visible(&paths.processing()), Vec::<String>::new());
    }

    #[test]
    fn a_second_file_of_one_name_and_day_gets_a_number() {
        let dir = tempdir().unwrap();
        let paths = paths(&dir);
        for _ in 0..3 {
            let claim = dropped(&paths, &["vm.vmdk"]);
            claim::take(&paths, &claim, Method::NoReplace).unwrap();
            Recorded::found(plan(&paths, &claim, Disposal::Archive).unwrap()).carry_out(Method::NoReplace).unwrap();
            claim::remove(&paths, &claim.id).unwrap();
        }
        assert_eq!(visible(&paths.processed("2026-01-17")), ["vm-1.vmdk", "vm-2.vmdk", "vm.vmdk"]);
    }

    #[test]
    fn a_source_that_cannot_stay_in_place_is_archived_and_replaces_nothing() {
        let dir = tempdir().unwrap();
        let paths = paths(&dir);
        let claim = dropped(&paths, &["vm.vmdk"]);
        claim::take(&paths, &claim, Method::NoReplace).unwrap();
        fs::write(paths.queue().join("vm.vmdk"), "the next one").unwrap();
        Recorded::found(plan(&paths, &claim, Disposal::InPlace).unwrap()).carry_out(Method::NoReplace).unwrap();
        assert_eq!(visible(&paths.processed("2026-01-17")), ["vm.vmdk"]);
        assert_eq!(fs::read_to_string(paths.queue().join("vm.vmdk")).unwrap(), "the next one");
    }

    #[test]
    fn a_source_is_archived_only_after_success() {
        for (end, archive, disposal) in [
            (End::Succeeded, true, Disposal::Archive),
            (End::Duplicate, true, Disposal::Archive),
            (End::Succeeded, false, Disposal::InPlace),
            (End::Duplicate, false, Disposal::InPlace),
            (End::Failed, true, Disposal::Errors),
            (End::Cancelled, false, Disposal::Errors),
        ] {
            assert_eq!(Disposal::of(end, archive), disposal);
        }
    }
}
