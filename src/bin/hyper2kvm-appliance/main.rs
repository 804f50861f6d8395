// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm-appliance`: the first process of the small virtual machine that makes a guest ready for virtio.
//!
//! It takes its job from the initrd, edits the guest's files, writes its answer to the second serial port and powers off.
//! It never runs a program of the guest.

mod check;
mod guest;
mod machine;
mod ntfs;
mod windows;
mod work;

use std::fs::File;
use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe};

use hyper2kvm::appliance::plan::{Refusal, bounded};
use hyper2kvm::appliance::protocol::{ANSWER_DEVICE, Step, report_line, step_line};
use hyper2kvm::conversion::guest::fix::{GuestFix, Outcome, Unfixed};

/// Where the answer goes.
struct Port(Option<File>);

impl Port {
    /// Opens the second serial port; without one, the answer goes nowhere and the host waits in vain.
    fn open() -> Self {
        let opened = File::options().write(true).open(ANSWER_DEVICE);
        Self(opened.inspect_err(|error| eprintln!("cannot open {ANSWER_DEVICE}: {error}")).ok())
    }

    /// Tells that the appliance is alive, and what it does now.
    fn step(&mut self, step: Step) {
        println!("step {step:?} after {} ms", machine::uptime());
        self.write(&step_line(step, machine::uptime()));
    }

    fn write(&mut self, line: &[u8]) {
        if let Some(port) = &mut self.0
            && let Err(error) = port.write_all(line)
        {
            eprintln!("cannot write to {ANSWER_DEVICE}: {error}");
        }
    }
}

fn main() {
    if std::process::id() != 1 {
        eprintln!("hyper2kvm-appliance is the first process of an appliance, and does nothing elsewhere");
        std::process::exit(2);
    }
    if let Err(error) = machine::prepare() {
        eprintln!("cannot prepare the appliance: {error}");
    }
    let mut port = Port::open();
    let mut report = GuestFix::default();
    let ended = panic::catch_unwind(AssertUnwindSafe(|| work::run(&mut report, &mut port)));
    let ended = ended.unwrap_or_else(|_| Err(Refusal::new(Unfixed::GuestFixFailed, "The appliance panicked.")));
    match ended {
        Ok(outcome) => report.outcome = outcome,
        Err(refusal) => {
            report.outcome = Outcome::Unfixed;
            report.reason = Some(refusal.reason);
            report.message = Some(bounded(&refusal.message));
            report.changes.clear();
        }
    }
    println!("{:?} {:?} {:?}", report.outcome, report.reason, report.message);
    port.write(&report_line(report));
    // Closing waits until the line has left the port.
    drop(port);
    machine::power_off();
}
