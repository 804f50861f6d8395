// SPDX-License-Identifier: Apache-2.0
//! Cancellation of a copy, and its progress until then.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime};

use super::*;
use crate::disk::copy::stages::{READERS, WRITERS};

/// A control, and `bytes` as a region that it cancels. `before_read` gets the control and the number of each read.
fn controlled(
    bytes: &[u8],
    before_read: impl Fn(&CopyControl, u64, usize) + Send + Sync + 'static,
) -> (Arc<CopyControl>, Arc<AtomicU64>, Region) {
    let (control, reads) = (Arc::new(CopyControl::default()), Arc::new(AtomicU64::new(0)));
    let (told, counted) = (Arc::clone(&control), Arc::clone(&reads));
    let hook = move |len| before_read(&told, counted.fetch_add(1, Ordering::Relaxed) + 1, len);
    let region = region(bytes).before_reads(hook).until(control.cancellation());
    (control, reads, region)
}

#[test]
fn no_table_is_read_after_a_cancellation() {
    let content = bytes_of(&Piece::Random(7), 1 << 20);
    let capacity = content.len() as u64;
    for sparse in [Sparse::monolithic_sparse(capacity), Sparse::stream_optimized(capacity)] {
        let bytes = built(&sparse, &content);
        let (_, reads, region) = controlled(&bytes, |_, _, _| ());
        Image::vmdk(&region, u64::MAX).unwrap();
        let all = reads.load(Ordering::Relaxed);
        assert!(all > 3, "header and tables");
        for last in 1..all {
            let (_, reads, region) = controlled(&bytes, move |control, number, _| {
                if number == last {
                    control.cancel();
                }
            });
            assert_eq!(Image::vmdk(&region, u64::MAX).unwrap_err().reason, Reason::Cancelled);
            assert_eq!(reads.load(Ordering::Relaxed), last);
        }
    }
}

#[test]
fn a_cancelled_copy_begins_no_read_and_no_write() {
    const LAST: u64 = 40;
    let file = Arc::new(tempfile::tempfile().unwrap());
    let written = Arc::new(AtomicU64::new(0));
    let (out, noted) = (Arc::clone(&file), Arc::clone(&written));
    let (control, reads, region) = controlled(&bytes_of(&Piece::Random(7), 48 << 20), move |control, number, _| {
        if number == LAST {
            control.cancel();
            noted.store(out.metadata().unwrap().blocks() * 512, Ordering::Relaxed);
        }
    });
    let image = Image::raw(&region).unwrap();
    let raw = CopyOptions { format: OutputFormat::Raw, ..CopyOptions::default() };
    assert_eq!(copy(&image, &file, "out", &raw, &control).unwrap_err().reason, Reason::Cancelled);
    // Threads that had looked before go on with what they have in hand.
    assert!(reads.load(Ordering::Relaxed) < LAST + READERS as u64);
    let since = file.metadata().unwrap().blocks() * 512 - written.load(Ordering::Relaxed);
    assert!(since <= WRITERS as u64 * crate::disk::replay::batch::BATCH, "{since} bytes were written since");
}

#[test]
fn nothing_is_read_or_written_a_tenth_of_a_second_after_a_cancellation() {
    const SIZE: usize = 12 << 20;
    const TENTH: Duration = Duration::from_millis(100);
    let bytes = bytes_of(&Piece::Random(7), SIZE);
    // In the first pass, and in the one that compares.
    for (options, last) in every_output().into_iter().flat_map(|options| [(options.clone(), 6), (options, 18)]) {
        let times = Arc::new(Mutex::new((None, SystemTime::UNIX_EPOCH)));
        let noted = Arc::clone(&times);
        let (control, _, region) = controlled(&bytes, move |control, number, _| {
            thread::sleep(Duration::from_millis(3));
            let mut times = noted.lock().unwrap();
            times.1 = SystemTime::now();
            if number >= last {
                control.cancel();
                times.0.get_or_insert_with(SystemTime::now);
            }
        });
        let file = tempfile::tempfile().unwrap();
        let image = Image::raw(&region).unwrap();
        let ended = copy(&image, &file, "out", &options, &control)
            .and_then(|_| verify(&file, "out", options.format, Some(&image), &control));
        assert_eq!(ended.unwrap_err().reason, Reason::Cancelled, "{options:?}");
        let (cancelled, last_read) = *times.lock().unwrap();
        let end = cancelled.unwrap() + TENTH;
        assert!(last_read < end, "{options:?}: read at {last_read:?}, {end:?} is the end");
        let last_write = file.metadata().unwrap().modified().unwrap();
        assert!(last_write < end, "{options:?}: written at {last_write:?}, {end:?} is the end");
    }
}

#[test]
fn progress_is_never_ahead_of_what_was_read_and_ends_at_the_last_byte() {
    let begun = Arc::new(AtomicU64::new(0));
    let size = (24 << 20) + 512;
    let (control, _, region) = controlled(&bytes_of(&Piece::Random(7), size), move |control, _, len| {
        let begun = begun.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        let (done, total) = control.progress();
        assert!(done < begun && begun <= total, "{done} of {begun} begun of {total}");
    });
    let image = Image::raw(&region).unwrap();
    let file = tempfile::tempfile().unwrap();
    copy(&image, &file, "out", &CopyOptions::default(), &control).unwrap();
    assert_eq!(control.progress(), (size as u64, size as u64));
    // Each further disk and pass adds to both.
    let format = OutputFormat::Vdi;
    let image = Image::raw(&self::region(&bytes_of(&Piece::OneByte(9), size))).unwrap();
    let file = tempfile::tempfile().unwrap();
    copy(&image, &file, "out", &CopyOptions { format, ..CopyOptions::default() }, &control).unwrap();
    assert_eq!(control.progress(), (2 * size as u64, 2 * size as u64));
    verify(&file, "out", format, None, &control).unwrap();
    assert_eq!(control.progress(), (2 * size as u64, 2 * size as u64));
    verify(&file, "out", format, Some(&image), &control).unwrap();
    assert_eq!(control.progress(), (3 * size as u64, 3 * size as u64));
    digest(&file, "out", OutputFormat::Raw, size as u64, &control).unwrap();
    assert_eq!(control.progress(), (4 * size as u64, 4 * size as u64));
}

#[test]
fn the_look_at_an_output_ends_with_a_cancellation() {
    // Without data there are no tables but those that count clusters.
    for piece in [Piece::Absent, Piece::Random(3)] {
        let (image, _) = image(&vec![piece; 20], 65536, 20 * 65536);
        for format in [OutputFormat::Qcow2, OutputFormat::Vdi] {
            let (file, control) = (tempfile::tempfile().unwrap(), CopyControl::default());
            copy(&image, &file, "out", &CopyOptions { format, ..CopyOptions::default() }, &control).unwrap();
            control.cancel();
            let error = verify(&file, "out", format, None, &control).unwrap_err();
            assert_eq!(error.reason, Reason::Cancelled, "{format}");
        }
    }
}
