// SPDX-License-Identifier: Apache-2.0
//! One pass through the daemon: its reports of hostile files, in error.json and in its log.

use std::fs;

use crate::support::daemon::Site;
use crate::support::ova::{ovf, tar};
use crate::support::vmdk::{Sparse, built, descriptor};
use crate::trap::{BESIDE, CANARY, content, quiet_below, written};

#[test]
fn hostile_files_end_in_errors_with_their_reasons_and_the_good_one_is_converted() {
    let site = Site::new("");
    let daemon = site.start();
    // Outside the queue, where `../` leads, and inside it under a name that is not a disk's.
    fs::write(site.dir.path().join(BESIDE), CANARY.repeat(1000)).unwrap();
    fs::write(site.queue().join("canary.txt"), CANARY.repeat(1000)).unwrap();
    let mut child = Sparse::monolithic_sparse(1 << 20);
    child.descriptor = child
        .descriptor
        .map(|text| text.replace("parentCID=ffffffff", "parentCID=00000001\nparentFileNameHint=\"../canary.raw\""));
    let mut backed = written("qcow2", &content(1 << 20));
    backed[8..16].copy_from_slice(&1024u64.to_be_bytes());
    backed[16..20].copy_from_slice(&13u32.to_be_bytes());
    backed[1024..1037].copy_from_slice(b"../canary.raw");
    let flat =
        descriptor("monolithicFlat", 1 << 16).replace("SPARSE \"generated-stream.vmdk\"", "FLAT \"../canary.raw\" 0");
    let outside = tar(&[("vm.ovf", ovf(&[("../canary.raw", 1 << 20)]).as_bytes())]);
    let bad: [(&str, Vec<u8>, &str); 4] = [
        ("child.vmdk", built(&child, &content(1 << 20)), "UnsafeReference"),
        ("backed.qcow2", backed, "UnsafeReference"),
        ("flat.vmdk", flat.into_bytes(), "UnsafeReference"),
        ("outside.ova", outside, "UnsafeReference"),
    ];
    for (name, image, _) in &bad {
        site.drop_file(name, image);
    }
    site.drop_file("good.vmdk", &built(&Sparse::stream_optimized(1 << 20), &content(1 << 20)));
    daemon.until("all have ended", || site.in_errors().len() == bad.len() && site.archived() == ["good.vmdk"]);
    for (name, _, reason) in &bad {
        let error = site.error_file(name);
        assert_eq!(error["reason"], *reason, "{error}");
        assert!(error["retry_info"]["next_retry_at"].is_null(), "{error}");
        quiet_below(&site.queue().join(".errors"));
    }
    quiet_below(&site.output());
    assert!(!daemon.log().contains(CANARY));
    assert_eq!(site.disks(), ["good.qcow2"]);
}
