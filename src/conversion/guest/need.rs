// SPDX-License-Identifier: Apache-2.0
//! What is to be done about a guest that shall run on virtio: decided from what was found, before any appliance starts.

use super::fix::Outcome;
use super::report::GuestReport;
use super::{Answer, Family, FixKind};
use crate::conversion::Reason;
use crate::conversion::options::{GuestNames, GuestOptions};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// It is settled: nothing is to be done, or there is no guest.
    Settled(Outcome),
    /// It stays unfixed, for this reason.
    Refused(Reason, String),
    /// The appliance is to look, and to change what must be changed.
    Appliance,
}

/// What a guest needs. `None` stands for several machines, whose disks nobody can tell apart for a guest.
#[must_use]
pub fn need(guest: Option<&GuestReport>, options: &GuestOptions) -> Need {
    let Some(guest) = guest else {
        let message = "the source describes several machines: convert each by itself to have its guest fixed";
        return Need::Refused(Reason::GuestAmbiguous, message.to_owned());
    };
    if !guest.other_roots.is_empty() {
        let systems: Vec<&str> = guest.root.iter().chain(&guest.other_roots).map(String::as_str).collect();
        let message = format!("several volumes hold a system: {}", systems.join(", "));
        return Need::Refused(Reason::GuestAmbiguous, message);
    }
    match guest.family {
        Family::Unknown => unknown(guest),
        Family::Windows => windows(guest, options.virtio_win.is_some()),
        Family::Linux => linux(guest, options.names),
    }
}

fn unknown(guest: &GuestReport) -> Need {
    let of = |kinds: &[&str]| {
        let closed = guest.closed.iter().filter(|volume| kinds.contains(&volume.content.as_str()));
        closed.map(|volume| format!("{} ({})", volume.name, volume.content)).collect::<Vec<_>>().join(", ")
    };
    let (encrypted, arrays) = (of(&["luks", "bitlocker"]), of(&["mdraid"]));
    if !encrypted.is_empty() {
        return Need::Refused(Reason::GuestEncrypted, format!("no system was found, and {encrypted} is encrypted"));
    }
    if !arrays.is_empty() {
        return Need::Refused(Reason::GuestUnsupported, format!("no system was found, and {arrays} is not read"));
    }
    // What could not be read may hold a system all the same.
    let is_cd = |what: &str| guest.closed.iter().any(|volume| volume.name == what && volume.content == "iso9660");
    if guest.doubts.iter().all(|doubt| is_cd(&doubt.what)) {
        Need::Settled(Outcome::NotAGuest)
    } else {
        Need::Appliance
    }
}

fn windows(guest: &GuestReport, has_drivers: bool) -> Need {
    if guest.has(FixKind::Hibernation) {
        let message =
            "Windows is hibernated or was shut down with fast startup: shut it down wholly, and export it again";
        return Need::Refused(Reason::GuestHibernated, message.to_owned());
    }
    if guest.virtio.block == Answer::Yes {
        return Need::Settled(Outcome::NothingToDo);
    }
    if !has_drivers {
        let message = "Windows has no virtio driver that starts at boot: name a directory with virtio-win's drivers";
        return Need::Refused(Reason::GuestDriversMissing, message.to_owned());
    }
    foreign(guest).unwrap_or(Need::Appliance)
}

/// The refusal of a system for another processor.
fn foreign(guest: &GuestReport) -> Option<Need> {
    let architecture = guest.os.as_ref().and_then(|os| os.architecture.as_deref())?;
    let is_foreign = !["x86_64", "i386", "i686"].contains(&architecture);
    let message = format!("its system is for {architecture}, and the machine has x86_64");
    is_foreign.then_some(Need::Refused(Reason::GuestUnsupported, message))
}

fn linux(guest: &GuestReport, names: GuestNames) -> Need {
    if let Some(refused) = foreign(guest) {
        return refused;
    }
    let has_more = guest.has(FixKind::InitramfsVirtio)
        || guest.has(FixKind::DeviceNames)
        || guest.has(FixKind::LvmDevices)
        || names == GuestNames::Keep && guest.has(FixKind::NetworkNames);
    if guest.virtio.block == Answer::Yes && !has_more {
        return Need::Settled(Outcome::NothingToDo);
    }
    // A change of one member would be lost, or win, when the guest puts them together.
    if guest.root.as_deref().is_some_and(|root| root.starts_with("md/")) {
        let message = "its system is on a mirror (RAID 1), whose members may only be changed together";
        return Need::Refused(Reason::GuestUnsupported, message.to_owned());
    }
    Need::Appliance
}

#[cfg(test)]
mod tests {
    use super::super::{Fix, OperatingSystem, Virtio};
    use super::*;
    use crate::conversion::guest::report::Closed;

    fn linux(block: Answer, fixes: &[FixKind]) -> GuestReport {
        let fix = |kind: &FixKind| Fix { kind: *kind, need: 1, what: "f".into(), why: "w".into() };
        GuestReport {
            family: Family::Linux,
            virtio: Virtio { block, ..Virtio::default() },
            fixes: fixes.iter().map(fix).collect(),
            ..GuestReport::default()
        }
    }

    fn options(names: GuestNames) -> GuestOptions {
        GuestOptions { names, ..GuestOptions::default() }
    }

    fn unknown(contents: &[&str]) -> GuestReport {
        let closed = contents.iter().map(|content| Closed { name: "disk 0".into(), content: (*content).into() });
        GuestReport { closed: closed.collect(), ..GuestReport::default() }
    }

    #[test]
    fn an_appliance_starts_only_for_a_guest_that_may_need_it() {
        let keep = GuestNames::Keep;
        let settled = |outcome| Need::Settled(outcome);
        for (guest, names, expected) in [
            (linux(Answer::Yes, &[]), keep, settled(Outcome::NothingToDo)),
            (linux(Answer::Yes, &[FixKind::Tools, FixKind::FallbackLoader]), keep, settled(Outcome::NothingToDo)),
            (linux(Answer::Yes, &[FixKind::NetworkNames]), GuestNames::Leave, settled(Outcome::NothingToDo)),
            (linux(Answer::Yes, &[FixKind::NetworkNames]), keep, Need::Appliance),
            (linux(Answer::No, &[FixKind::InitramfsVirtio]), keep, Need::Appliance),
            (linux(Answer::Unknown, &[]), keep, Need::Appliance),
            (unknown(&[]), keep, settled(Outcome::NotAGuest)),
        ] {
            assert_eq!(need(Some(&guest), &options(names)), expected, "{guest:?}");
        }
        let doubtful = |contents: &[&str]| {
            let doubt = crate::conversion::guest::Doubt { what: "disk 0".into(), why: "w".into() };
            GuestReport { doubts: vec![doubt], ..unknown(contents) }
        };
        assert_eq!(need(Some(&doubtful(&[])), &options(keep)), Need::Appliance);
        assert_eq!(need(Some(&doubtful(&["iso9660"])), &options(keep)), settled(Outcome::NotAGuest));
    }

    #[test]
    fn a_refusal_names_its_reason() {
        let reason = |guest: Option<&GuestReport>| match need(guest, &options(GuestNames::Keep)) {
            Need::Refused(reason, _) => Some(reason),
            _ => None,
        };
        assert_eq!(reason(None), Some(Reason::GuestAmbiguous));
        assert_eq!(reason(Some(&unknown(&["swap", "luks"]))), Some(Reason::GuestEncrypted));
        assert_eq!(reason(Some(&unknown(&["mdraid"]))), Some(Reason::GuestUnsupported));
        let mirror = |block| GuestReport { root: Some("md/0".into()), ..linux(block, &[]) };
        assert_eq!(reason(Some(&mirror(Answer::No))), Some(Reason::GuestUnsupported));
        assert_eq!(reason(Some(&mirror(Answer::Yes))), None);
        let two = GuestReport { other_roots: vec!["b".into()], ..linux(Answer::Yes, &[]) };
        assert_eq!(reason(Some(&two)), Some(Reason::GuestAmbiguous));
        let arm = OperatingSystem { architecture: Some("aarch64".into()), ..OperatingSystem::default() };
        let arm = GuestReport { os: Some(arm), ..linux(Answer::No, &[]) };
        assert_eq!(reason(Some(&arm)), Some(Reason::GuestUnsupported));
        let windows = |fixes| GuestReport { family: Family::Windows, ..linux(Answer::No, fixes) };
        assert_eq!(reason(Some(&windows(&[]))), Some(Reason::GuestDriversMissing));
        assert_eq!(reason(Some(&windows(&[FixKind::Hibernation]))), Some(Reason::GuestHibernated));
        let given = GuestOptions { virtio_win: Some("/virtio-win".into()), ..GuestOptions::default() };
        assert_eq!(need(Some(&windows(&[])), &given), Need::Appliance);
        assert!(matches!(need(Some(&windows(&[FixKind::Hibernation])), &given), Need::Refused(..)));
    }
}
