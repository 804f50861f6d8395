//! Descriptors and what they name: one conversion, in whatever order they arrive.

use std::fs;

use crate::harness::{Site, disk};

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
