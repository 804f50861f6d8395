// SPDX-License-Identifier: Apache-2.0
//! Artifacts of several files, in every order of arrival.

use super::named::references;
use super::*;

const TIMEOUT: Duration = Duration::from_secs(3600);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn id(text: &str) -> ConversionId {
    text.parse().unwrap()
}

fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|n| Name::from(*n)).collect()
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// A queue directory under construction.
#[derive(Default)]
struct Queue(BTreeMap<Name, File>);

impl Queue {
    fn with(mut self, name: &str, is_stable: bool, required: &[&str], optional: &[&str]) -> Self {
        let references = References { required: texts(required), optional: texts(optional), ..References::default() };
        let file = File {
            is_stable,
            size: 1000,
            first_sight: s(100),
            last_change: s(100),
            references: references.into(),
            not_of: Vec::new(),
        };
        self.0.insert(name.into(), file);
        self
    }

    fn stable(self, name: &str) -> Self {
        self.with(name, true, &[], &[])
    }

    fn growing(self, name: &str) -> Self {
        self.with(name, false, &[], &[])
    }

    fn verdicts_at(&self, now: u64) -> Vec<Verdict> {
        self.verdicts_with(|_, _| None, now)
    }

    fn verdicts_with(
        &self,
        elsewhere: impl Fn(&str, Option<StatedSize>) -> Option<Elsewhere>,
        now: u64,
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        group(&self.0, |_, name, stated| elsewhere(name, stated), s(now), TIMEOUT, |verdict| verdicts.push(verdict));
        verdicts
    }

    fn verdicts(&self) -> Vec<Verdict> {
        self.verdicts_at(110)
    }
}

fn ready(members: &[&str]) -> Verdict {
    Verdict::Ready { primary: members[0].into(), members: names(members), taken_back: Vec::new() }
}

fn settling(primary: &str, unsettled: &[&str]) -> Verdict {
    Verdict::Settling { primary: primary.into(), unsettled: names(unsettled) }
}

fn waiting(primary: &str, missing: &[&str]) -> Verdict {
    Verdict::Waiting { primary: primary.into(), missing: texts(missing), until: s(3700) }
}

#[test]
fn files_that_name_nobody_stand_alone_and_none_waits_for_another() {
    let queue = Queue::default().stable("a.raw").growing("b.vmdk").stable("notes.txt").stable("c.ova");
    assert_eq!(queue.verdicts(), [ready(&["a.raw"]), settling("b.vmdk", &["b.vmdk"]), ready(&["c.ova"])]);
}

#[test]
fn an_ovf_and_what_it_names_are_one_artifact_when_all_are_stable() {
    let ovf = |q: Queue| q.with("vm.ovf", true, &["d2.vmdk", "d1.vmdk.gz"], &["vm.mf", "vm.cert"]);
    let queue = ovf(Queue::default()).stable("d2.vmdk");
    assert_eq!(queue.verdicts(), [waiting("vm.ovf", &["d1.vmdk.gz"])]);
    let queue = queue.growing("d1.vmdk.gz");
    assert_eq!(queue.verdicts(), [settling("vm.ovf", &["d1.vmdk.gz"])]);
    let queue = queue.stable("d1.vmdk.gz").growing("vm.mf");
    assert_eq!(queue.verdicts(), [settling("vm.ovf", &["vm.mf"])]);
    let queue = queue.stable("vm.mf").stable("other.raw");
    assert_eq!(queue.verdicts(), [ready(&["other.raw"]), ready(&["vm.ovf", "d1.vmdk.gz", "d2.vmdk", "vm.mf"]),]);
}

#[test]
fn a_growing_ovf_keeps_its_disks_even_before_it_names_them() {
    let queue = Queue::default().growing("vm.ovf").stable("VM-disk1.vmdk").stable("vmware.raw");
    assert_eq!(queue.verdicts(), [settling("vm.ovf", &["vm.ovf"]), ready(&["vmware.raw"])]);
    // But not for ever.
    assert_eq!(
        queue.verdicts_at(3700),
        [ready(&["VM-disk1.vmdk"]), settling("vm.ovf", &["vm.ovf"]), ready(&["vmware.raw"]),]
    );
    let queue = Queue::default().with("vm.ovf", false, &[], &["x.vmdk"]).stable("x.vmdk");
    assert_eq!(queue.verdicts(), [settling("vm.ovf", &["vm.ovf"])]);
}

#[test]
fn a_descriptor_inside_an_ovf_brings_its_extents() {
    let queue = Queue::default()
        .with("vm.ovf", true, &["a.vmdk"], &[])
        .with("a.vmdk", true, &["a-flat.vmdk"], &[])
        .stable("a-flat.vmdk");
    assert_eq!(queue.verdicts(), [ready(&["vm.ovf", "a-flat.vmdk", "a.vmdk"])]);
}

#[test]
fn an_extent_waits_for_its_descriptor_and_fails_without() {
    let queue = Queue::default().stable("vm-flat.vmdk");
    assert_eq!(queue.verdicts(), [waiting("vm-flat.vmdk", &[])]);
    let failure = match &queue.verdicts_at(3700)[..] {
        [Verdict::Incomplete { members, failure, .. }] if *members == names(&["vm-flat.vmdk"]) => failure.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(failure.reason, Reason::MissingMember);
    let queue = queue.with("vm.vmdk", true, &["vm-flat.vmdk"], &[]);
    assert_eq!(queue.verdicts_at(3700), [ready(&["vm.vmdk", "vm-flat.vmdk"])]);
}

#[test]
fn each_arrival_gives_the_missing_ones_new_time() {
    let mut queue = Queue::default().with("vm.ovf", true, &["a.vmdk", "b.vmdk"], &[]).stable("a.vmdk");
    queue.0.get_mut("a.vmdk").unwrap().last_change = s(3000);
    let until = s(6600);
    assert_eq!(
        queue.verdicts_at(3700),
        [Verdict::Waiting { primary: "vm.ovf".into(), missing: texts(&["b.vmdk"]), until }]
    );
    let verdicts = queue.verdicts_at(6600);
    let [Verdict::Incomplete { members, failure, .. }] = &verdicts[..] else { panic!("{verdicts:?}") };
    assert_eq!(*members, names(&["vm.ovf", "a.vmdk"]));
    assert_eq!(failure.message, "vm.ovf: b.vmdk did not come within 3600 s");
}

#[test]
fn a_disk_that_was_taken_alone_is_recalled_when_its_ovf_comes() {
    let queue = Queue::default().with("vm.ovf", false, &["a.vmdk", "b.vmdk"], &[]).stable("b.vmdk");
    let elsewhere = |name: &str, _| (name == "a.vmdk").then(|| Elsewhere::Alone(id("a-1")));
    let recall = Verdict::Recall { primary: "vm.ovf".into(), member: "a.vmdk".to_owned(), id: id("a-1") };
    // The recall is known as soon as the OVF can be read: the earlier, the less work is lost.
    assert_eq!(queue.verdicts_with(elsewhere, 110), [recall.clone(), settling("vm.ovf", &["vm.ovf"])]);
    let queue = queue.with("vm.ovf", true, &["a.vmdk", "b.vmdk"], &[]);
    assert_eq!(queue.verdicts_with(elsewhere, 9999), [recall]);
}

/// The source of an ended conversion.
fn ended(name: &str) -> TakenBack {
    let kind = scan::Kind::Regular;
    let entry = Entry { name: name.into(), kind, size: 1000, mtime_ns: 0, ctime_ns: 0, inode: 1, device: 1 };
    let location = format!(".processed/2026-01-17/{name}");
    TakenBack { entry, alone: Alone { id: id("a-1"), location, output_path: Some("/out/a".to_owned()) } }
}

#[test]
fn a_disk_that_was_converted_alone_is_taken_back_when_all_else_is_there() {
    let elsewhere = |name: &str, _| (name == "a.vmdk").then(|| Elsewhere::Ended(Box::new(ended(name))));
    let queue = Queue::default().with("vm.ovf", true, &["a.vmdk", "b.vmdk"], &[]);
    assert_eq!(queue.verdicts_with(elsewhere, 110), [waiting("vm.ovf", &["b.vmdk"])]);
    let queue = queue.growing("b.vmdk");
    assert_eq!(queue.verdicts_with(elsewhere, 110), [settling("vm.ovf", &["b.vmdk"])]);
    let queue = queue.stable("b.vmdk");
    let (primary, members) = ("vm.ovf".into(), names(&["vm.ovf", "b.vmdk"]));
    let whole = Verdict::Ready { primary, members, taken_back: vec![ended("a.vmdk")] };
    assert_eq!(queue.verdicts_with(elsewhere, 110), [whole]);
    // A conversion that is about to end is waited for, however long.
    assert_eq!(queue.verdicts_with(|_, _| Some(Elsewhere::Ending), 9999), []);
}

#[test]
fn a_disk_that_was_converted_alone_and_is_gone_fails_its_ovf_unless_it_comes_again() {
    let queue = Queue::default().with("vm.ovf", true, &["a.vmdk"], &[]);
    let elsewhere = |_: &str, _| Some(Elsewhere::Lost("a.vmdk is gone".to_owned()));
    let until = s(115);
    assert_eq!(
        queue.verdicts_with(elsewhere, 110),
        [Verdict::Waiting { primary: "vm.ovf".into(), missing: vec![], until }]
    );
    let verdicts = queue.verdicts_with(elsewhere, 115);
    let [Verdict::Incomplete { members, failure, .. }] = &verdicts[..] else { panic!("{verdicts:?}") };
    assert_eq!(*members, names(&["vm.ovf"]));
    assert_eq!(failure.message, "vm.ovf: a.vmdk is gone");
}

/// Says what size the descriptor states of a file.
fn stating(mut queue: Queue, descriptor: &str, sizes: &[(&str, StatedSize)]) -> Queue {
    let file = queue.0.get_mut(descriptor).unwrap();
    let sizes = sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
    file.references = References { sizes, ..file.references.as_ref().clone() }.into();
    queue
}

fn sized(mut queue: Queue, name: &str, size: u64) -> Queue {
    queue.0.get_mut(name).unwrap().size = size;
    queue
}

#[test]
fn a_file_of_another_size_is_no_member_and_the_message_says_so() {
    let exactly = [("d.vmdk", StatedSize::Exactly(5_678))];
    let ovf = |size| {
        let queue = stating(Queue::default().with("vm.ovf", true, &["d.vmdk"], &[]), "vm.ovf", &exactly);
        sized(queue.stable("d.vmdk"), "d.vmdk", size)
    };
    // A file that is shorter than stated may be an upload that goes on; a longer one belongs to another machine.
    assert_eq!(ovf(1_234).verdicts(), [waiting("vm.ovf", &["d.vmdk"])]);
    assert_eq!(ovf(5_679).verdicts(), [ready(&["d.vmdk"]), waiting("vm.ovf", &["d.vmdk"])]);
    assert_eq!(ovf(5_678).verdicts(), [ready(&["vm.ovf", "d.vmdk"])]);
    let verdicts = ovf(1_234).verdicts_at(3700);
    let [Verdict::Incomplete { members, failure, .. }] = &verdicts[..] else { panic!("{verdicts:?}") };
    assert_eq!(*members, names(&["vm.ovf"]));
    assert_eq!(
        failure.message,
        "vm.ovf: d.vmdk is there with 1,234 bytes, vm.ovf says 5,678: it belongs to another machine or is incomplete"
    );
    // It still grows.
    let growing = sized(ovf(0).growing("d.vmdk"), "d.vmdk", 5_000);
    assert_eq!(growing.verdicts(), [settling("vm.ovf", &["d.vmdk"])]);
    // Another file of the name, which was converted meanwhile.
    let without = stating(Queue::default().with("vm.ovf", true, &["d.vmdk"], &[]), "vm.ovf", &exactly);
    let verdicts = without.verdicts_with(|_, _| Some(Elsewhere::Another(9_999)), 3700);
    let [Verdict::Incomplete { failure, .. }] = &verdicts[..] else { panic!("{verdicts:?}") };
    assert_eq!(
        failure.message,
        "vm.ovf: d.vmdk (one of 9,999 bytes was converted by itself, 5,678 are stated) did not come within 3600 s"
    );
}

#[test]
fn a_flat_extent_may_be_longer_than_its_descriptor_says_but_not_shorter() {
    let least = [("d-flat.vmdk", StatedSize::AtLeast(1024))];
    let disk = |size| {
        let queue = stating(Queue::default().with("d.vmdk", true, &["d-flat.vmdk"], &[]), "d.vmdk", &least);
        sized(queue.stable("d-flat.vmdk"), "d-flat.vmdk", size)
    };
    assert_eq!(disk(1024).verdicts(), [ready(&["d.vmdk", "d-flat.vmdk"])]);
    assert_eq!(disk(2048).verdicts(), [ready(&["d.vmdk", "d-flat.vmdk"])]);
    assert_eq!(disk(512).verdicts(), [waiting("d.vmdk", &["d-flat.vmdk"])]);
}

#[test]
fn of_two_descriptors_that_name_one_disk_the_one_whose_size_it_has_gets_it() {
    let both = || {
        let queue = Queue::default().with("a.ovf", true, &["d.vmdk"], &[]).with("b.ovf", true, &["d.vmdk"], &[]);
        stating(queue, "b.ovf", &[("d.vmdk", StatedSize::Exactly(1000))]).stable("d.vmdk")
    };
    // One descriptor states no size, the other exactly this one.
    assert_eq!(both().verdicts(), [waiting("a.ovf", &["d.vmdk"]), ready(&["b.ovf", "d.vmdk"])]);
    let verdicts = both().verdicts_at(3700);
    let Verdict::Incomplete { failure, .. } = &verdicts[0] else { panic!("{verdicts:?}") };
    assert_eq!(failure.message, "a.ovf: d.vmdk (which belongs to b.ovf) did not come within 3600 s");
    let queue = stating(both(), "a.ovf", &[("d.vmdk", StatedSize::Exactly(1000))]);
    let queue = stating(queue, "b.ovf", &[("d.vmdk", StatedSize::Exactly(999))]);
    assert_eq!(queue.verdicts(), [ready(&["a.ovf", "d.vmdk"]), waiting("b.ovf", &["d.vmdk"])]);
}

#[test]
fn a_disk_that_fits_two_descriptors_equally_fails_both_and_names_them() {
    let queue =
        Queue::default().with("a.ovf", true, &["d.vmdk"], &[]).with("b.ovf", true, &["d.vmdk"], &[]).stable("d.vmdk");
    let verdicts = queue.verdicts();
    let failed = |verdict: &Verdict| match verdict {
        Verdict::Incomplete { members, failure, .. } => (members.clone(), failure.message.clone()),
        other => panic!("{other:?}"),
    };
    let (one, other) = (failed(&verdicts[0]), failed(&verdicts[1]));
    // The file goes with the artifact that is claimed first, so that nobody takes it for a machine of its own.
    assert_eq!((one.0, other.0), (names(&["a.ovf", "d.vmdk"]), names(&["b.ovf", "d.vmdk"])));
    let why = "d.vmdk is named by a.ovf and b.ovf and fits them equally, so nobody can tell whose it is: drop the files \
               of one machine when those of the other are converted";
    assert_eq!((one.1, other.1), (format!("a.ovf: {why}"), format!("b.ovf: {why}")));
    // While any of the descriptors still arrives, nothing is decided.
    let arriving = Queue(queue.0.clone()).growing("d.vmdk");
    assert_eq!(arriving.verdicts(), [settling("a.ovf", &["d.vmdk"]), settling("b.ovf", &["d.vmdk"])]);
    let queue = queue.with("b.ovf", false, &["d.vmdk"], &[]);
    assert_eq!(queue.verdicts(), [settling("a.ovf", &["b.ovf"]), settling("b.ovf", &["b.ovf"])]);
}

#[test]
fn what_two_descriptors_may_have_goes_to_the_first() {
    let queue =
        Queue::default().with("a.ovf", true, &[], &["x.iso"]).with("b.ovf", true, &[], &["x.iso"]).stable("x.iso");
    assert_eq!(queue.verdicts(), [ready(&["a.ovf", "x.iso"]), ready(&["b.ovf"])]);
}

#[test]
fn descriptors_that_name_each_other_end_in_one_artifact() {
    let queue = Queue::default().with("a.vmdk", true, &["b.vmdk"], &[]).with("b.vmdk", true, &["a.vmdk"], &[]);
    assert_eq!(queue.verdicts(), [ready(&["a.vmdk", "b.vmdk"])]);
    let queue = Queue::default().with("a.vmdk", true, &["a.vmdk"], &[]);
    assert_eq!(queue.verdicts(), [ready(&["a.vmdk"])]);
}

#[test]
fn every_candidate_stands_in_one_verdict() {
    let queue = Queue::default()
        .with("a.ovf", true, &["b.ovf", "c.vmdk"], &["d.img"])
        .with("b.ovf", true, &["a.ovf", "c.vmdk"], &["d.img"])
        .with("c.vmdk", true, &["d.img", "c.vmdk"], &[])
        .stable("d.img");
    let mut seen = Vec::new();
    for verdict in queue.verdicts_at(9999) {
        match verdict {
            Verdict::Ready { members, .. } | Verdict::Incomplete { members, .. } => seen.extend(members),
            other => panic!("{other:?}"),
        }
    }
    seen.sort();
    // Both name c.vmdk: it goes with the one that is claimed first.
    assert_eq!(seen, names(&["a.ovf", "b.ovf", "c.vmdk", "c.vmdk", "d.img"]));
}

#[test]
fn a_broken_descriptor_names_what_it_seems_to_name() {
    let ovf = b"<Envelope><References><File ovf:href=\"a.vmdk\" id=\"x\"/><File ovf:href='../b'/><File href=\"c";
    assert_eq!(references("vm.ovf", ovf), References { optional: texts(&["a.vmdk"]), ..References::default() });
    let vmdk = b"# Disk DescriptorFile\nRW 1 FLAT \"a-flat.vmdk\" 0\nRW 1 FLAT \"/etc/shadow\" 0\nx=\"b\"\n";
    assert_eq!(references("vm.vmdk", vmdk), References { optional: texts(&["a-flat.vmdk"]), ..References::default() });
    assert_eq!(references("vm.raw", vmdk), References::default());
    assert_eq!(references("vm.ovf", b"\xff\xfe href="), References::default());
}

#[test]
fn a_broken_descriptor_keeps_its_extents_to_be_refused_with_them() {
    let queue = Queue::default().with("a.vmdk", true, &[], &["a-flat.vmdk"]).stable("a-flat.vmdk");
    assert_eq!(queue.verdicts(), [ready(&["a.vmdk", "a-flat.vmdk"])]);
}

#[test]
fn what_vmware_keeps_beside_a_disk_goes_with_it() {
    let queue = Queue::default()
        .with("vm.vmdk", true, &["vm-flat.vmdk"], &[])
        .stable("vm-flat.vmdk")
        .stable("vm-ctk.vmdk")
        .stable("vm.nvram")
        .stable("vm.vmsd")
        .stable("vm.vmxf")
        .stable("vm-1a2b3c4d.vswp")
        .stable("vmx-vm-1a2b3c4d-1.vswp")
        .stable("vmware.log")
        .stable("vmware-7.log")
        .stable("other.log")
        .stable("vm.vmx")
        .with("vm_1.vmdk", true, &["vm_1-flat.vmdk"], &[])
        .stable("vm_1-flat.vmdk")
        .stable("vm_1-ctk.vmdk");
    let first = [
        "vm.vmdk",
        "vm-1a2b3c4d.vswp",
        "vm-ctk.vmdk",
        "vm-flat.vmdk",
        "vm.nvram",
        "vm.vmsd",
        "vm.vmx",
        "vm.vmxf",
        "vmware-7.log",
        "vmware.log",
        "vmx-vm-1a2b3c4d-1.vswp",
    ];
    assert_eq!(queue.verdicts(), [ready(&first), ready(&["vm_1.vmdk", "vm_1-ctk.vmdk", "vm_1-flat.vmdk"])]);
    // While one of them is still copied, the disk waits.
    let queue = queue.growing("vm.nvram");
    assert_eq!(queue.verdicts()[0], settling("vm.vmdk", &["vm.nvram"]));
}

#[test]
fn a_disk_without_a_descriptor_and_one_of_an_ovf_have_files_beside_them_too() {
    let queue = Queue::default().stable("vm.vmdk").stable("vm.nvram").stable("VM-1.log");
    assert_eq!(queue.verdicts(), [ready(&["vm.vmdk", "vm.nvram"])]);
    let queue = Queue::default().with("vm.ovf", true, &["d.vmdk"], &[]).stable("d.vmdk").stable("d-ctk.vmdk");
    assert_eq!(queue.verdicts(), [ready(&["vm.ovf", "d-ctk.vmdk", "d.vmdk"])]);
}

#[test]
fn what_lies_beside_no_disk_or_may_lie_beside_two_is_nobodys() {
    let queue = Queue::default().stable("vm-ctk.vmdk").stable("vm.nvram");
    assert_eq!(queue.verdicts(), []);
    let queue = Queue::default().stable("a.vmdk").stable("b.vmdk").stable("vmware.log").stable("b.log");
    assert_eq!(queue.verdicts(), [ready(&["a.vmdk"]), ready(&["b.vmdk", "b.log"])]);
    let queue = Queue::default().stable("a.vmdk").stable("a-1.vmx").stable("b.vmx").stable("a-1.log");
    assert_eq!(queue.verdicts(), [ready(&["a.vmdk", "a-1.log"])]);
    let queue = Queue::default().stable("vm.raw").stable("vm.log");
    assert_eq!(queue.verdicts(), [ready(&["vm.raw"])]);
}

/// An envelope whose only disk is this file.
fn ovf_of(file: &str) -> References {
    let text = format!(
        "<Envelope><References><File id='f' {file}/></References>\
         <DiskSection><Disk diskId='d' fileRef='f'/></DiskSection></Envelope>"
    );
    let references = references("vm.ovf", text.as_bytes());
    // Manifests are of no interest here.
    References { optional: Vec::new(), ..references }
}

fn with_ovf(file: &str) -> Queue {
    let mut queue = Queue::default().stable("vm.ovf");
    queue.0.get_mut("vm.ovf").unwrap().references = ovf_of(file).into();
    queue
}

#[test]
fn a_name_with_percent_signs_is_found_decoded_and_as_it_is_written() {
    let queue = || with_ovf("href='a%20b.vmdk'");
    assert_eq!(queue().verdicts(), [waiting("vm.ovf", &["a b.vmdk"])]);
    assert_eq!(queue().stable("a b.vmdk").verdicts(), [ready(&["vm.ovf", "a b.vmdk"])]);
    assert_eq!(queue().stable("a%20b.vmdk").verdicts(), [ready(&["vm.ovf", "a%20b.vmdk"])]);
    // Both are there: the second is a disk of its own.
    let both = queue().stable("a b.vmdk").stable("a%20b.vmdk");
    assert_eq!(both.verdicts(), [ready(&["a%20b.vmdk"]), ready(&["vm.ovf", "a b.vmdk"])]);
}

#[test]
fn the_chunks_of_a_file_are_its_members() {
    let chunk = |n: usize| format!("d.vmdk.{n:09}");
    let chunks = |mut queue: Queue, sizes: &[u64]| {
        for (n, size) in sizes.iter().enumerate() {
            queue = sized(queue.stable(&chunk(n)), &chunk(n), *size);
        }
        queue
    };
    let whole = ready(&["vm.ovf", "d.vmdk.000000000", "d.vmdk.000000001", "d.vmdk.000000002"]);
    let stated = || with_ovf("href='d.vmdk' chunkSize='1000' size='2500'");
    assert_eq!(chunks(stated(), &[1000, 1000, 500]).verdicts(), std::slice::from_ref(&whole));
    assert_eq!(chunks(stated(), &[1000, 1000]).verdicts(), [waiting("vm.ovf", &["d.vmdk.000000002"])]);
    assert_eq!(chunks(stated(), &[1000, 1000, 400]).verdicts(), [waiting("vm.ovf", &["d.vmdk.000000002"])]);
    // Somebody joined them.
    let joined = sized(stated().stable("d.vmdk"), "d.vmdk", 2500);
    assert_eq!(joined.verdicts(), [ready(&["vm.ovf", "d.vmdk"])]);
    // The OVF does not say that there are chunks.
    let unsaid = || with_ovf("href='d.vmdk' size='2500'");
    assert_eq!(chunks(unsaid(), &[1000, 1000, 500]).verdicts(), std::slice::from_ref(&whole));
    assert_eq!(chunks(unsaid(), &[1000, 1000]).verdicts(), [waiting("vm.ovf", &["d.vmdk.000000002"])]);
    assert_eq!(chunks(with_ovf("href='d.vmdk'"), &[1, 2, 3]).verdicts(), [whole]);
}

#[test]
fn ten_thousand_files_are_judged_in_one_go() {
    let mut queue = Queue::default();
    for n in 0..10_000 {
        queue = queue.stable(&format!("{n}.raw"));
    }
    assert_eq!(queue.verdicts().len(), 10_000);
}
