// SPDX-License-Identifier: Apache-2.0
//! A thread of a copy that panics ends the copy: nobody waits for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};

use super::*;

/// Far more than a copy of a few MiB takes.
const DEADLINE: Duration = Duration::from_secs(30);

/// Whether the copy ends, and by a panic.
fn ends_by_panicking(image: Image, options: CopyOptions) -> bool {
    let (sender, receiver) = mpsc::channel();
    // Not joined: a copy that hangs does so for ever.
    thread::spawn(move || {
        let file = tempfile::tempfile().unwrap();
        let copy = || copy(&image, &file, "out", &options, &CopyControl::default());
        sender.send(catch_unwind(AssertUnwindSafe(copy)).is_err())
    });
    receiver.recv_timeout(DEADLINE).unwrap_or(false)
}

/// `bytes` as a region that panics at a read of a length that is `fatal`.
fn panicking(bytes: &[u8], fatal: impl Fn(usize) -> bool + Send + Sync + 'static) -> Region {
    region(bytes).before_reads(move |len| assert!(!fatal(len), "as this test wants it"))
}

#[test]
fn a_thread_that_panics_does_not_leave_the_others_waiting() {
    let plain = CopyOptions { format: OutputFormat::Raw, ..CopyOptions::default() };
    let content = bytes_of(&Piece::Random(7), 4 << 20);
    let reader = Image::raw(&panicking(&content, |len| len > 1000)).unwrap();

    // Tables are read once for opening and once more as the map is walked.
    let opened = Arc::new(AtomicBool::new(false));
    let is_walked = Arc::clone(&opened);
    let sparse = built(&Sparse::monolithic_sparse(4 << 20), &content);
    let mapper =
        Image::vmdk(&panicking(&sparse, move |len| is_walked.load(Ordering::Relaxed) && len < 4096), u64::MAX).unwrap();
    opened.store(true, Ordering::Relaxed);

    // Nothing but a digest reads what lies before the first piece.
    let (file, image, _) = image_in_order(777, 1, &[0, 1], &[Piece::Random(1), Piece::Random(2)], 65536, 131_072);
    let read_by_digest = panicking(&file, |len| len == 777);
    let digests = vec![Expected { region: read_by_digest.clone(), algorithm: Algorithm::Sha256, digest: vec![0; 32] }];
    let digester = image(read_by_digest);
    let with_digest = CopyOptions { digests, ..CopyOptions::default() };

    let cases = [("a reader", reader, plain.clone()), ("the map", mapper, plain), ("a digest", digester, with_digest)];
    let hung: Vec<_> =
        cases.into_iter().filter_map(|(who, image, o)| (!ends_by_panicking(image, o)).then_some(who)).collect();
    assert!(hung.is_empty(), "the copy waits for {hung:?}");
}

/// Set where a test runs again as a process of its own.
const ALONE: &str = "HYPER2KVM_TEST_ALONE";

#[test]
fn a_copy_that_gets_too_few_threads_does_not_wait_for_the_others() {
    const STACK: u64 = 1 << 30;
    if std::env::var_os(ALONE).is_none() {
        let name = "disk::copy::tests::panicking::a_copy_that_gets_too_few_threads_does_not_wait_for_the_others";
        let output = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(ALONE, "1")
            .env("RUST_MIN_STACK", STACK.to_string())
            .env("MALLOC_ARENA_MAX", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    // There is room for the stacks of the thread that copies, of those that read, and of a few that encode.
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
    let most = pages * 4096 + 9 * STACK + STACK / 2;
    setrlimit(Resource::RLIMIT_AS, most, most).unwrap();
    let (image, _) = image(&[Piece::Random(1)], 65536, 65536);
    let options = CopyOptions { threads: Some(MAX_THREADS), ..CopyOptions::default() };
    assert!(ends_by_panicking(image, options));
}
