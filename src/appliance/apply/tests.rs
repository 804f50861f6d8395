// SPDX-License-Identifier: Apache-2.0
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::*;
use crate::conversion::guest::FixKind;

fn guest() -> (tempfile::TempDir, Mounted) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(outer.path().join("outside"), "outside").unwrap();
    (outer, Mounted::new(&root).unwrap())
}

fn planned(path: &str, act: Act) -> Planned {
    Planned { fix: FixKind::DeviceNames, path: path.into(), act }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_replaced_is_kept_with_its_owner_mode_and_attributes() {
    let (outer, files) = guest();
    let path = outer.path().join("root/etc/fstab");
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    }
    let has_attributes = fs::setxattr(&path, "user.note", b"kept", XattrFlags::empty()).is_ok();
    for content in ["first", "second"] {
        let change = apply(&files, &planned("/etc/fstab", Act::Write(content.into()))).unwrap();
        assert_eq!(change.backup.as_deref(), Some("/etc/fstab.hyper2kvm"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
    assert_eq!(std::fs::read_to_string(path.with_extension("hyper2kvm")).unwrap(), "first");
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    if is_root {
        assert_eq!((metadata.uid(), metadata.gid()), (12, 34));
    }
    if has_attributes {
        let mut value = [0; 16];
        assert_eq!(fs::getxattr(&path, "user.note", &mut value[..]).unwrap(), 4);
    }
    assert_eq!(names(&outer.path().join("root/etc")), ["fstab", "fstab.hyper2kvm"]);
}

#[test]
fn every_act_does_what_it_says() {
    let (outer, files) = guest();
    let root = outer.path().join("root");
    std::fs::write(root.join("etc/a"), "content").unwrap();
    // Left behind by one that died.
    std::fs::write(root.join("etc").join(UNFINISHED), "half").unwrap();
    apply(&files, &planned("/etc/a", Act::Prepend(b"before ".to_vec()))).unwrap();
    assert_eq!(std::fs::read_to_string(root.join("etc/a")).unwrap(), "before content");
    apply(&files, &planned("/etc/a", Act::Append(b" after".to_vec()))).unwrap();
    assert_eq!(std::fs::read_to_string(root.join("etc/a")).unwrap(), "before content after");
    let change = apply(&files, &planned("/EFI/BOOT/b", Act::CopyOf("/etc/a".into()))).unwrap();
    assert_eq!((change.file.as_str(), change.backup), ("/EFI/BOOT/b", None));
    assert_eq!(std::fs::read_to_string(root.join("EFI/BOOT/b")).unwrap(), "before content after");
    assert_eq!(std::fs::metadata(root.join("EFI/BOOT/b")).unwrap().mode() & 0o7777, 0o644);
    let change = apply(&files, &planned("/etc/a", Act::Remove)).unwrap();
    assert_eq!(change.backup.as_deref(), Some("/etc/a.hyper2kvm"));
    assert_eq!(names(&root.join("etc")), ["a.hyper2kvm"]);
    for act in [Act::Prepend(Vec::new()), Act::Append(Vec::new())] {
        assert!(apply(&files, &planned("/etc/none", act)).is_err());
    }
}

#[test]
fn a_link_changes_what_it_leads_to_and_nothing_outside() {
    let (outer, files) = guest();
    let root = outer.path().join("root");
    std::fs::create_dir(root.join("boot")).unwrap();
    std::fs::write(root.join("boot/initrd-1"), "old").unwrap();
    symlink("../boot/initrd-1", root.join("etc/initrd")).unwrap();
    let change = apply(&files, &planned("/etc/initrd", Act::Write(b"new".to_vec()))).unwrap();
    assert_eq!(change.file, "/etc/../boot/initrd-1");
    assert_eq!(names(&root.join("boot")), ["initrd-1", "initrd-1.hyper2kvm"]);
    assert!(root.join("etc/initrd").is_symlink());
    symlink(outer.path().join("outside"), root.join("etc/out")).unwrap();
    symlink("../../outside", root.join("etc/up")).unwrap();
    symlink(outer.path(), root.join("etc/directory")).unwrap();
    for path in ["/etc/out", "/etc/up", "/etc/directory/outside"] {
        // Within the root the target's directory may not exist; what it is made of is the guest's own.
        let _ = apply(&files, &planned(path, Act::Write(b"changed".to_vec())));
    }
    assert_eq!(std::fs::read_to_string(outer.path().join("outside")).unwrap(), "outside");
    assert_eq!(names(outer.path()), ["outside", "root"]);
    let pipe = root.join("etc/pipe");
    fs::mknodat(fs::CWD, &pipe, fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    assert!(apply(&files, &planned("/etc/pipe", Act::Write(Vec::new()))).is_err());
}
