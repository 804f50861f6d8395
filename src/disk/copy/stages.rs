// SPDX-License-Identifier: Apache-2.0
//! The threads of a copy and what they hand on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::encode::Encode;
use super::options::CopyOptions;
use super::page_cache::PageCache;
use super::queue::{Budget, InOrder, Queue};
use super::source_digests::{FileDigest, SourceDigests};
use crate::conversion::Reason;
use crate::disk::buffer::{Buffer, Pool};
use crate::disk::control::CopyControl;
use crate::disk::image::Reader;
use crate::disk::packed::{PIECE, PackedRaw};
use crate::disk::replay::batch::{Batch, Batches, INPUT, Step};
use crate::disk::replay::consumed::{Consumed, Used};
use crate::disk::replay::load::{Loaded, load};
use crate::disk::units::CLUSTER_BYTES;
use crate::disk::writer::Writer;
use crate::disk::writer::coded::{Coded, Coding};
use crate::disk::writer::job::WriteJob;
use crate::disk::writer::output::Output;
use crate::disk::{Error, Image};

/// Threads that read the source; more than one hides the latency of a slow one.
pub(super) const READERS: usize = 4;
/// Threads that write the output.
pub(super) const WRITERS: usize = 3;
/// Memory of all batches in flight, in bytes: keeps the whole process below 64 MiB, and buffers in the CPU's cache
/// until they are used again.
const IN_FLIGHT: usize = 16 << 20;
/// Memory of writes that wait, in bytes.
const UNWRITTEN: usize = 8 << 20;

/// Bytes of the budget that a step of zeros takes: very little, but a map may have a million of them in a row.
const ZERO_STEP: usize = 4 << 10;

/// What the allocating thread receives for each step, in guest order.
enum ToPlace {
    /// Zeros up to this guest byte.
    Zero(u64),
    /// A batch, the streams that were decoded for it, and the bytes of the budget that it holds.
    Data(Coded, Vec<Consumed>, usize),
    Failed(Error),
    End,
}

/// What the digesting thread receives for each step, in guest order.
enum ToDigest {
    /// A batch, its step's number and the bytes of the budget that it holds.
    Data(Loaded, u64, usize),
    /// Nothing was read.
    Nothing,
    End,
}

/// A write, and the bytes of the budget to give back when it is done.
struct ToWrite {
    job: WriteJob,
    taken: usize,
}

/// The queues between the threads, named by what is to be done with their items.
struct Queues<'a> {
    load: Queue<(u64, Batch, usize)>,
    /// Batches on their way to be encoded, where digests of the source are computed.
    digest: Option<InOrder<ToDigest>>,
    /// Digests of files that are not read in their own order.
    digest_apart: Queue<FileDigest<'a>>,
    encode: Queue<(u64, Loaded, usize)>,
    place: InOrder<ToPlace>,
    write: Queue<ToWrite>,
}

impl Queues<'_> {
    fn new(digests: bool) -> Self {
        Self {
            load: Queue::new(usize::MAX),
            digest: digests.then(InOrder::new),
            digest_apart: Queue::new(usize::MAX),
            encode: Queue::new(usize::MAX),
            place: InOrder::new(),
            write: Queue::new(UNWRITTEN),
        }
    }

    /// After the last batch was placed: ends the threads that load, encode and write.
    fn close(&self) {
        self.load.close();
        self.encode.close();
        self.write.close();
    }

    /// Lets no thread wait any more, after an error.
    fn abandon(&self) {
        self.load.abandon();
        if let Some(digest) = &self.digest {
            digest.abandon();
        }
        self.digest_apart.abandon();
        self.encode.abandon();
        self.place.abandon();
        self.write.abandon();
    }
}

/// The memory of the batches in flight.
struct Memory {
    budget: Budget,
    pool: Pool,
    inputs: Mutex<Vec<Buffer>>,
}

impl Memory {
    fn new() -> Self {
        Self { budget: Budget::new(IN_FLIGHT), pool: Pool::default(), inputs: Mutex::default() }
    }

    fn inputs(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.inputs.lock().expect("no holder of the inputs panics")
    }

    /// A buffer for compressed input, of any length.
    fn take_input(&self) -> Buffer {
        self.inputs().pop().unwrap_or_default()
    }

    /// Keeps an input's memory for the next batch.
    fn keep_input(&self, mut input: Buffer) {
        input.resize(0);
        let mut inputs = self.inputs();
        // Longer ones are rare, and not kept.
        if inputs.len() < READERS && input.capacity() <= INPUT {
            inputs.push(input);
        }
    }
}

/// Everything that the threads share.
struct Shared<'a> {
    image: &'a Image,
    output: &'a Output<'a>,
    name: &'a str,
    control: &'a CopyControl,
    coding: Coding,
    queues: Queues<'a>,
    memory: Memory,
    page_cache: PageCache<'a>,
    /// The first error of a thread that reads, encodes or writes.
    error: Mutex<Option<Error>>,
    /// If several digests differ, the error of the file whose name comes first: the same in every run.
    digest_error: Mutex<Option<Error>>,
    failed: &'a AtomicBool,
}

/// Copies the guest's bytes and the output's metadata, header last, durable.
pub(super) fn run(
    image: &Image,
    output: &Output,
    name: &str,
    threads: usize,
    options: &CopyOptions,
    control: &CopyControl,
) -> Result<(), Error> {
    let compression = (options.compress, options.level);
    let mut writer = Writer::new(options.format, options.medium, compression, image.known_size(), name)?;
    writer.begin(output)?;
    let failed = AtomicBool::new(false);
    let digests = SourceDigests::new(&image.regions, &options.digests, control, &failed);
    let shared = Shared {
        image,
        output,
        name,
        control,
        coding: writer.coding(),
        queues: Queues::new(!digests.is_empty()),
        memory: Memory::new(),
        page_cache: PageCache::new(&image.regions),
        error: Mutex::new(None),
        digest_error: Mutex::new(None),
        failed: &failed,
    };
    let allocated = std::thread::scope(|scope| {
        let _guard = AbandonOnPanic(&shared);
        scope.spawn(|| match &image.reader {
            Reader::Packed(packed) => shared.unpack(packed),
            _ => shared.map(),
        });
        if let Some(to_digest) = &shared.queues.digest {
            scope.spawn(|| shared.digest(digests, to_digest));
            scope.spawn(|| shared.digest_apart());
        }
        for _ in 0..READERS {
            scope.spawn(|| shared.read());
        }
        for _ in 0..threads {
            scope.spawn(|| shared.encode());
        }
        for _ in 0..WRITERS {
            scope.spawn(|| shared.write());
        }
        let allocated = shared.allocate(&mut writer);
        match allocated {
            Ok(()) => shared.queues.close(),
            Err(_) => shared.abandon(),
        }
        allocated
    });
    if let Some(error) = shared.error.into_inner().expect("no holder of the error panics") {
        return Err(error);
    }
    allocated?;
    // The copy's own error wins over a digest's, because it has a place. Which of them came first is chance.
    if let Some(error) = shared.digest_error.into_inner().expect("no holder of the error panics") {
        return Err(error);
    }
    writer.finish(output)
}

impl<'a> Shared<'a> {
    /// Walks the map and cuts it into batches.
    fn map(&self) {
        let _guard = AbandonOnPanic(self);
        let name = self.image.regions.first().map_or("source", |region| region.name()).to_owned();
        let mut batches = Batches::new(self.image.extents(), self.image.virtual_size(), name);
        for number in 0.. {
            let step = match self.control.check(self.name).and_then(|()| batches.next()) {
                Ok(Some(Step::Data(batch))) => {
                    let taken = self.memory_of(&batch);
                    if !self.memory.budget.take(taken) {
                        break;
                    }
                    self.queues.load.push(0, (number, batch, taken));
                    continue;
                }
                Ok(Some(Step::Zero(end))) => {
                    if !self.memory.budget.take(ZERO_STEP) {
                        break;
                    }
                    ToPlace::Zero(end)
                }
                Ok(None) => ToPlace::End,
                Err(e) => ToPlace::Failed(e),
            };
            let over = !matches!(step, ToPlace::Zero(_));
            let to_digest = if matches!(step, ToPlace::End) { ToDigest::End } else { ToDigest::Nothing };
            self.queues.place.put(number, step);
            self.put_to_digest(number, to_digest);
            if over {
                break;
            }
        }
        self.queues.load.close();
    }

    /// Unpacks a stream: one thread, which hands its pieces to those that encode. Packed bytes are the progress.
    fn unpack(&self, packed: &PackedRaw) {
        let _guard = AbandonOnPanic(self);
        let mut pieces = match packed.pieces() {
            Ok(pieces) => pieces,
            Err(e) => return self.fail(e),
        };
        let mut at = 0;
        for number in 0.. {
            let taken = self.memory_for(PIECE, 0);
            if !self.memory.budget.take(taken) {
                break;
            }
            let mut buffer = self.memory.pool.take(PIECE);
            let filled = self.control.check(self.name).and_then(|()| pieces.next(&mut buffer));
            self.control.advance(pieces.advanced());
            match filled {
                Ok(0) => {
                    self.queues.place.put(number, ToPlace::End);
                    break;
                }
                Ok(len) => {
                    let guest = at..at + len as u64;
                    at = guest.end;
                    self.queues.encode.push(0, (number, Loaded::stored(guest, buffer), taken));
                }
                Err(e) => {
                    self.queues.place.put(number, ToPlace::Failed(e));
                    break;
                }
            }
        }
        self.queues.load.close();
        if let Some(to_digest) = &self.queues.digest {
            to_digest.put(0, ToDigest::End);
        }
    }

    /// Memory that a batch takes on its way.
    fn memory_of(&self, batch: &Batch) -> usize {
        self.memory_for(batch.len(), batch.input())
    }

    fn memory_for(&self, len: usize, input: usize) -> usize {
        let packed = if matches!(self.coding, Coding::Packed { .. }) { len } else { 0 };
        len.next_multiple_of(CLUSTER_BYTES) + input + packed
    }

    fn read(&self) {
        let _guard = AbandonOnPanic(self);
        // Stored bytes need only the scan for zeros. The reading thread does it while they are in its CPU's cache.
        let mut scan = if matches!(self.coding, Coding::Runs { .. }) { self.encoder() } else { None };
        while let Some((number, batch, taken)) = self.queues.load.pop() {
            let buffer = self.memory.pool.take(batch.len().next_multiple_of(CLUSTER_BYTES));
            let input = self.memory.take_input();
            let loaded = self.control.check(self.name).and_then(|()| load(&self.image.regions, batch, buffer, input));
            match loaded {
                Ok(loaded) => {
                    self.page_cache.drop_before(&loaded.reads);
                    match &mut scan {
                        _ if self.queues.digest.is_some() => {
                            self.put_to_digest(number, ToDigest::Data(loaded, number, taken));
                        }
                        Some(scan) if loaded.input.is_empty() => self.code(scan, number, loaded, taken),
                        _ => self.queues.encode.push(0, (number, loaded, taken)),
                    }
                }
                Err(e) => self.queues.place.put(number, ToPlace::Failed(e)),
            }
        }
    }

    fn put_to_digest(&self, number: u64, step: ToDigest) {
        if let Some(to_digest) = &self.queues.digest {
            to_digest.put(number, step);
        }
    }

    /// Digests what was read, and hands it on.
    fn digest(&self, mut digests: SourceDigests<'a>, to_digest: &InOrder<ToDigest>) {
        let _guard = AbandonOnPanic(self);
        loop {
            let (loaded, number, taken) = match to_digest.next() {
                Some(ToDigest::Data(loaded, number, taken)) => (loaded, number, taken),
                Some(ToDigest::Nothing) => continue,
                Some(ToDigest::End) => break,
                // The copy failed: its digests are no longer needed.
                None => return,
            };
            if let Err(e) = digests.pass(&loaded, |file| self.queues.digest_apart.push(0, file)) {
                return self.fail(e);
            }
            self.queues.encode.push(0, (number, loaded, taken));
        }
        self.queues.digest_apart.close();
        self.digested(digests.finish());
    }

    /// Digests files beside the copy, one after the other.
    fn digest_apart(&self) {
        let _guard = AbandonOnPanic(self);
        while let Some(file) = self.queues.digest_apart.pop() {
            self.digested(file.finish());
        }
    }

    fn digested(&self, result: Result<(), Error>) {
        let Err(error) = result else { return };
        let mut first = self.digest_error.lock().expect("no holder of the error panics");
        if first.as_ref().is_none_or(|first| error.file < first.file) {
            *first = Some(error);
        }
    }

    fn encode(&self) {
        let _guard = AbandonOnPanic(self);
        let Some(mut encode) = self.encoder() else { return };
        while let Some((number, loaded, taken)) = self.queues.encode.pop() {
            self.code(&mut encode, number, loaded, taken);
        }
    }

    /// The codecs of one thread. Where they can't be made, the copy fails.
    fn encoder(&self) -> Option<Encode> {
        let failed = |e| {
            let message = format!("the compressor can't be set up: {e}");
            self.fail(Error::refuse(Reason::OutOfMemory, self.name, message));
        };
        Encode::new(self.coding).map_err(failed).ok()
    }

    /// Decodes and encodes a batch.
    fn code(&self, encode: &mut Encode, number: u64, loaded: Loaded, taken: usize) {
        let coded = self.control.check(self.name).and_then(|()| encode.run(self.image, loaded));
        let step = match coded {
            Ok((coded, consumed, input)) => {
                self.memory.keep_input(input);
                ToPlace::Data(coded, consumed, taken)
            }
            Err(e) => ToPlace::Failed(e),
        };
        self.queues.place.put(number, step);
    }

    /// Places one batch after the other, and at last the metadata.
    fn allocate(&self, writer: &mut Writer) -> Result<(), Error> {
        let is_packed = matches!(self.image.reader, Reader::Packed(_));
        let mut at = 0;
        let mut jobs = Vec::new();
        let mut used = Used::default();
        loop {
            let (end, taken) = match self.queues.place.next() {
                Some(ToPlace::Zero(end)) => (end, ZERO_STEP),
                Some(ToPlace::Data(coded, consumed, taken)) => {
                    used.claim(self.image, &consumed)?;
                    let end = coded.guest.end;
                    writer.place(coded, &mut jobs)?;
                    (end, taken)
                }
                Some(ToPlace::Failed(e)) => return Err(e),
                Some(ToPlace::End) => break,
                None => return Err(Error::refuse(Reason::Internal, self.name, "a thread of the copy ended early")),
            };
            self.submit(&mut jobs, taken);
            if !is_packed {
                self.control.advance(end - at);
            }
            at = end;
        }
        if is_packed {
            writer.set_size(at)?;
        }
        writer.close(&mut jobs);
        self.submit(&mut jobs, 0);
        Ok(())
    }

    /// Hands writes on; the last of them gives the batch's budget back.
    fn submit(&self, jobs: &mut Vec<WriteJob>, taken: usize) {
        let mut taken = taken;
        for job in jobs.drain(..).rev() {
            let taken = std::mem::take(&mut taken);
            if job.is_empty() {
                self.memory.pool.give(job.buffer);
                self.memory.budget.give(taken);
            } else {
                self.queues.write.push(job.len(), ToWrite { job, taken });
            }
        }
        if taken > 0 {
            self.memory.budget.give(taken);
        }
    }

    fn write(&self) {
        let _guard = AbandonOnPanic(self);
        while let Some(ToWrite { job, taken }) = self.queues.write.pop() {
            if let Err(e) = self.do_job(&job) {
                return self.fail(e);
            }
            self.memory.pool.give(job.buffer);
            self.memory.budget.give(taken);
        }
    }

    fn do_job(&self, job: &WriteJob) -> Result<(), Error> {
        job.zeros.iter().try_for_each(|range| self.output.zero(range.clone()))?;
        job.parts.iter().try_for_each(|(at, range)| self.output.write(&job.buffer[range.clone()], *at))
    }

    /// Ends the copy with `error`, unless another came first.
    fn fail(&self, error: Error) {
        self.error.lock().expect("no holder of the error panics").get_or_insert(error);
        self.abandon();
    }

    /// Makes every thread end.
    fn abandon(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.memory.budget.abandon();
        self.queues.abandon();
    }
}

/// Ends the copy when its thread panics: the others must not wait for it.
struct AbandonOnPanic<'a, 'b>(&'a Shared<'b>);

impl Drop for AbandonOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandon();
        }
    }
}
