//! The threads of a copy and what they hand on.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::encode::Encode;
use super::options::CopyOptions;
use super::page_cache::Trail;
use super::queue::{Budget, InOrder, Queue};
use super::source_digests::{Ride, Rides};
use crate::conversion::Reason;
use crate::disk::buffer::{Buffer, Pool};
use crate::disk::control::CopyControl;
use crate::disk::replay::batch::{Batch, Batches, INPUT, Step};
use crate::disk::replay::load::{Loaded, load};
use crate::disk::units::CLUSTER_BYTES;
use crate::disk::writer::Writer;
use crate::disk::writer::coded::{Coded, Coding};
use crate::disk::writer::job::WriteJob;
use crate::disk::writer::output::Output;
use crate::disk::{Error, Image};

/// Threads that wait for the source; more than one hides a slow one's latency.
pub(super) const READERS: usize = 4;
/// Threads that wait for the output.
pub(super) const WRITERS: usize = 3;
/// Memory of all batches in flight, in bytes. The whole process stays below 64 MiB, and buffers are used again while they
/// are in the CPU's cache.
const IN_FLIGHT: usize = 16 << 20;
/// Memory of writes that wait, in bytes.
const UNWRITTEN: usize = 8 << 20;

/// What a step of zeros takes of the memory in flight: very little, but a map may have a million of them in a row.
const ZERO_STEP: usize = 4 << 10;

/// What the allocating thread gets for each step, in guest order.
enum Turn {
    /// Zeros up to this guest byte.
    Zero(u64),
    /// A batch, and the budget it holds.
    Data(Coded, usize),
    Failed(Error),
    End,
}

/// What the digesting thread gets for each turn, in guest order.
enum Passing {
    /// A batch, its turn's number and the budget it holds.
    Data(Loaded, u64, usize),
    /// Nothing was read.
    Nothing,
    End,
}

/// A write, and the budget to give back when it is done.
struct Write {
    job: WriteJob,
    held: usize,
}

/// Everything that the threads share.
struct Shared<'a> {
    image: &'a Image,
    output: &'a Output<'a>,
    name: &'a str,
    control: &'a CopyControl,
    coding: Coding,
    budget: Budget,
    pool: Pool,
    inputs: Mutex<Vec<Buffer>>,
    to_load: Queue<(u64, Batch, usize)>,
    /// Where digests ride along: batches on their way to be encoded.
    passing: Option<InOrder<Passing>>,
    /// Digests of files whose order is not the guest's.
    left: Queue<Ride<'a>>,
    /// Of several, that of the first file's name.
    digest_error: Mutex<Option<Error>>,
    trail: Trail<'a>,
    to_encode: Queue<(u64, Loaded, usize)>,
    turns: InOrder<Turn>,
    to_write: Queue<Write>,
    write_error: Mutex<Option<Error>>,
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
    let mut writer = Writer::new(options.format, options.compress, options.level, image.virtual_size(), name)?;
    let failed = AtomicBool::new(false);
    let rides = Rides::new(&image.regions, &options.digests, control, &failed);
    let shared = Shared {
        image,
        output,
        name,
        control,
        coding: writer.coding(),
        budget: Budget::new(IN_FLIGHT),
        pool: Pool::default(),
        inputs: Mutex::default(),
        to_load: Queue::new(usize::MAX),
        passing: (!rides.is_empty()).then(InOrder::new),
        left: Queue::new(usize::MAX),
        digest_error: Mutex::new(None),
        trail: Trail::new(&image.regions),
        to_encode: Queue::new(usize::MAX),
        turns: InOrder::new(),
        to_write: Queue::new(UNWRITTEN),
        write_error: Mutex::new(None),
        failed: &failed,
    };
    let allocated = std::thread::scope(|scope| {
        let _guard = AbandonOnPanic(&shared);
        scope.spawn(|| shared.map());
        if let Some(passing) = &shared.passing {
            scope.spawn(|| shared.digest(rides, passing));
            scope.spawn(|| shared.digest_left());
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
            // Everything before the end has gone through: nothing is left to load or to encode.
            Ok(()) => {
                shared.to_load.close();
                shared.to_encode.close();
                shared.to_write.close();
            }
            Err(_) => shared.abandon(),
        }
        allocated
    });
    if let Some(error) = shared.write_error.into_inner().expect("no holder of the error panics") {
        return Err(error);
    }
    allocated?;
    // The copy's own error, with its place, tells more; whichever came first would be chance.
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
            let turn = match self.control.check(self.name).and_then(|()| batches.next()) {
                Ok(Some(Step::Data(batch))) => {
                    let held = self.held(&batch);
                    if !self.budget.take(held) {
                        break;
                    }
                    self.to_load.push(0, (number, batch, held));
                    continue;
                }
                Ok(Some(Step::Zero(end))) => {
                    if !self.budget.take(ZERO_STEP) {
                        break;
                    }
                    Turn::Zero(end)
                }
                Ok(None) => Turn::End,
                Err(e) => Turn::Failed(e),
            };
            let over = !matches!(turn, Turn::Zero(_));
            let passing = if matches!(turn, Turn::End) { Passing::End } else { Passing::Nothing };
            self.turns.put(number, turn);
            self.pass(number, passing);
            if over {
                break;
            }
        }
        self.to_load.close();
    }

    /// Memory that a batch takes on its way.
    fn held(&self, batch: &Batch) -> usize {
        let packed = if matches!(self.coding, Coding::Packed { .. }) { batch.len() } else { 0 };
        batch.len().next_multiple_of(CLUSTER_BYTES) + batch.input() + packed
    }

    fn read(&self) {
        let _guard = AbandonOnPanic(self);
        // Of what is stored as it is, nothing but a look for zeros is left to do, while it is in this CPU's cache.
        let mut scan = if matches!(self.coding, Coding::Runs { .. }) { self.encoder() } else { None };
        while let Some((number, batch, held)) = self.to_load.pop() {
            let buffer = self.pool.take(batch.len().next_multiple_of(CLUSTER_BYTES));
            let input = self.inputs.lock().expect("no holder of the inputs panics").pop().unwrap_or_default();
            let loaded = self.control.check(self.name).and_then(|()| load(&self.image.regions, batch, buffer, input));
            match loaded {
                Ok(loaded) => {
                    self.trail.passed(&loaded.reads);
                    match &mut scan {
                        _ if self.passing.is_some() => self.pass(number, Passing::Data(loaded, number, held)),
                        Some(scan) if loaded.input.is_empty() => self.code(scan, number, loaded, held),
                        _ => self.to_encode.push(0, (number, loaded, held)),
                    }
                }
                Err(e) => self.turns.put(number, Turn::Failed(e)),
            }
        }
    }

    fn pass(&self, number: u64, passing: Passing) {
        if let Some(window) = &self.passing {
            window.put(number, passing);
        }
    }

    /// Digests what passes, and hands it on.
    fn digest(&self, mut rides: Rides<'a>, passing: &InOrder<Passing>) {
        let _guard = AbandonOnPanic(self);
        loop {
            let (loaded, number, held) = match passing.next() {
                Some(Passing::Data(loaded, number, held)) => (loaded, number, held),
                Some(Passing::Nothing) => continue,
                Some(Passing::End) => break,
                // The copy failed: nobody waits for a digest.
                None => return,
            };
            if let Err(e) = rides.pass(&loaded, |ride| self.left.push(0, ride)) {
                return self.fail(e);
            }
            self.to_encode.push(0, (number, loaded, held));
        }
        self.left.close();
        self.digested(rides.finish());
    }

    /// Digests files beside the copy, one after the other.
    fn digest_left(&self) {
        let _guard = AbandonOnPanic(self);
        while let Some(ride) = self.left.pop() {
            self.digested(ride.finish());
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
        while let Some((number, loaded, held)) = self.to_encode.pop() {
            self.code(&mut encode, number, loaded, held);
        }
    }

    /// The codecs of one thread; without them the copy fails.
    fn encoder(&self) -> Option<Encode> {
        let failed = |e| {
            let message = format!("the compressor can't be set up: {e}");
            self.fail(Error::refuse(Reason::OutOfMemory, self.name, message));
        };
        Encode::new(self.coding).map_err(failed).ok()
    }

    /// Decodes and encodes a batch.
    fn code(&self, encode: &mut Encode, number: u64, loaded: Loaded, held: usize) {
        let coded = self.control.check(self.name).and_then(|()| encode.run(self.image, loaded));
        let turn = match coded {
            Ok((coded, input)) => {
                self.keep(input);
                Turn::Data(coded, held)
            }
            Err(e) => Turn::Failed(e),
        };
        self.turns.put(number, turn);
    }

    /// Places one batch after the other, and at last the metadata.
    fn allocate(&self, writer: &mut Writer) -> Result<(), Error> {
        let mut at = 0;
        let mut jobs = Vec::new();
        loop {
            let (end, held) = match self.turns.next() {
                Some(Turn::Zero(end)) => (end, ZERO_STEP),
                Some(Turn::Data(coded, held)) => {
                    let end = coded.guest.end;
                    writer.place(coded, &mut jobs)?;
                    (end, held)
                }
                Some(Turn::Failed(e)) => return Err(e),
                Some(Turn::End) => break,
                None => return Err(Error::refuse(Reason::Internal, self.name, "a thread of the copy ended early")),
            };
            self.submit(&mut jobs, held);
            self.control.advance(end - at);
            at = end;
        }
        writer.close(&mut jobs);
        self.submit(&mut jobs, 0);
        Ok(())
    }

    /// Hands writes on; the last of them gives the batch's budget back.
    fn submit(&self, jobs: &mut Vec<WriteJob>, held: usize) {
        let mut held = held;
        for job in jobs.drain(..).rev() {
            let held = std::mem::take(&mut held);
            if job.is_empty() {
                self.pool.give(job.buffer);
                self.budget.give(held);
            } else {
                self.to_write.push(job.len(), Write { job, held });
            }
        }
        if held > 0 {
            self.budget.give(held);
        }
    }

    fn write(&self) {
        let _guard = AbandonOnPanic(self);
        while let Some(Write { job, held }) = self.to_write.pop() {
            let mut parts = job.parts.iter();
            if let Err(e) = parts.try_for_each(|(at, range)| self.output.write(&job.buffer[range.clone()], *at)) {
                return self.fail(e);
            }
            self.pool.give(job.buffer);
            self.budget.give(held);
        }
    }

    /// Ends the copy with `error`, unless another came first.
    fn fail(&self, error: Error) {
        self.write_error.lock().expect("no holder of the error panics").get_or_insert(error);
        self.abandon();
    }

    /// Lets every thread run out.
    fn abandon(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.budget.abandon();
        self.to_load.abandon();
        if let Some(passing) = &self.passing {
            passing.abandon();
        }
        self.left.abandon();
        self.to_encode.abandon();
        self.turns.abandon();
        self.to_write.abandon();
    }

    /// Keeps an input's memory for the next batch.
    fn keep(&self, mut input: Buffer) {
        input.resize(0);
        let mut inputs = self.inputs.lock().expect("no holder of the inputs panics");
        // A longer one is rare.
        if inputs.len() < READERS && input.capacity() <= INPUT {
            inputs.push(input);
        }
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
