// SPDX-License-Identifier: Apache-2.0
//! Output formats: each takes batches in guest order and says where their bytes go.

mod cluster;
pub(super) mod coded;
mod device;
mod ends;
pub(super) mod job;
pub(super) mod output;
mod packer;
mod qcow2;
mod raw;
mod refcounts;
mod vdi;
mod zeros;

use self::coded::{Coded, Coding};
use self::device::Device;
use self::job::WriteJob;
use self::output::Output;
use self::qcow2::Qcow2;
use self::raw::Raw;
use self::vdi::Vdi;
use super::Error;
use super::device::Medium;
use crate::conversion::{Compression, OutputFormat, Reason};

/// A disk being written. All allocation happens here, in guest order, so that the same source and options make the same
/// bytes whatever the number of threads.
#[derive(Debug)]
pub(super) enum Writer {
    Raw(Raw),
    Device(Box<Device>),
    Qcow2(Box<Qcow2>),
    Vdi(Box<Vdi>),
}

impl Writer {
    /// A writer of a disk of `size` bytes into a file or device that errors call `name`. Compression is for qcow2 only, and
    /// all but raw disks are files. Where the size isn't known yet
    /// (a VDI's and a device's must be), [`Writer::set_size`] follows before [`Writer::close`].
    pub(super) fn new(
        format: OutputFormat,
        medium: Medium,
        (compression, level): (Compression, Option<u32>),
        size: Option<u64>,
        name: &str,
    ) -> Result<Self, Error> {
        let known = || size.ok_or_else(|| Error::refuse(Reason::Internal, name, "the disk's size must be known"));
        match (format, medium) {
            (OutputFormat::Raw, Medium::File) => Ok(Self::Raw(Raw::new(size, 1, name))),
            (OutputFormat::Raw, Medium::Image { unit }) => Ok(Self::Raw(Raw::new(size, unit, name))),
            (OutputFormat::Raw, Medium::Device(geometry)) => {
                Ok(Self::Device(Box::new(Device::new(known()?, geometry, name)?)))
            }
            (OutputFormat::Qcow2, _) => Ok(Self::Qcow2(Box::new(Qcow2::new(compression, level, size, name)?))),
            (OutputFormat::Vdi, _) => Ok(Self::Vdi(Box::new(Vdi::new(known()?, name)?))),
        }
    }

    /// Before the first batch: makes what is there no disk.
    pub(super) fn begin(&self, output: &Output) -> Result<(), Error> {
        match self {
            Self::Device(device) => device.begin(output),
            Self::Raw(_) | Self::Qcow2(_) | Self::Vdi(_) => Ok(()),
        }
    }

    /// Sets the size that was not known at first.
    pub(super) fn set_size(&mut self, size: u64) -> Result<(), Error> {
        match self {
            Self::Raw(raw) => raw.set_size(size),
            Self::Qcow2(qcow2) => qcow2.set_size(size)?,
            Self::Vdi(_) | Self::Device(_) => {}
        }
        Ok(())
    }

    /// How batches are to be encoded for it.
    #[must_use]
    pub(super) fn coding(&self) -> Coding {
        match self {
            Self::Raw(raw) => raw.coding(),
            Self::Device(device) => device.coding(),
            Self::Qcow2(qcow2) => qcow2.coding(),
            Self::Vdi(vdi) => vdi.coding(),
        }
    }

    /// Allocates room for a batch and adds the writes that store it. Batches come in guest order; what lies between them
    /// is zero.
    pub(super) fn place(&mut self, coded: Coded, jobs: &mut Vec<WriteJob>) -> Result<(), Error> {
        match self {
            Self::Raw(raw) => raw.place(coded, jobs),
            Self::Device(device) => device.place(coded, jobs),
            Self::Qcow2(qcow2) => {
                qcow2.place(coded, jobs);
                Ok(())
            }
            Self::Vdi(vdi) => {
                vdi.place(coded, jobs);
                Ok(())
            }
        }
    }

    /// After the last batch: adds writes of the metadata still held.
    pub(super) fn close(&mut self, jobs: &mut Vec<WriteJob>) {
        match self {
            Self::Raw(_) | Self::Device(_) => {}
            Self::Qcow2(qcow2) => qcow2.close(jobs),
            Self::Vdi(vdi) => vdi.close(jobs),
        }
    }

    /// After every write is done: writes what makes the file a disk.
    pub(super) fn finish(self, output: &Output) -> Result<(), Error> {
        match self {
            Self::Raw(raw) => raw.finish(output),
            Self::Device(device) => device.finish(output),
            Self::Qcow2(qcow2) => qcow2.finish(output),
            Self::Vdi(vdi) => vdi.finish(output),
        }
    }
}
