// SPDX-License-Identifier: Apache-2.0
//! Texts about machines and disks with changed words: every reader ends, and what it says is bounded.

mod samples;

use std::io::Write as _;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bolero::{TypeGenerator, ValueGenerator, check, produce};

use super::{MAX_BYTES, hyperv, ovf, plain_name, references, vmdk, vmx};
use crate::conversion::file_name::extension;
use crate::conversion::machine::Machine;
use crate::disk::{Region, manifest};

/// Cases of each text, unless a variable sets another number.
const CASES: usize = 200;
/// How long a case may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// One change, at a word in parts of 65,536 of all.
#[derive(Clone, Debug, TypeGenerator)]
pub(crate) enum Edit {
    Byte {
        at: u16,
        byte: u8,
    },
    Odd {
        at: u16,
        which: u8,
    },
    Swap {
        at: u16,
        from: u16,
    },
    Cut {
        at: u16,
        len: u8,
    },
    /// Words once more elsewhere, or many times.
    Again {
        from: u16,
        len: u8,
        to: u16,
        times: u8,
    },
}

/// Words that some field takes otherwise than others, or not at all.
const ODD: [&str; 32] = [
    "",
    "0",
    "1",
    "-1",
    "255",
    "65536",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "0x10",
    "2^64",
    "byte * 2^63",
    "true",
    "../x",
    "/etc/x",
    "a%2fb",
    "http://h/x",
    "c:x",
    "\"",
    "<",
    "/>",
    "&#0;",
    "&#x10FFFF;",
    "<!DOCTYPE x [<!ENTITY y \"z\">]>",
    "<![CDATA[",
    "\u{feff}",
    "\u{202e}",
    "\0",
    "|0A",
    "\r\n",
];

pub(crate) fn edits() -> impl ValueGenerator<Output = Vec<Edit>> {
    produce::<Vec<Edit>>().with().len(1usize..6)
}

/// Runs of letters and digits, and what is between them.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let other = rest.find(|c: char| !c.is_ascii_alphanumeric());
        let end = match other {
            Some(0) => first.len_utf8(),
            Some(end) => end,
            None => rest.len(),
        };
        let (word, behind) = rest.split_at(end);
        words.push(word);
        rest = behind;
    }
    words
}

/// The text with these changes.
pub(crate) fn changed(text: &str, edits: &[Edit]) -> Vec<u8> {
    let mut words = words(text);
    let place = |at: u16, count: usize| (usize::from(at) * count) >> 16;
    for edit in edits {
        let count = words.len();
        match *edit {
            _ if count == 0 => {}
            Edit::Byte { .. } => {}
            Edit::Odd { at, which } => words[place(at, count)] = ODD[usize::from(which) % ODD.len()],
            Edit::Swap { at, from } => words[place(at, count)] = words[place(from, count)],
            Edit::Cut { at, len } => {
                let at = place(at, count);
                words.drain(at..(at + 1 + usize::from(len)).min(count));
            }
            Edit::Again { from, len, to, times } => {
                let (from, to) = (place(from, count), place(to, count));
                let times = if times < 200 { 1 } else { 4 << (times % 8) };
                let copy = words[from..(from + 1 + usize::from(len)).min(count)].repeat(times);
                words.splice(to..to, copy);
            }
        }
        words.truncate(1 << 17);
    }
    let mut bytes = words.concat().into_bytes();
    let len = bytes.len();
    for edit in edits {
        if let Edit::Byte { at, byte } = *edit
            && let Some(old) = bytes.get_mut(place(at, len))
        {
            *old = byte;
        }
    }
    bytes
}

fn check_machine(machine: &Machine) {
    assert_eq!(machine.clone().bounded(), *machine, "a machine is bounded");
}

/// Names that others look for beside the file called `name`.
fn check_names(name: &str, bytes: &[u8], option: Option<&str>) {
    let Ok(found) = references(name, bytes, option) else { return };
    for name in found.required.iter().chain(&found.optional).chain(found.written.values()) {
        plain_name("text", name).expect("only plain names are given on");
    }
}

fn read_envelope(bytes: &[u8]) {
    for option in [None, Some("small")] {
        check_names("vm.ovf", bytes, option);
        let Ok(envelope) = ovf::parse("vm.ovf", bytes, option) else { continue };
        envelope.machines.iter().for_each(check_machine);
        assert!(envelope.disks.iter().all(|disk| disk.file.is_none_or(|file| file < envelope.files.len())));
    }
    let _ = ovf::is_closed(bytes);
}

fn read_vmx(bytes: &[u8]) {
    check_machine(&vmx::read(bytes, "web.vmdk"));
}

fn read_settings(bytes: &[u8]) {
    let here = |name: &str| (extension(name) == "vhdx").then(|| name.to_owned());
    hyperv::read(bytes, "web.vhdx", &here).iter().for_each(check_machine);
}

fn read_settings_in_utf16(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let wide: Vec<u8> = [0xFEFF].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    read_settings(&wide);
}

fn read_descriptor(bytes: &[u8]) {
    check_names("web.vmdk", bytes, None);
    let Ok(descriptor) = vmdk::parse("web.vmdk", bytes) else { return };
    let _ = descriptor.virtual_size();
}

fn read_manifest(bytes: &[u8]) {
    static DISK: LazyLock<Region> = LazyLock::new(|| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        Region::whole(Arc::new(file), "d.vmdk", 3)
    });
    let found = manifest::expected("vm.mf", bytes, |name| (name == DISK.name()).then(|| DISK.clone()));
    let Ok((expected, warnings)) = found else { return };
    assert!(warnings.len() <= 17, "{} warnings", warnings.len());
    let _ = manifest::verify(&expected, &manifest::Control::default());
}

#[test]
fn many_controllers_cost_no_more_than_their_text() {
    let start = Instant::now();
    let drive = "<controller0><drive0><pathname>web.vhdx</pathname></drive0></controller0>";
    read_settings(
        format!("<configuration><d>{drive}{}</d></configuration>", "<controller1/>".repeat(60_000)).as_bytes(),
    );
    let controllers = "<Item><InstanceID>1</InstanceID><ResourceType>6</ResourceType></Item>".repeat(5000);
    let disk = "<Item><HostResource>/disk/a</HostResource><Parent>1</Parent><ResourceType>17</ResourceType></Item>";
    let text = format!(
        "<Envelope><References><File id='f' href='a.vmdk'/></References><DiskSection><Disk diskId='a' fileRef='f'/>\
         </DiskSection><VirtualSystem><VirtualHardwareSection>{controllers}{}</VirtualHardwareSection></VirtualSystem>\
         </Envelope>",
        disk.repeat(4000)
    );
    let hardware = ovf::parse("vm.ovf", text.as_bytes(), None).unwrap().hardware.unwrap();
    let told: usize = hardware.disk_controllers.iter().map(|controller| controller.disks.len()).sum();
    assert!(told <= 4000, "{told} disks are told");
    assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
}

/// A target for each text.
macro_rules! texts {
    ($($target:ident $text:ident $read:ident)*) => {$(
        #[test]
        fn $target() {
            let text = samples::$text;
            $read(text.as_bytes());
            check!().with_generator(edits()).with_iterations(CASES).for_each(|edits| {
                let bytes = changed(text, edits);
                let bytes = &bytes[..bytes.len().min(MAX_BYTES + 1)];
                let start = Instant::now();
                $read(bytes);
                assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
            });
        }
    )*};
}

texts! {
    ovf_of_vsphere VSPHERE read_envelope
    ovf_of_virtualbox VIRTUALBOX read_envelope
    ovf_with_options OPTIONS read_envelope
    ovf_of_ovirt OVIRT read_envelope
    ovf_of_others OTHERS read_envelope
    machine_of_vmware VMX read_vmx
    machine_of_hyperv HYPERV read_settings
    machine_of_hyperv_in_utf16 HYPERV read_settings_in_utf16
    vmdk_descriptor DESCRIPTOR read_descriptor
    manifest_lines MANIFEST read_manifest
}
