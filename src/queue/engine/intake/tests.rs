// SPDX-License-Identifier: Apache-2.0
//! Sources that stay where they are.

use super::*;

#[test]
fn a_source_left_in_place_does_not_settle_again_unless_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.raw");
    std::fs::write(&path, "converted").unwrap();
    let member = scan::look(directory.path(), "vm.raw").unwrap().unwrap().member();
    let left = LeftSource {
        path: "vm.raw".to_owned(),
        inode: member.inode,
        size_bytes: member.size_bytes,
        mtime_ns: member.mtime_ns,
    };
    let second = Duration::from_secs(1);
    let pace = Pace {
        look_interval: second,
        stable_timeout: 30 * second,
        companion_timeout: 3600 * second,
        quiet_period: Duration::ZERO,
    };
    let mut intake = Intake::new(directory.path().to_owned(), pace, Default::default(), vec![left], World::default());
    intake.look(Duration::ZERO);
    intake.hint("vm.raw", Duration::ZERO);
    assert_eq!(intake.unsettled(), 0);
    std::fs::write(&path, "another one").unwrap();
    intake.hint("vm.raw", second);
    // This was the first look; three more make it stable.
    for n in 2..5 {
        assert_eq!((intake.unsettled(), intake.ready().len()), (1, 0));
        intake.look(n * second);
        intake.group(|_, _, _| None, n * second);
    }
    assert_eq!(intake.ready().map(AsRef::as_ref).collect::<Vec<&str>>(), ["vm.raw"]);
}
