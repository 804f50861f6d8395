// SPDX-License-Identifier: Apache-2.0
//! Between attempts an artifact lies in `.errors/` with its error.json, and comes back when its time has come.

use std::fs;
use std::path::PathBuf;

use crate::conversion::{Claim, Member, Stamp};
use crate::files::paths::Paths;
use crate::files::placement::{Placement, PlacementError};
use crate::files::recorded::Recorded;

/// Chooses where the members of a claim are parked. Record it, carry it out, then write error.json beside
/// [`Placement::primary`]. claim.json stays: the claim goes on.
pub fn plan(paths: &Paths, claim: &Claim) -> Result<Placement, PlacementError> {
    Placement::choose(claim, &paths.claim_dir(&claim.id), &paths.errors())
}

/// The way back into the claim from where it is parked. It follows from the record of the way there, so it needs no
/// record of its own.
#[must_use]
pub fn plan_back(paths: &Paths, claim: &Claim, parked: &Recorded<Placement>) -> Recorded<Placement> {
    parked.map(|parked| parked.reversed(&paths.claim_dir(&claim.id)))
}

/// How parked members compare with their claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parked {
    /// As they were: they may go back into the claim without settling anew.
    Unchanged,
    /// These have another size, time or inode: they must settle anew.
    Changed(Vec<String>),
    /// Somebody moved these away (usually to drop them anew): there is no retry.
    Gone(Vec<String>),
}

/// Looks at the parked members of a claim, wherever a crash left them on their way to or from `.errors/`.
#[must_use]
pub fn look(claim: &Claim, parked: &Placement) -> Parked {
    let (mut changed, mut gone) = (Vec::new(), Vec::new());
    for (member, paths) in places(claim, parked) {
        let found: Vec<_> =
            paths.iter().filter_map(|path| fs::symlink_metadata(path).ok().map(|found| Stamp::of(&found))).collect();
        if found.contains(&member.stamp()) {
            continue;
        }
        let name = member.name.clone();
        if found.is_empty() { gone.push(name) } else { changed.push(name) }
    }
    if !gone.is_empty() {
        Parked::Gone(gone)
    } else if changed.is_empty() {
        Parked::Unchanged
    } else {
        Parked::Changed(changed)
    }
}

/// The two places of each member.
fn places<'a>(claim: &'a Claim, parked: &'a Placement) -> Vec<(&'a Member, [PathBuf; 2])> {
    match parked.moves.as_slice() {
        [folder] if folder.is_folder => {
            let both = |member| [&folder.to, &folder.from].map(|path| path.join(claim.within(member)));
            claim.members.iter().map(|member| (member, both(member))).collect()
        }
        moves => moves.iter().map(|planned| (&planned.member, [planned.to.clone(), planned.from.clone()])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tempfile::tempdir;

    use super::super::claim;
    use super::super::claim::tests::{dropped, paths, visible};
    use super::*;
    use crate::files::Method;

    #[rstest]
    fn an_artifact_is_parked_and_comes_back_wherever_it_was_cut_short(
        #[values(Method::NoReplace, Method::Fallback)] method: Method,
        #[values(0, 1, 2)] moved: usize,
    ) {
        let dir = tempdir().unwrap();
        let paths = paths(&dir);
        let claim = dropped(&paths, &["vm.ovf", "a.vmdk"]);
        claim::take(&paths, &claim, method).unwrap();
        let parked = Recorded::found(plan(&paths, &claim).unwrap());
        for planned in &parked.moves[..moved] {
            fs::rename(&planned.from, &planned.to).unwrap();
        }
        assert_eq!(look(&claim, &parked), Parked::Unchanged);
        parked.carry_out(method).unwrap();
        assert_eq!(visible(&paths.errors()), ["a.vmdk", "vm.ovf"]);
        let back = plan_back(&paths, &claim, &parked);
        for planned in &back.moves[..moved] {
            fs::rename(&planned.from, &planned.to).unwrap();
        }
        assert_eq!(look(&claim, &parked), Parked::Unchanged);
        back.carry_out(method).unwrap();
        assert_eq!(claim::changed(&paths.claim_dir(&claim.id), &claim).unwrap(), Vec::<String>::new());
        assert_eq!(visible(&paths.errors()), Vec::<String>::new());
    }

    #[test]
    fn what_was_done_to_a_parked_artifact_is_noticed() {
        let dir = tempdir().unwrap();
        let paths = paths(&dir);
        let claim = dropped(&paths, &["vm.ovf", "a.vmdk"]);
        claim::take(&paths, &claim, Method::NoReplace).unwrap();
        let parked = Recorded::found(plan(&paths, &claim).unwrap());
        parked.carry_out(Method::NoReplace).unwrap();
        fs::write(paths.errors().join("a.vmdk"), "corrected in place").unwrap();
        assert_eq!(look(&claim, &parked), Parked::Changed(vec!["a.vmdk".to_owned()]));
        fs::rename(paths.errors().join("vm.ovf"), paths.queue().join("vm.ovf")).unwrap();
        assert_eq!(look(&claim, &parked), Parked::Gone(vec!["vm.ovf".to_owned()]));
    }
}
