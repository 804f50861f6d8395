// SPDX-License-Identifier: Apache-2.0
//! Manifests of several writers, and wrong ones.

use std::io::Write as _;
use std::sync::Arc;

use rstest::rstest;

use super::*;

fn region(name: &str, bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Region::whole(Arc::new(file), name, bytes.len() as u64)
}

/// What the manifest `text` demands of `d.vmdk`, which holds `abc`.
fn read(text: &[u8]) -> Result<(Vec<Expected>, Vec<String>), Error> {
    let files = [region("d.vmdk", b"abc"), region("vm.mf", text), region("a (1)=b.vmdk", b"abc")];
    expected("vm.mf", text, |name| files.iter().find(|file| file.name() == name).cloned())
}

/// Digests of `abc`, from FIPS 180 and its examples.
const SHA1: &str = "a9993e364706816aba3e25717850c26c9cd0d89d";
const SHA224: &str = "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7";
const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const SHA384: &str = "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed\
                      8086072ba1e7cc2358baeca134c825a7";
const SHA512: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                      2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
const SHA512_256: &str = "53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23";

#[rstest]
#[case::of_the_specification(format!("SHA1(d.vmdk)= {SHA1}\n"))]
#[case::of_bsd(format!("SHA256 (d.vmdk) = {SHA256}"))]
#[case::of_openssl_3(format!("SHA2-256(d.vmdk)= {SHA256}\n"))]
#[case::with_dashes(format!("SHA-256(d.vmdk)= {SHA256}\n"))]
#[case::with_underscores(format!("sha_384(d.vmdk)={SHA384}\n"))]
#[case::sha224(format!("SHA224(d.vmdk)= {SHA224}\n"))]
#[case::sha384(format!("SHA2-384(d.vmdk)= {SHA384}\n"))]
#[case::with_line_ends_of_windows(format!("sha512(d.vmdk)={SHA512}\r\n\r\n"))]
#[case::with_line_ends_of_old_macs(format!("sha512(d.vmdk)={SHA512}\r\r"))]
#[case::shortened_sha512(format!("SHA512/256(d.vmdk)= {SHA512_256}\n"))]
#[case::shortened_sha512_of_openssl_3(format!("SHA2-512/256(d.vmdk)= {SHA512_256}\n"))]
#[case::with_a_mark_and_capitals(format!("\u{feff}SHA256(d.vmdk)= {}\r\n", SHA256.to_uppercase()))]
#[case::without_a_sign(format!("SHA1(d.vmdk) {SHA1}"))]
#[case::with_a_colon(format!("SHA1(d.vmdk): {SHA1}"))]
#[case::with_quotes(format!("SHA1(\"d.vmdk\")= {SHA1}"))]
#[case::with_colons_in_the_digest(format!("SHA1(d.vmdk)= {}", SHA1.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect::<Vec<_>>().join(":")))]
#[case::of_coreutils(format!("{SHA256}  d.vmdk\n"))]
#[case::of_coreutils_in_binary_mode(format!("{SHA1} *d.vmdk\n"))]
#[case::of_coreutils_with_escapes(format!("\\{SHA1}  d.vmdk\n"))]
#[case::with_a_tab(format!("{SHA512}\td.vmdk\n"))]
#[case::of_registries(format!("sha256:{SHA256}  d.vmdk\n"))]
#[case::of_powershell(format!("SHA256          {}       d.vmdk\n", SHA256.to_uppercase()))]
#[case::without_brackets(format!("SHA1 d.vmdk = {SHA1}"))]
#[case::with_the_digest_last(format!("d.vmdk: {SHA384}"))]
#[case::among_comments(format!("# made by hand\n; x\n// y\n\nSHA1(d.vmdk)= {SHA1}\n"))]
fn every_spelling_is_read_and_verified(#[case] text: String) {
    let wide = |mark: &[u8], order: fn(u16) -> [u8; 2]| {
        [mark.to_vec(), text.encode_utf16().flat_map(order).collect()].concat()
    };
    for bytes in [text.as_bytes().to_vec(), wide(b"\xFF\xFE", u16::to_le_bytes), wide(b"\xFE\xFF", u16::to_be_bytes)] {
        let (expected, warnings) = read(&bytes).unwrap();
        assert_eq!((expected.len(), warnings), (1, vec![]), "{text}");
        let control = Control::default();
        assert_eq!(verify(&expected, &control).unwrap(), Outcome::Verified, "{text}");
        assert_eq!(control.done.into_inner(), 3);
    }
    // The same line with another digest is a refusal, however it is spelt.
    let digests = [SHA1, SHA224, SHA256, SHA384, SHA512, SHA512_256];
    let wrong = digests.iter().fold(text.clone(), |text, digest| {
        let zeros = "0".repeat(digest.len());
        text.replace(digest, &zeros).replace(&digest.to_uppercase(), &zeros)
    });
    if wrong != text {
        let (expected, _) = read(wrong.as_bytes()).unwrap();
        let error = verify(&expected, &Control::default()).unwrap_err();
        assert_eq!((error.reason, error.file.as_str()), (Reason::ManifestMismatch, "d.vmdk"), "{wrong}");
    }
}

#[test]
fn a_name_may_hold_brackets_and_signs() {
    for text in [format!("SHA1(a (1)=b.vmdk)= {SHA1}"), format!("{SHA1}  a (1)=b.vmdk")] {
        let (expected, warnings) = read(text.as_bytes()).unwrap();
        assert_eq!((expected[0].region.name(), warnings.len()), ("a (1)=b.vmdk", 0), "{text}");
    }
}

#[rstest]
#[case::md5(format!("MD5(d.vmdk)= {}", "0".repeat(32)), "a digest of \"d.vmdk\" by \"MD5\", which is not checked")]
#[case::md5_of_coreutils(format!("{}  d.vmdk", "0".repeat(32)), "a digest of \"d.vmdk\" by \"MD5\", which is not checked")]
#[case::sha3(format!("SHA3-256(d.vmdk)= {SHA256}"), "a digest of \"d.vmdk\" by \"SHA3-256\", which is not checked")]
#[case::html("<html>".to_owned(), "a line 1 that is no digest: \"<html>\"")]
#[case::control_characters("\u{1b}[31mx\u{202e}".to_owned(), "a line 1 that is no digest: \"\\u{1b}[31mx\\u{202e}\"")]
#[case::of_a_file_that_is_elsewhere(format!("SHA1(cd.iso)= {SHA1}"), "names \"cd.iso\", which is not there")]
#[case::of_a_file_that_is_elsewhere_and_cut("SHA1(cd.iso)= zz".to_owned(), "names \"cd.iso\", which is not there")]
#[case::of_itself(format!("SHA1(vm.mf)= {SHA1}"), "names itself in line 1")]
fn what_is_not_understood_is_a_warning(#[case] text: String, #[case] warning: &str) {
    let text = format!("{text}\nSHA1(d.vmdk)= {SHA1}\n");
    let (expected, warnings) = read(text.as_bytes()).unwrap();
    assert_eq!(expected.len(), 1);
    assert!(warnings.len() == 1 && warnings[0].contains(warning), "{warnings:?}");
}

#[test]
fn a_text_of_an_unknown_encoding_and_one_of_many_odd_lines_are_few_warnings() {
    let (expected, warnings) = read(b"SHA1(f\xFCr.vmdk)= 00\n").unwrap();
    assert_eq!((expected.len(), warnings.len()), (0, 1));
    let (_, warnings) = read("x\n".repeat(1000).as_bytes()).unwrap();
    assert_eq!(
        (warnings.len(), warnings.last().unwrap().as_str()),
        (MAX_WARNINGS + 1, "the manifest has 984 more lines that were not used")
    );
}

#[test]
fn a_digest_that_is_cut_is_a_wrong_one() {
    for line in [format!("SHA256(d.vmdk)= {SHA1}"), "SHA1(d.vmdk)= zz".to_owned(), "SHA-1 (d.vmdk) =".to_owned()] {
        let error = read(line.as_bytes()).unwrap_err();
        assert_eq!((error.reason, error.file.as_str()), (Reason::ManifestMismatch, "vm.mf"), "{line}");
    }
    assert_eq!(read(&vec![b'\n'; MAX_BYTES + 1]).unwrap_err().reason, Reason::ManifestMismatch);
}

#[test]
fn a_file_has_one_digest_of_each_algorithm() {
    let both = format!("SHA1(d.vmdk)= {SHA1}\nSHA256(d.vmdk)= {SHA256}\n");
    assert_eq!(read(both.as_bytes()).unwrap().0.len(), 2);
    assert_eq!(read(both.repeat(100).as_bytes()).unwrap().0.len(), 2);
    let torn = format!("{both}\nSHA1(d.vmdk)= {}\n", "0".repeat(40));
    let error = read(torn.as_bytes()).unwrap_err();
    assert_eq!(error.reason, Reason::ManifestMismatch);
    assert!(error.message.contains("line 4 another SHA1 of \"d.vmdk\""), "{error}");
}

#[test]
fn a_cancelled_verification_says_nothing() {
    let (expected, _) = read(format!("SHA1(d.vmdk)= {}\n", "0".repeat(40)).as_bytes()).unwrap();
    let control = Control { cancel: true.into(), ..Control::default() };
    assert_eq!(verify(&expected, &control).unwrap(), Outcome::Cancelled);
}
