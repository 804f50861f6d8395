// SPDX-License-Identifier: Apache-2.0
//! Descriptors and what they name: one conversion, in whatever order they arrive.

use std::fmt::Write as _;
use std::fs;
use std::io::Cursor;

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::support::daemon::{EACH_SECOND, Site, disk};
use crate::support::{ova, vmdk};

const EXTENT: usize = 64 << 10;

fn vmdk_descriptor(extent: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
         # Extent description\nRW {} FLAT \"{extent}\" 0\n\n# The Disk Data Base\n#DDB\n\
         ddb.adapterType = \"lsilogic\"\nddb.virtualHWVersion = \"7\"\n",
        EXTENT / 512
    )
}

#[test]
fn an_extent_that_comes_first_waits_for_its_descriptor() {
    let site = Site::new("");
    let daemon = site.start();
    site.drop_file("vm-flat.vmdk", &disk(0)[..EXTENT]);
    daemon.until("the extent is stable", || daemon.lines("File stable: vm-flat.vmdk").len() == 1);
    site.drop_file("vm.vmdk", vmdk_descriptor("vm-flat.vmdk").as_bytes());
    daemon.until("both are archived", || site.archived() == ["vm-flat.vmdk", "vm.vmdk"]);
    assert_eq!(site.disks(), ["vm.qcow2"]);
    assert_eq!(daemon.stats()["total_processed"], 1);
}

#[test]
fn what_a_descriptor_or_an_extent_waits_for_is_told_once_and_counted() {
    let site = Site::new("");
    let daemon = site.start();
    site.drop_file("miss.ovf", ova::ovf(&[("missing.vmdk", 1 << 20)]).as_bytes());
    site.drop_file("zz-flat.vmdk", &disk(0)[..EXTENT]);
    let told = [
        "miss.ovf waits for missing.vmdk, which it names; without it, it fails in 60 min",
        "zz-flat.vmdk waits for its descriptor (zz.vmdk); without it, it fails in 60 min",
    ];
    daemon.until("both are told", || told.iter().all(|line| daemon.lines(line).len() == 1));
    daemon.until("both are counted", || daemon.stats()["settling"] == 2);
    assert_eq!(daemon.lines(" waits for ").len(), 2);
}

#[test]
fn an_extent_without_a_descriptor_fails_after_its_time() {
    let site = Site::new("companion_timeout: 5");
    let daemon = site.start();
    site.drop_file("vm-flat.vmdk", &disk(0)[..EXTENT]);
    daemon.until("it is counted", || daemon.stats()["total_failed"] == 1);
    daemon.until("it lies in .errors", || site.in_errors() == ["vm-flat.vmdk"]);
    daemon.until("its report is there", || site.queue().join(".errors/vm-flat.vmdk.error.json").exists());
    assert_eq!(site.error_file("vm-flat.vmdk")["reason"], "MissingMember");
}

#[test]
fn members_of_a_claim_are_gone_from_the_queue_while_it_runs() {
    let site = Site::new("");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_HANG", "1")]);
    site.drop_file("vm.vmdk", vmdk_descriptor("vm-flat.vmdk").as_bytes());
    site.drop_file("vm-flat.vmdk", &disk(0)[..EXTENT]);
    daemon.until("it runs", || daemon.status("active_jobs") == 1);
    assert_eq!(site.waiting(), Vec::<String>::new());
    let claims: Vec<_> = site.names("queue/.processing").into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(claims.len(), 1);
    let inside = site.names(&format!("queue/.processing/{}", claims[0]));
    assert_eq!(inside, ["claim.json", "vm-flat.vmdk", "vm.vmdk"]);
    let claim = fs::read(site.queue().join(format!(".processing/{}/claim.json", claims[0]))).unwrap();
    let claim: serde_json::Value = serde_json::from_slice(&claim).unwrap();
    assert_eq!(claim["primary"], "vm.vmdk");
}

/// A streamOptimized disk of one grain, filled with this byte.
pub(super) fn stream_optimized(byte: u8) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let grain = |number| (number == 0).then(|| vec![byte; usize::try_from(vmdk::GRAIN).unwrap()]);
    vmdk::Sparse::stream_optimized(vmdk::GRAIN * 2).write(&mut file, grain).unwrap();
    file.into_inner()
}

pub(super) const CAPACITY: u64 = vmdk::GRAIN * 2;

#[test]
fn an_ova_with_two_disks_is_one_conversion() {
    let site = Site::new("");
    let daemon = site.start();
    let (first, second) = (stream_optimized(1), stream_optimized(2));
    let appliance = ova::ova("app", &[("app-1.vmdk", &first, CAPACITY), ("app-2.vmdk", &second, CAPACITY)]);
    site.drop_file("app.ova", &appliance);
    daemon.until("it is archived", || site.archived() == ["app.ova"]);
    assert_eq!(
        (site.published(), site.disks()),
        (vec!["app".to_owned()], names(&["app-disk0.qcow2", "app-disk1.qcow2"]))
    );
    assert_eq!(daemon.stats()["total_processed"], 1);
}

#[test]
fn an_ovf_and_its_two_disks_are_one_conversion_in_every_order_of_arrival() {
    // Within the three seconds, as the files of one copy do; `members` has them further apart.
    let members = ["vm.ovf", "vm-1.vmdk", "vm-2.vmdk"];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let site = Site::new("");
        let daemon = site.start_with(EACH_SECOND);
        let ovf = ova::ovf(&[("vm-1.vmdk", CAPACITY), ("vm-2.vmdk", CAPACITY)]);
        let content = [ovf.into_bytes(), stream_optimized(1), stream_optimized(2)];
        for n in order {
            site.drop_file(members[n], &content[n]);
            // Separate arrivals for the daemon, too.
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        daemon.until("all are archived", || site.archived() == ["vm-1.vmdk", "vm-2.vmdk", "vm.ovf"]);
        assert_eq!(site.disks(), ["vm-disk0.qcow2", "vm-disk1.qcow2"], "{order:?}");
        assert_eq!(daemon.stats()["total_processed"], 1, "{order:?}");
    }
}

#[test]
fn a_disk_that_runs_already_is_recalled_when_its_ovf_comes() {
    let site = Site::new("max_concurrent_jobs: 1");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_HANG", "1")]);
    site.drop_file("vm-1.vmdk", &stream_optimized(1));
    daemon.until("it runs", || daemon.status("active_jobs") == 1);
    site.drop_file("vm.ovf", ova::ovf(&[("vm-1.vmdk", CAPACITY)]).as_bytes());
    daemon.until("the disk is given back and claimed with its OVF", || {
        let claims = site.names("queue/.processing");
        claims.iter().any(|id| site.names(&format!("queue/.processing/{id}")) == ["claim.json", "vm-1.vmdk", "vm.ovf"])
    });
    assert_eq!(daemon.stats()["total_cancelled"], 0);
}

pub(super) fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The largest split disk, with the longest names: claim.json has some 3.5 MB.
#[test]
fn a_split_disk_of_8192_extents_is_converted_with_256_open_files_at_first() {
    const EXTENTS: usize = 8192;
    let site = Site::new("");
    let names: Vec<String> = (0..EXTENTS).map(|n| format!("{}-f{n:04}.vmdk", "x".repeat(255 - 11))).collect();
    let mut descriptor = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                          createType=\"twoGbMaxExtentFlat\"\n"
        .to_owned();
    for (n, name) in names.iter().enumerate() {
        assert_eq!(name.len(), 255);
        writeln!(descriptor, "RW 1 FLAT \"{name}\" 0").unwrap();
        fs::write(site.queue().join(name), [u8::try_from(n % 251).unwrap() + 1; 512]).unwrap();
    }
    site.drop_file("vm.vmdk", descriptor.as_bytes());
    let daemon = site.start();
    let limit = Rlimit { current: Some(256), maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Some(daemon.pid()), Resource::Nofile, limit).unwrap();
    daemon.until("it ended", || daemon.stats()["total_processed"] == 1 || daemon.stats()["total_failed"] == 1);
    assert_eq!(site.disks(), ["vm.qcow2"], "{}", daemon.log());
    daemon.until("all is archived", || site.archived().len() == EXTENTS + 1);
}

#[test]
fn a_group_with_a_repaired_member_is_tried_anew_as_a_whole() {
    let site = Site::new("quiet_period: 1");
    let daemon = site.start();
    let errors = site.queue().join(".errors");
    site.drop_file("vm.ovf", ova::ovf(&[("vm-1.vmdk", CAPACITY), ("vm-2.vmdk", CAPACITY)]).as_bytes());
    site.drop_file("vm-1.vmdk", &stream_optimized(1));
    site.drop_file("vm-2.vmdk", b"no disk at all");
    daemon.until("it has failed", || site.names("queue/.errors").contains(&"vm.ovf.error.json".to_owned()));
    assert_eq!(site.in_errors(), ["vm-1.vmdk", "vm-2.vmdk", "vm.ovf"]);
    // By another file of its name, and then by writing to the one that is there.
    let aside = site.dir.path().join("aside");
    fs::write(&aside, b"again no disk at all").unwrap();
    fs::rename(&aside, errors.join("vm-2.vmdk")).unwrap();
    daemon.until("it has failed again", || daemon.stats()["total_failed"] == 2 && site.in_errors().len() == 3);
    fs::write(errors.join("vm-2.vmdk"), stream_optimized(2)).unwrap();
    daemon.until("it is archived", || site.archived() == ["vm-1.vmdk", "vm-2.vmdk", "vm.ovf"]);
    assert_eq!((site.published(), site.names("queue/.errors")), (names(&["vm"]), vec![]), "{}", daemon.log());
    assert_eq!(daemon.lines("vm-2.vmdk changed after it was taken").len(), 2, "{}", daemon.log());
}

#[test]
fn a_group_whose_member_changes_after_its_conversion_is_marked_and_converted_again() {
    for (config, is_archived) in [("", true), ("archive_processed: false", false)] {
        let site = Site::new(&format!("quiet_period: 1\n{config}"));
        let daemon = site.start();
        let all = names(&["vm-flat.vmdk", "vm.vmdk"]);
        let lie_there = || if is_archived { site.archived() == all } else { site.waiting() == all };
        site.drop_file("vm-flat.vmdk", &disk(1)[..EXTENT]);
        site.drop_file("vm.vmdk", vmdk_descriptor("vm-flat.vmdk").as_bytes());
        daemon.until("it is converted", || site.published() == ["vm"] && lie_there());
        let place = if is_archived {
            site.queue().join(".processed").join(site.names("queue/.processed").remove(0))
        } else {
            site.queue()
        };
        // Of the same size: only its time tells.
        fs::write(place.join("vm-flat.vmdk"), &disk(2)[..EXTENT]).unwrap();
        daemon.until("it is converted again", || site.published() == ["vm", "vm-1"] && lie_there());
        assert_eq!(daemon.lines("vm-flat.vmdk changed after it was taken").len(), 1, "{}", daemon.log());
        let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
        let metadata =
            |stem: &str| fs::read_to_string(site.output().join(&day).join(stem).join("metadata.json")).unwrap();
        assert!(metadata("vm").contains("\"sourceChangedAt\"") && !metadata("vm-1").contains("\"sourceChangedAt\""));
        assert_eq!(daemon.stats()["total_processed"], 2, "{config}");
    }
}
