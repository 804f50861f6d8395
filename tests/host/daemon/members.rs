// SPDX-License-Identifier: Apache-2.0
//! Members are proved, and it does not matter in which order they come or how far apart.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use super::groups::{CAPACITY, names, stream_optimized};
use crate::support::daemon::{SOON, Site};
use crate::support::{ova, vmdk};

/// A streamOptimized disk of so many grains, of this byte: more of them make a larger file.
fn grains(count: u64, byte: u8) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    let grain = |number| {
        (number < count).then(|| {
            let mut grain = vec![byte; usize::try_from(vmdk::GRAIN).unwrap()];
            // Nothing that a compression makes small.
            grain.iter_mut().enumerate().for_each(|(n, b)| *b = b.wrapping_add(u8::try_from(n * n / 7 % 251).unwrap()));
            grain
        })
    };
    vmdk::Sparse::stream_optimized(vmdk::GRAIN * 4).write(&mut file, grain).unwrap();
    file.into_inner()
}

/// An OVF that states the sizes of its files.
fn sized_ovf(disks: &[(&str, u64, usize)]) -> String {
    let plain: Vec<_> = disks.iter().map(|(name, capacity, _)| (*name, *capacity)).collect();
    disks.iter().fold(ova::ovf(&plain), |text, (name, _, size)| {
        text.replace(&format!("ovf:href=\"{name}\""), &format!("ovf:href=\"{name}\" ovf:size=\"{size}\""))
    })
}

/// The metadata.json of what was published under this name.
fn metadata(site: &Site, stem: &str) -> Value {
    let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
    serde_json::from_slice(&fs::read(site.output().join(day).join(stem).join("metadata.json")).unwrap()).unwrap()
}

#[test]
fn an_ovf_and_its_disks_are_one_whole_also_when_each_is_converted_before_the_next_comes() {
    let members = ["vm.ovf", "vm-1.vmdk", "vm-2.vmdk"];
    for order in [[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let site = Site::new("");
        let daemon = site.start();
        let disks = [stream_optimized(1), stream_optimized(2)];
        let ovf = sized_ovf(&[("vm-1.vmdk", CAPACITY, disks[0].len()), ("vm-2.vmdk", CAPACITY, disks[1].len())]);
        let content = [ovf.as_bytes(), &disks[0], &disks[1]];
        let mut alone = 0;
        for (at, n) in order.into_iter().enumerate() {
            site.drop_file(members[n], content[n]);
            if order[..=at].contains(&0) {
                let stable = format!("File stable: {}", members[n]);
                daemon.until(&stable, || !daemon.lines(&stable).is_empty());
            } else {
                alone += 1;
                daemon.until("it is converted alone", || site.archived().len() == alone);
            }
        }
        daemon.until("the whole is archived", || site.archived() == ["vm-1.vmdk", "vm-2.vmdk", "vm.ovf"]);
        assert_eq!(metadata(&site, "vm")["disks"].as_array().unwrap().len(), 2, "{order:?}");
        // What was made of a disk alone says so, and stays.
        let superseded: Vec<_> = site.published().into_iter().filter(|stem| stem != "vm").collect();
        assert_eq!(superseded.len(), alone, "{order:?}");
        for stem in superseded {
            let by = metadata(&site, &stem)["supersededBy"].as_str().unwrap().to_owned();
            assert!(by.ends_with("/vm"), "{by}");
        }
        daemon.until("it is counted", || daemon.stats()["total_processed"] == alone + 1);
        assert_eq!(daemon.stats()["total_superseded"], alone, "{order:?}");
        assert_eq!((daemon.stats()["total_failed"].as_u64(), site.in_errors()), (Some(0), vec![]), "{order:?}");
    }
}

#[test]
fn disks_are_taken_back_after_a_restart_wherever_they_were_left() {
    for config in ["", "archive_processed: false"] {
        let site = Site::new(config);
        let mut daemon = site.start();
        // States no size: what came lately is it.
        site.drop_file("vm-1.vmdk", &stream_optimized(1));
        site.drop_file("vm-2.vmdk", b"no disk at all");
        daemon.until("one is converted", || daemon.stats()["total_processed"] == 1);
        daemon.until("the other has failed", || site.in_errors() == ["vm-2.vmdk"]);
        daemon.signal(Signal::TERM);
        assert!(daemon.end_within(SOON).success());
        let daemon = site.start();
        site.drop_file("vm.ovf", ova::ovf(&[("vm-1.vmdk", CAPACITY), ("vm-2.vmdk", CAPACITY)]).as_bytes());
        // All come together, to the place where what failed is.
        daemon.until("it has failed", || site.in_errors() == ["vm-1.vmdk", "vm-2.vmdk", "vm.ovf"]);
        daemon.until("its report is there", || site.queue().join(".errors/vm.ovf.error.json").exists());
        assert_ne!(site.error_file("vm.ovf")["reason"], "MissingMember");
        assert!(!site.queue().join(".errors/vm-2.vmdk.error.json").exists());
        assert_eq!((site.archived(), site.waiting()), (vec![], vec![]));
        // And from there again, with the right one in the place of what is none.
        fs::remove_file(site.queue().join(".errors/vm-2.vmdk")).unwrap();
        fs::rename(site.queue().join(".errors/vm.ovf"), site.queue().join("vm.ovf")).unwrap();
        site.drop_file("vm-2.vmdk", &stream_optimized(2));
        daemon.until("the whole is published", || site.published() == ["vm", "vm-1"]);
        daemon.until("nothing is left in .errors", || site.in_errors().is_empty());
        assert_eq!(metadata(&site, "vm")["disks"].as_array().unwrap().len(), 2);
        let all = names(&["vm-1.vmdk", "vm-2.vmdk", "vm.ovf"]);
        daemon.until("all lie together", || site.archived() == all || site.waiting() == all);
    }
}

#[test]
fn an_ovf_whose_disk_was_converted_alone_and_then_removed_fails_with_what_to_do() {
    let site = Site::new("companion_timeout: 3");
    let daemon = site.start();
    site.drop_file("vm-1.vmdk", &stream_optimized(1));
    daemon.until("the disk is converted", || site.archived() == ["vm-1.vmdk"]);
    let day = site.names("queue/.processed").remove(0);
    fs::remove_file(site.queue().join(".processed").join(day).join("vm-1.vmdk")).unwrap();
    let stated = stream_optimized(1).len();
    site.drop_file("vm.ovf", sized_ovf(&[("vm-1.vmdk", CAPACITY, stated)]).as_bytes());
    daemon.until("its report is there", || site.queue().join(".errors/vm.ovf.error.json").exists());
    let report = site.error_file("vm.ovf");
    assert_eq!(report["reason"], "MissingMember", "{report}");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("vm-1.vmdk arrived first and was already converted by itself, into "), "{error}");
    assert!(error.ends_with("is gone or was changed: copy vm-1.vmdk into the queue directory again"), "{error}");
    // Which then works.
    site.drop_file("vm-1.vmdk", &stream_optimized(1));
    fs::rename(site.queue().join(".errors/vm.ovf"), site.queue().join("vm.ovf")).unwrap();
    daemon.until("the whole is archived", || site.archived() == ["vm-1.vmdk", "vm.ovf"]);
}

#[test]
fn a_disk_of_another_machine_is_not_taken_for_one_of_its_name() {
    // More than stated, and less.
    for (others, own) in [(3, 2), (1, 2)] {
        let site = Site::new("companion_timeout: 60");
        let daemon = site.start();
        let (others, own) = (grains(others, 1), grains(own, 2));
        let (capacity, stated) = (vmdk::GRAIN * 4, own.len());
        site.drop_file("b.ovf", sized_ovf(&[("disk-0.vmdk", capacity, stated)]).as_bytes());
        daemon.until("b is stable", || !daemon.lines("File stable: b.ovf").is_empty());
        site.drop_file("disk-0.vmdk", &others);
        if others.len() > stated {
            daemon.until("it is a machine of its own", || site.published() == ["disk-0"]);
        } else {
            daemon.until("it is stable", || !daemon.lines("File stable: disk-0.vmdk").is_empty());
        }
        assert!(!site.published().contains(&"b".to_owned()));
        // Its own OVF comes, and it belongs to that, whether it was converted alone or not.
        site.drop_file("a.ovf", sized_ovf(&[("disk-0.vmdk", capacity, others.len())]).as_bytes());
        daemon.until("a is published", || site.published().contains(&"a".to_owned()));
        site.drop_file("disk-0.vmdk", &own);
        daemon.until("b is published", || site.published().contains(&"b".to_owned()));
        daemon.until("all is archived", || site.archived().len() == 4);
        for (stem, source) in [("a", &others), ("b", &own)] {
            let total = metadata(&site, stem)["source"]["sizeBytes"].as_u64().unwrap();
            let ovf = sized_ovf(&[("disk-0.vmdk", capacity, source.len())]).len();
            assert_eq!(total, (ovf + source.len()) as u64, "{stem}");
        }
        assert_eq!(daemon.stats()["total_failed"], 0);
    }
}

#[test]
fn a_disk_of_another_size_lets_its_ovf_wait_and_fail_with_both_sizes() {
    let site = Site::new("companion_timeout: 2");
    let daemon = site.start();
    let short = grains(1, 1);
    site.drop_file("vm.ovf", sized_ovf(&[("web-disk0.vmdk", vmdk::GRAIN * 4, short.len() + 1000)]).as_bytes());
    site.drop_file("web-disk0.vmdk", &short);
    daemon.until("its report is there", || site.queue().join(".errors/vm.ovf.error.json").exists());
    let report = site.error_file("vm.ovf");
    assert_eq!(report["reason"], "MissingMember", "{report}");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("web-disk0.vmdk is there with ") && error.contains(" bytes, vm.ovf says "), "{error}");
    assert!(error.ends_with("it belongs to another machine or is incomplete"), "{error}");
}

#[test]
fn a_disk_that_fits_two_ovfs_fails_both_and_neither_is_published_with_it() {
    let site = Site::new("");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_LOOK_INTERVAL_MS", "500")]);
    for name in ["a.ovf", "b.ovf"] {
        site.drop_file(name, ova::ovf(&[("disk-0.vmdk", CAPACITY)]).as_bytes());
    }
    site.drop_file("disk-0.vmdk", &stream_optimized(1));
    daemon.until("both have failed", || daemon.stats()["total_failed"] == 2);
    for name in ["a.ovf", "b.ovf"] {
        daemon.until("its report is there", || site.queue().join(format!(".errors/{name}.error.json")).exists());
        let error = site.error_file(name)["error"].as_str().unwrap().to_owned();
        assert!(error.contains("disk-0.vmdk is named by a.ovf and b.ovf and fits them equally"), "{error}");
    }
    assert_eq!(site.published(), Vec::<String>::new());
    assert_eq!(site.in_errors(), ["a.ovf", "b.ovf", "disk-0.vmdk"]);
}

/// A manifest of these members.
fn manifest(members: &[(&str, &[u8])]) -> Vec<u8> {
    ova::manifest(members).into_bytes()
}

#[test]
fn a_manifest_tells_another_machines_disk_of_the_same_name_and_size() {
    // Converted by itself before the OVF comes, or under way when it comes.
    for is_ended in [true, false] {
        let site = Site::new("");
        let environment: &[(&str, &str)] = if is_ended { &[] } else { &[("HYPER2KVM_TEST_HANG", "1")] };
        let mut daemon = site.start_with(environment);
        let (others, own) = (stream_optimized(1), stream_optimized(2));
        assert_eq!(others.len(), own.len(), "only their content differs");
        site.drop_file("disk-0.vmdk", &others);
        if is_ended {
            daemon.until("it is converted alone", || site.archived() == ["disk-0.vmdk"]);
        } else {
            daemon.until("it is under way", || daemon.workers().len() == 1);
        }
        let ovf = sized_ovf(&[("disk-0.vmdk", CAPACITY, own.len())]);
        site.drop_file("b.mf", &manifest(&[("b.ovf", ovf.as_bytes()), ("disk-0.vmdk", &own)]));
        site.drop_file("b.ovf", ovf.as_bytes());
        if !is_ended {
            daemon.until("it is recalled", || daemon.lines("the conversion is given back").len() == 1);
            daemon.until("b is under way", || daemon.lines("attempt started").len() == 2);
            // What hangs is ended, and the next daemon goes on with the claim.
            daemon.signal(Signal::TERM);
            assert!(daemon.end_within(SOON).success());
            drop(daemon);
            daemon = site.start();
        }
        daemon.until("the manifest tells", || daemon.lines("belongs to another machine; it goes back").len() == 1);
        daemon.until("the other is a machine of its own", || site.archived() == ["disk-0.vmdk"]);
        daemon.until("b waits", || site.waiting() == ["b.mf", "b.ovf"]);
        site.drop_file("disk-0.vmdk", &own);
        daemon.until("b is published", || site.published() == ["b", "disk-0"]);
        daemon.until("all is archived", || site.archived().len() == 4 && site.waiting().is_empty());
        assert_eq!((site.in_errors(), daemon.stats()["total_failed"].as_u64()), (vec![], Some(0)), "{}", daemon.log());
        assert_eq!(metadata(&site, "disk-0").get("supersededBy"), None);
        assert_eq!(daemon.stats()["total_superseded"], 0);
        // And the other machine's OVF finds it.
        site.drop_file("a.ovf", sized_ovf(&[("disk-0.vmdk", CAPACITY, others.len())]).as_bytes());
        daemon.until("a is published", || site.published() == ["a", "b", "disk-0"]);
        daemon.until("it is marked", || metadata(&site, "disk-0").get("supersededBy").is_some());
    }
}

#[test]
fn the_beginning_of_an_upload_that_was_converted_is_superseded_by_the_whole() {
    let site = Site::new("");
    let daemon = site.start();
    let whole: Vec<u8> = (0..8 << 16).flat_map(|word: u32| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    site.drop_file("disk.raw", &whole[..1 << 20]);
    daemon.until("the half is taken for a disk", || site.archived() == ["disk.raw"]);
    // Another disk of the same name is nobody's beginning.
    site.drop_file("disk.raw", &[whole[1..1 << 20].to_vec(), vec![0; 2 << 20]].concat());
    daemon.until("another is published", || site.published() == ["disk", "disk-1"]);
    daemon.until("it is counted", || daemon.stats()["total_processed"] == 2);
    assert_eq!(metadata(&site, "disk").get("supersededBy"), None);
    site.drop_file("disk.raw", &whole);
    daemon.until("the whole is published", || site.published() == ["disk", "disk-1", "disk-2"]);
    daemon.until("the half is marked", || metadata(&site, "disk").get("supersededBy").is_some());
    daemon.until("it is counted", || daemon.stats()["total_superseded"] == 1);
    assert!(metadata(&site, "disk")["supersededBy"].as_str().unwrap().ends_with("/disk-2"));
    assert_eq!(metadata(&site, "disk-1").get("supersededBy"), None);
    assert_eq!(daemon.lines("was only its beginning").len(), 1, "{}", daemon.log());
}

#[test]
fn a_disk_that_came_with_its_ovf_and_is_not_what_the_manifest_says_fails_as_before() {
    let site = Site::new("");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_LOOK_INTERVAL_MS", "500")]);
    let (wrong, own) = (stream_optimized(1), stream_optimized(2));
    let ovf = sized_ovf(&[("disk-0.vmdk", CAPACITY, own.len())]);
    site.drop_file("b.mf", &manifest(&[("b.ovf", ovf.as_bytes()), ("disk-0.vmdk", &own)]));
    site.drop_file("b.ovf", ovf.as_bytes());
    site.drop_file("disk-0.vmdk", &wrong);
    daemon.until("its report is there", || site.queue().join(".errors/b.ovf.error.json").exists());
    assert_eq!(site.error_file("b.ovf")["reason"], "ManifestMismatch");
    assert_eq!((site.in_errors(), site.published()), (names(&["b.mf", "b.ovf", "disk-0.vmdk"]), vec![]));
}
