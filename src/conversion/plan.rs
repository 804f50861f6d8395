// SPDX-License-Identifier: Apache-2.0
//! The plan: what a source's disks and machines are, found out before anything is copied.
//!
//! A worker writes it as plan.json. It is a stranger's word: [`read`] checks and bounds all of it.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{CONTRACT_VERSION, MAX_PLAN_BYTES, NAME_MAX};
use super::machine::{Controller, Firmware, MAX_DISKS, MAX_DOUBT, MAX_DOUBTS, MAX_MACHINES, Machine, one_line};

/// Largest disk, in bytes: the greatest offset of a file.
const MAX_SIZE: u64 = i64::MAX as u64;
/// Longest address of a disk, in bytes: two numbers and a colon.
const MAX_ADDRESS: usize = 21;

/// What a conversion would make, as far as headers tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The disks, in the order of metadata.json and of a worker's targets: at least one.
    #[schemars(length(min = 1, max = 256))]
    pub disks: Vec<PlannedDisk>,
    /// The machines that the disks belong to, as metadata.json has them: one, unless an OVF describes several. Their
    /// disks are called as in disks.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub machines: Vec<Machine>,
    /// What is odd about the source as a whole, one sentence each. A machine has its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 400)))]
    pub doubts: Vec<String>,
}

/// A disk that a conversion would make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedDisk {
    /// Its name, which is its file's where it becomes one.
    #[schemars(length(min = 1, max = 255))]
    pub file: String,
    /// Base name of the member that it comes from.
    #[schemars(length(min = 1, max = 255))]
    pub member: String,
    /// Size that the guest sees, in bytes. Where `isEstimate` is true, only the copy finds it out.
    #[schemars(range(min = 1))]
    pub virtual_size_bytes: u64,
    /// Whether the size is what a description says, because the disk's own is known only at the end of a packed stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_estimate: bool,
    /// Bytes that are not known to be zeros; absent where only the copy finds it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_bytes: Option<u64>,
    /// Kind of the controller that it was behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<Controller>,
    /// The controller's number and the disk's behind it: `0:1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 21))]
    pub address: Option<String>,
    /// Its partition table; absent where it has none or it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_table: Option<PartitionTable>,
    /// Firmware that its first sectors are made for; absent where nothing starts from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// Whether its EFI system partition has `\EFI\BOOT\BOOTX64.EFI`, which firmware without variables starts; absent
    /// where there is no such partition or nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_loader: Option<bool>,
    /// Whether its machine starts from it.
    #[serde(default)]
    pub boot: bool,
}

/// Kind of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PartitionTable {
    Mbr,
    Gpt,
}

/// Content of plan.json.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PlanFile {
    contract_version: u32,
    #[serde(flatten)]
    plan: Plan,
}

/// Why a plan.json is refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPlan {
    #[error("{0} bytes, and at most {MAX_PLAN_BYTES} are read")]
    TooLong(usize),
    #[error("no plan")]
    Malformed(#[from] serde_json::Error),
    #[error("contract version {0}, and at most {CONTRACT_VERSION} is known")]
    Version(u32),
    #[error("{0} disks, from 1 to {MAX_DISKS} are possible")]
    Disks(usize),
    #[error("{0} machines, from 1 to {MAX_MACHINES} are possible")]
    Machines(usize),
    #[error("disk {0}: its name or its member's is no file name")]
    Name(usize),
    #[error("disk {0}: its name is another disk's")]
    SameName(usize),
    #[error("disk {disk}: {bytes} bytes, from 1 to {MAX_SIZE} are possible")]
    Size { disk: usize, bytes: u64 },
    #[error("machine {machine} has a disk that is none of the plan's")]
    UnknownDisk { machine: usize },
}

/// Reads plan.json, which a worker wrote that hostile input may have taken over. What is returned is bounded, and its
/// texts are single lines without control characters.
///
/// # Errors
/// Why it can't be a plan.
pub fn read(json: &[u8]) -> Result<Plan, InvalidPlan> {
    if json.len() > MAX_PLAN_BYTES {
        return Err(InvalidPlan::TooLong(json.len()));
    }
    let PlanFile { contract_version, plan } = serde_json::from_slice(json)?;
    if contract_version > CONTRACT_VERSION {
        return Err(InvalidPlan::Version(contract_version));
    }
    let plan = plan.bounded();
    plan.check()?;
    Ok(plan)
}

impl Plan {
    /// The text of plan.json. Where it would be too long, texts that nothing is decided by are left out.
    ///
    /// # Errors
    /// What [`read`] would refuse.
    pub fn to_json(&self) -> Result<String, InvalidPlan> {
        let mut plan = self.clone().bounded();
        plan.check()?;
        let written =
            |plan: &Self| serde_json::to_string(&PlanFile { contract_version: CONTRACT_VERSION, plan: plan.clone() });
        let mut json = written(&plan)?;
        if json.len() > MAX_PLAN_BYTES {
            for machine in &mut plan.machines {
                machine.annotation = None;
                machine.disks.iter_mut().for_each(|disk| disk.model = None);
            }
            json = written(&plan)?;
        }
        if json.len() > MAX_PLAN_BYTES { Err(InvalidPlan::TooLong(json.len())) } else { Ok(json) }
    }

    /// The plan with texts on one line and no more doubts than are kept.
    fn bounded(mut self) -> Self {
        self.machines = self.machines.into_iter().map(Machine::bounded).collect();
        for disk in &mut self.disks {
            disk.address = disk.address.take().map(|text| one_line(&text, MAX_ADDRESS)).filter(|text| !text.is_empty());
            disk.data_bytes = disk.data_bytes.map(|bytes| bytes.min(disk.virtual_size_bytes));
        }
        self.doubts.truncate(MAX_DOUBTS);
        self.doubts = self.doubts.iter().map(|doubt| one_line(doubt, MAX_DOUBT)).filter(|d| !d.is_empty()).collect();
        self
    }

    fn check(&self) -> Result<(), InvalidPlan> {
        if !(1..=MAX_DISKS).contains(&self.disks.len()) {
            return Err(InvalidPlan::Disks(self.disks.len()));
        }
        if !(1..=MAX_MACHINES).contains(&self.machines.len()) {
            return Err(InvalidPlan::Machines(self.machines.len()));
        }
        let mut names = HashSet::new();
        for (n, disk) in self.disks.iter().enumerate() {
            if !is_file_name(&disk.file) || !is_file_name(&disk.member) {
                return Err(InvalidPlan::Name(n));
            }
            if !names.insert(disk.file.as_str()) {
                return Err(InvalidPlan::SameName(n));
            }
            if !(1..=MAX_SIZE).contains(&disk.virtual_size_bytes) {
                return Err(InvalidPlan::Size { disk: n, bytes: disk.virtual_size_bytes });
            }
        }
        let foreign = |machine: &Machine| machine.disks.iter().any(|disk| !names.contains(disk.file.as_str()));
        match self.machines.iter().position(foreign) {
            Some(machine) => Err(InvalidPlan::UnknownDisk { machine }),
            None => Ok(()),
        }
    }
}

/// Whether it is the base name of a file.
fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= NAME_MAX && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests;
