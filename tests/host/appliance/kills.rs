// SPDX-License-Identifier: Apache-2.0
//! Attempts with the real appliance, killed at any moment.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Bench;
use super::guests::Guest;
use crate::boots::{is_wide, worker};
use crate::support::random::{Random, number};

/// Kills unless `HYPER2KVM_KILLS` says how many.
const KILLS: u64 = 12;

/// What the disk of an attempt's folder holds.
fn raw(folder: &Path, place: &Path) -> std::path::PathBuf {
    let raw = place.join("looked-into.raw");
    let (disk, to) = (folder.join("system.qcow2"), raw.to_str().unwrap());
    let check = Command::new("qemu-img").args(["check", "-q"]).arg(&disk).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let done = Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&disk).arg(to).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    raw
}

/// Whether the program ended by itself before `moment`.
fn ends_before(child: &mut Child, moment: Instant) -> bool {
    while Instant::now() < moment {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        sleep(Duration::from_millis(2));
    }
    false
}

/// Waits until the copy's marker is withdrawn, when the merge begins, or until the program has ended.
fn wait_for_merge(child: &mut Child, has: &impl Fn(&str) -> bool) {
    for is_there in [false, true] {
        while has("copied.json") == is_there && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
    }
}

/// Each attempt is killed at a random moment of the time that a whole one takes, or a little later, or, since the merge is a
/// hundredth of that, at one of the half second from its beginning; and started again on what it left, until one ends by itself. A disk that is taken for converted is the source, byte for byte; one that is taken for
/// fixed, and each that is published, has exactly the files of an undisturbed fix. (Not its bytes: a file system has times.)
#[test]
fn kills_of_a_real_fix_publish_the_disk_as_converted_or_as_fixed() {
    if !is_wide() {
        return;
    }
    let kills = number("HYPER2KVM_KILLS").unwrap_or(KILLS);
    let mut random = Random::seeded("kills of a real fix");
    let Some(bench) = Bench::new() else { return };
    bench.build("appliance");
    let here = bench.place.path();
    let guest = Guest::new(here, &bench.modules(), &bench.version);
    guest.disk("system.raw", 64);
    let options = serde_json::json!({"guest": {"fix": "require", "accelerator": "tcg"}});
    let mut attempt = worker(here, &options);
    let (folder, source) = (here.join("work/pod"), here.join("claim/system.raw"));
    let has = |name: &str| folder.join(name).exists();

    let begun = Instant::now();
    let output = attempt.output().unwrap();
    let takes = begun.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let fixed = guest.digests(&raw(&folder, here));
    assert!(fixed != guest.digests(&source));
    fs::remove_dir_all(&folder).unwrap();

    let (mut done, mut converted, mut between, mut behind, mut published) = (0, 0, 0, 0, 0);
    // The last attempt is not killed, so that each kill is followed by a whole one.
    while done < kills || has("copied.json") || published == 0 || folder.exists() {
        let mut child = attempt.spawn().unwrap();
        let mut most = takes.mul_f64(1.25);
        if done < kills && random.once_in(2) {
            wait_for_merge(&mut child, &has);
            most = Duration::from_millis(500);
        }
        let moment = Instant::now() + most * u32::try_from(random.below(1000)).unwrap() / 1000;
        if done < kills && !ends_before(&mut child, moment) {
            done += 1;
            child.kill().unwrap();
            child.wait().unwrap();
            if has("fixed.json") {
                behind += 1;
                assert_eq!(guest.digests(&raw(&folder, here)), fixed, "kill {done}");
            } else if has("copied.json") {
                converted += 1;
                let same = fs::read(raw(&folder, here)).unwrap() == fs::read(&source).unwrap();
                assert!(same, "kill {done}: taken for converted, and not the source");
            } else {
                between += 1;
            }
            continue;
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "after kill {done}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(has("metadata.json") && !has("fix.tmp"), "after kill {done}");
        assert_eq!(guest.digests(&raw(&folder, here)), fixed, "after kill {done}");
        published += 1;
        fs::remove_dir_all(&folder).unwrap();
    }
    println!(
        "{done} kills in attempts of {takes:?}: {converted} with the disk as converted, {between} before that or in the \
         merge, {behind} behind it; {published} published"
    );
}
