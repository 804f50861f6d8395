// SPDX-License-Identifier: Apache-2.0
//! Manifests of several writers, and wrong ones.

use std::io::Write as _;
use std::sync::Arc;

use super::*;

fn region(bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Region::whole(Arc::new(file), "vm.ova:d.vmdk", bytes.len() as u64)
}

/// Digests of `abc`, from FIPS 180.
const SHA1: &str = "a9993e364706816aba3e25717850c26c9cd0d89d";
const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const SHA512: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                      2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

#[test]
fn every_spacing_and_algorithm_is_read_and_verified() {
    let abc = region(b"abc");
    for text in [
        format!("SHA1(d.vmdk)= {SHA1}\n"),
        format!("SHA256 (d.vmdk) = {SHA256}"),
        format!("sha512(d.vmdk)={SHA512}\r\n\r\n"),
        format!("\u{feff}SHA256(d.vmdk)= {}\r\n", SHA256.to_uppercase()),
    ] {
        let lines = parse("vm.mf", text.as_bytes()).unwrap();
        let (expected, warnings) = expected(&lines, &[("d.vmdk", &abc)]);
        assert_eq!((expected.len(), warnings.len()), (1, 0), "{text}");
        let control = Control::default();
        assert_eq!(verify(&expected, &control).unwrap(), Outcome::Verified, "{text}");
        assert_eq!(control.done.into_inner(), 3);
    }
    let odd = parse("vm.mf", format!("SHA1(a (1)=b.vmdk)= {SHA1}").as_bytes()).unwrap();
    assert_eq!(odd[0].name, "a (1)=b.vmdk");
}

#[test]
fn another_content_is_a_mismatch() {
    let lines = parse("vm.mf", format!("SHA256(d.vmdk)= {SHA256}\n").as_bytes()).unwrap();
    let other = region(b"abd");
    let (expected, _) = expected(&lines, &[("d.vmdk", &other)]);
    let error = verify(&expected, &Control::default()).unwrap_err();
    assert_eq!((error.reason, error.file.as_str()), (Reason::ManifestMismatch, "vm.ova:d.vmdk"));
}

#[test]
fn what_can_not_be_checked_is_a_mismatch() {
    for line in [
        format!("MD5(d.vmdk)= {}", "0".repeat(32)),
        format!("SHA256(d.vmdk)= {SHA1}"),
        format!("SHA1(d.vmdk) {SHA1}"),
        format!("SHA1 d.vmdk = {SHA1}"),
        "SHA1(d.vmdk)= zz".to_owned(),
        "SHA1(d.vmdk)= abc".to_owned(),
        "<html>".to_owned(),
    ] {
        assert_eq!(parse("vm.mf", line.as_bytes()).unwrap_err().reason, Reason::ManifestMismatch, "{line}");
    }
    assert_eq!(parse("vm.mf", &[0xFF]).unwrap_err().reason, Reason::ManifestMismatch);
    assert_eq!(parse("vm.mf", &vec![b'\n'; MAX_BYTES + 1]).unwrap_err().reason, Reason::ManifestMismatch);
}

#[test]
fn a_file_has_one_digest_of_each_algorithm() {
    let both = format!("SHA1(d.vmdk)= {SHA1}\nSHA256(d.vmdk)= {SHA256}\n");
    assert_eq!(parse("vm.mf", both.as_bytes()).unwrap().len(), 2);
    assert_eq!(parse("vm.mf", both.repeat(100).as_bytes()).unwrap().len(), 2);
    let torn = format!("{both}\nSHA1(d.vmdk)= {}\n", "0".repeat(40));
    let error = parse("vm.mf", torn.as_bytes()).unwrap_err();
    assert_eq!(error.reason, Reason::ManifestMismatch);
    assert!(error.message.contains("line 4 another SHA1 of \"d.vmdk\""), "{error}");
}

#[test]
fn a_cancelled_verification_says_nothing() {
    let abc = region(b"abc");
    let lines = parse("vm.mf", format!("SHA1(d.vmdk)= {}\n", "0".repeat(40)).as_bytes()).unwrap();
    let (expected, _) = expected(&lines, &[("d.vmdk", &abc)]);
    let control = Control { cancel: true.into(), ..Control::default() };
    assert_eq!(verify(&expected, &control).unwrap(), Outcome::Cancelled);
}

#[test]
fn names_without_a_member_are_told() {
    let lines = parse("vm.mf", format!("SHA1(cd.iso)= {SHA1}\n").as_bytes()).unwrap();
    let (expected, warnings) = expected(&lines, &[]);
    assert_eq!((expected.len(), warnings.len()), (0, 1));
}
