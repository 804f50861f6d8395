// SPDX-License-Identifier: Apache-2.0
//! What host and appliance say to each other: a job in an archive behind the initrd, an answer on a serial port.
//!
//! ```text
//! QEMU: -initrd FILE    the appliance's initrd, whose length is a multiple of 512, and behind it job_archive(job)
//!       first serial    the kernel's messages (console=ttyS0): for a person, never read
//!       second serial   the answer (ttyS1): a JSON line a step, then one line with the report
//!       drivers         files of virtio-win for Windows, in the job's archive
//!       disks           virtio-blk or virtio-scsi, each with the serial number that the job names
//! ```
//!
//! The appliance mounts what strangers made, so its answer is hostile input, too: its length, texts and lists are bounded,
//! and a report that contradicts itself is an error.

mod answer;
mod driver;

use serde::{Deserialize, Serialize};

pub use self::answer::{Answer, Error, Line, Step, report_line, step_line};
pub use self::driver::{DRIVERS, Driver, DriverFile, MAX_DRIVER_BYTES};
use super::cpio;

/// Raised with every change that the other side cannot read. Host and appliance must have the same.
pub const VERSION: u32 = 2;
/// Path of the job in the appliance's first file system.
pub const JOB_PATH: &str = "etc/hyper2kvm/job.json";
/// The answer's serial port within the appliance.
pub const ANSWER_DEVICE: &str = "/dev/ttyS1";
/// Most bytes of an answer, with all of its steps.
pub const MAX_ANSWER: usize = 64 << 10;
/// Most disks of a job. QEMU's first PCI bus has room for them.
pub const MAX_DISKS: usize = 24;
/// Most network cards of a job.
pub const MAX_CARDS: usize = 64;
/// Most bytes of a disk's serial number, as virtio-blk has it.
pub const MAX_SERIAL: usize = 20;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// [`VERSION`].
    pub version: u32,
    /// The guest's disks in the order of its machine, by their serial numbers.
    pub disks: Vec<JobDisk>,
    #[serde(default)]
    pub guest_names: GuestNames,
    /// The machine's network cards in their order; empty where the machine is not known.
    #[serde(default)]
    pub cards: Vec<Card>,
    /// Drivers for Windows; empty where none were given or none are needed.
    #[serde(default)]
    pub drivers: Vec<Driver>,
    #[serde(default)]
    pub limits: Limits,
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobDisk {
    /// `[A-Za-z0-9_-]`, at most [`MAX_SERIAL`] bytes.
    pub serial: String,
}

/// What is done about the names of network interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GuestNames {
    /// The interfaces keep the names that the guest's configuration has.
    #[default]
    Keep,
    Leave,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Card {
    /// As the new machine has it: `00:50:56:01:02:03`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// What the appliance may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Seconds of the inspection, within the appliance.
    pub inspection_seconds: u64,
    /// Bytes that the fixes may add to the guest's file systems.
    pub growth_bytes: u64,
}

impl Default for Limits {
    /// An inspection takes a tenth of that under TCG; 256 MiB are a dozen kernels with all of their modules.
    fn default() -> Self {
        Self { inspection_seconds: 60, growth_bytes: 256 << 20 }
    }
}

/// A job that the appliance cannot take.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("the job is not JSON of the expected form")]
    Json(#[from] serde_json::Error),
    #[error("the job has version {0}, and this appliance reads version {VERSION}: build the appliance again")]
    Version(u64),
    #[error("the job names {0} disks; 1 to {MAX_DISKS} are possible")]
    Disks(usize),
    #[error("the job names {0} network cards; at most {MAX_CARDS} are possible")]
    Cards(usize),
    #[error("{0:?} is no serial number of a disk, or stands twice")]
    Serial(String),
    #[error("{0:?} is no MAC address")]
    Mac(String),
    #[error("{0:?} is no driver that a job may have")]
    Driver(String),
    #[error("the drivers have {0} bytes; at most {MAX_DRIVER_BYTES} are possible")]
    DriverBytes(u64),
    #[error("cannot pack the job")]
    Archive(#[from] cpio::Error),
}

impl Job {
    /// Reads a job as [`job_archive`] wrote it.
    pub fn parse(json: &[u8]) -> Result<Self, JobError> {
        let value: serde_json::Value = serde_json::from_slice(json)?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        if let Some(version) = version.filter(|version| *version != u64::from(VERSION)) {
            return Err(JobError::Version(version));
        }
        let job: Self = serde_json::from_value(value)?;
        job.check()?;
        Ok(job)
    }

    fn check(&self) -> Result<(), JobError> {
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return Err(JobError::Disks(self.disks.len()));
        }
        if self.cards.len() > MAX_CARDS {
            return Err(JobError::Cards(self.cards.len()));
        }
        for (index, JobDisk { serial }) in self.disks.iter().enumerate() {
            let is_serial = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            let is_twice = self.disks[..index].iter().any(|disk| disk.serial == *serial);
            if serial.is_empty() || serial.len() > MAX_SERIAL || !serial.bytes().all(is_serial) || is_twice {
                return Err(JobError::Serial(serial.clone()));
            }
        }
        driver::check(&self.drivers)?;
        for mac in self.cards.iter().filter_map(|card| card.mac.as_ref()) {
            let is_byte = |pair: &str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
            if mac.split(':').count() != 6 || !mac.split(':').all(is_byte) {
                return Err(JobError::Mac(mac.clone()));
            }
        }
        Ok(())
    }
}

/// The archive that stands behind the appliance's initrd, with the files of the job's drivers.
pub fn job_archive(job: &Job, files: &[DriverFile]) -> Result<Vec<u8>, JobError> {
    job.check()?;
    let mut archive = cpio::Archive::new();
    driver::pack(&mut archive, &job.drivers, files)?;
    archive.file(JOB_PATH, 0o600, &serde_json::to_vec(job)?)?;
    Ok(archive.finish())
}

#[cfg(test)]
mod tests;
