// SPDX-License-Identifier: Apache-2.0
//! Targets in directories, and what errors at targets mean.

use std::fs;

use super::*;

fn directory() -> (tempfile::TempDir, Targets) {
    let place = tempfile::tempdir().unwrap();
    let targets = Targets::open(&[DiskTarget::Directory(place.path().to_owned())]).unwrap();
    (place, targets)
}

#[test]
fn an_image_gets_its_name_once_and_never_in_place_of_another() {
    let (place, targets) = directory();
    targets.create(0).unwrap();
    targets.seal().unwrap();
    targets.seal().unwrap();
    assert!(place.path().join(DISK_IMAGE).exists() && !place.path().join(DISK_IMAGE_PART).exists());

    let (place, targets) = directory();
    targets.create(0).unwrap();
    fs::write(place.path().join(DISK_IMAGE), "another's").unwrap();
    assert_eq!(targets.seal().unwrap_err().reason, Reason::TargetInUse);
    assert_eq!(fs::read(place.path().join(DISK_IMAGE)).unwrap(), b"another's");
    targets.discard();
    assert!(!place.path().join(DISK_IMAGE_PART).exists() && place.path().join(DISK_IMAGE).exists());

    let (_place, targets) = directory();
    assert_eq!(targets.seal().unwrap_err().reason, Reason::TargetLost, "there is nothing to seal");
}

#[test]
fn errors_at_a_target_have_reasons_of_their_own() {
    for (error, reason) in [
        (Errno::ACCESS, Reason::TargetDenied),
        (Errno::ROFS, Reason::TargetDenied),
        (Errno::BUSY, Reason::TargetInUse),
        (Errno::NXIO, Reason::TargetLost),
        (Errno::NOSPC, Reason::OutputFull),
        (Errno::IO, Reason::OutputIO),
    ] {
        assert_eq!(reason_of(&error.into()), reason, "{error}");
    }
    let (_place, targets) = directory();
    let full = |failure: &Failure| {
        let error = Error::writing("disk", 0, Errno::NOSPC.into());
        targets.blame(0, &error, failure.clone()).reason
    };
    assert_eq!(full(&Failure::new(Reason::OutputFull, "full")), Reason::TargetTooSmall);
    let named =
        targets.blame(0, &Error::writing("disk", 0, Errno::NOSPC.into()), Failure::new(Reason::OutputFull, "full"));
    assert_eq!(named.targets, [0]);
    let error = Error::refuse(Reason::Corrupt, "disk", "is broken");
    assert_eq!(targets.blame(0, &error, Failure::from(&error)).reason, Reason::Corrupt);
}

#[test]
fn all_targets_that_are_too_small_are_told_at_once() {
    let places: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let named: Vec<_> = places.iter().map(|place| DiskTarget::Directory(place.path().to_owned())).collect();
    let targets = Targets::open(&named).unwrap();
    targets.check("web", &[1, 1, 1]).unwrap();
    let huge = 1 << 60;
    let one = targets.check("web", &[1, huge, 1]).unwrap_err();
    assert_eq!((one.reason, one.targets.as_slice(), one.needed_bytes), (Reason::TargetTooSmall, &[1][..], Some(huge)));
    let two = targets.check("web", &[huge, 1, huge]).unwrap_err();
    assert_eq!((two.targets.as_slice(), two.needed_bytes), (&[0, 2][..], None));
}
