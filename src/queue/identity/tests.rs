// SPDX-License-Identifier: Apache-2.0
//! Pairs that are made, kept, refused and adopted, and what a crash leaves of that.

use rstest::rstest;
use tempfile::{TempDir, tempdir};

use super::*;

fn identity(role: Role, id: &str, partner: &str) -> Identity {
    Identity { role, id: id.to_owned(), partner: partner.to_owned() }
}

fn seen(identity: Option<Identity>, is_used: bool) -> Seen {
    Seen { identity, is_used, ..Seen::default() }
}

/// What is decided, in a word.
fn word(queue: Seen, output: Seen, is_meant: bool) -> &'static str {
    match decide(queue, output, is_meant) {
        Ok(Step::Keep { .. }) => "keep",
        Ok(Step::Complete { .. }) => "complete",
        Ok(Step::Make { .. }) => "make",
        Err(Unfit::Unmarked(Role::Queue)) => "no queue",
        Err(Unfit::Unmarked(Role::Output)) => "no output",
        Err(Unfit::Strangers) => "strangers",
    }
}

#[test]
fn an_unmarked_directory_is_refused_where_the_other_has_an_identity() {
    let queue = || Some(identity(Role::Queue, "q", "o"));
    let output = || Some(identity(Role::Output, "o", "q"));
    let other = || Some(identity(Role::Output, "x", "y"));
    for (of_queue, of_output, decided) in [
        (seen(None, false), seen(None, false), "make"),
        (seen(None, true), seen(None, true), "make"),
        (seen(None, true), seen(None, false), "no output"),
        (seen(None, false), seen(None, true), "no queue"),
        (seen(queue(), true), seen(output(), true), "keep"),
        (seen(queue(), true), seen(None, false), "no output"),
        (seen(queue(), true), seen(None, true), "no output"),
        (seen(None, false), seen(output(), true), "no queue"),
        (seen(queue(), true), seen(other(), true), "strangers"),
    ] {
        assert_eq!(word(of_queue.clone(), of_output.clone(), false), decided, "{of_queue:?} {of_output:?}");
        let adopted = if decided == "keep" { "keep" } else { "make" };
        assert_eq!(word(of_queue.clone(), of_output.clone(), true), adopted, "{of_queue:?} {of_output:?}");
    }
}

fn site() -> (TempDir, Paths) {
    let dir = tempdir().unwrap();
    let paths = Paths::new(dir.path().join("q"), dir.path().join("o"));
    for path in [paths.queue(), paths.output()] {
        fs::create_dir(path).unwrap();
    }
    (dir, paths)
}

fn take(paths: &Paths, is_meant: bool) -> Result<Volumes, IdentityError> {
    plan(paths.queue(), paths.output(), is_meant)?.carry_out(paths)
}

#[test]
fn a_pair_is_made_once_and_known_again() {
    let (_dir, paths) = site();
    take(&paths, false).unwrap().look().unwrap();
    let names = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    for dir in [paths.queue(), paths.output()] {
        assert_eq!(names(dir), [FILE]);
    }
    let before = fs::read(paths.queue().join(FILE)).unwrap();
    take(&paths, true).unwrap();
    assert_eq!(fs::read(paths.queue().join(FILE)).unwrap(), before);
}

#[test]
fn what_is_adopted_keeps_its_id_and_its_former_partner_is_a_stranger() {
    let (dir, paths) = site();
    take(&paths, false).unwrap();
    let other = Paths::new(paths.queue(), dir.path().join("o2"));
    fs::create_dir(other.output()).unwrap();
    assert!(matches!(take(&other, false), Err(IdentityError::Refused(Refusal::Unmarked { .. }))));
    assert_eq!(fs::read_dir(other.output()).unwrap().count(), 0);
    let before = read(paths.queue(), FILE).unwrap().unwrap();
    take(&other, true).unwrap();
    assert_eq!(read(paths.queue(), FILE).unwrap().unwrap().id, before.id);
    assert!(matches!(take(&paths, false), Err(IdentityError::Refused(Refusal::Strangers { .. }))));
}

#[rstest]
fn wherever_making_a_pair_is_cut_short_the_next_start_has_one(
    #[values(0, 1, 2, 3)] steps: usize,
    #[values(false, true)] was_adopted: bool,
) {
    let (dir, paths) = site();
    let mut paths = paths;
    if was_adopted {
        take(&paths, false).unwrap();
        paths = Paths::new(paths.queue(), dir.path().join("o2"));
        fs::create_dir(paths.output()).unwrap();
    }
    let (queue, output) = (identity(Role::Queue, "q", "o"), identity(Role::Output, "o", "q"));
    let make: [&dyn Fn() -> Result<(), IdentityError>; 3] =
        [&|| propose(paths.queue(), &queue), &|| propose(paths.output(), &output), &|| finish(paths.output(), &output)];
    make[..steps].iter().for_each(|step| step().unwrap());
    // Before the second proposal nothing is decided, so the adoption has to be asked for again.
    let volumes = take(&paths, was_adopted && steps < 2).unwrap();
    volumes.look().unwrap();
    let again = plan(paths.queue(), paths.output(), false).unwrap();
    assert!(matches!(again.0, Step::Keep { .. }), "{again:?}");
}

#[test]
fn a_volume_is_away_until_it_is_back_and_one_of_its_identity_is_mounted_anew() {
    let (dir, paths) = site();
    let volumes = take(&paths, false).unwrap();
    let aside = dir.path().join("aside");
    fs::rename(paths.queue(), &aside).unwrap();
    assert!(matches!(volumes.look(), Err(Away::Gone(_))));
    fs::create_dir(paths.queue()).unwrap();
    assert!(matches!(volumes.look(), Err(Away::Gone(_))));
    fs::copy(aside.join(FILE), paths.queue().join(FILE)).unwrap();
    assert!(matches!(volumes.look(), Err(Away::Anew(_))));
    fs::remove_dir_all(paths.queue()).unwrap();
    fs::rename(aside, paths.queue()).unwrap();
    volumes.look().unwrap();
}

#[test]
fn an_identity_of_rubbish_is_none() {
    let (_dir, paths) = site();
    take(&paths, false).unwrap();
    fs::write(paths.queue().join(FILE), "{").unwrap();
    assert!(matches!(take(&paths, false), Err(IdentityError::Refused(Refusal::Unmarked { .. }))));
    take(&paths, true).unwrap();
    take(&paths, false).unwrap();
}
