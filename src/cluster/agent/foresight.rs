// SPDX-License-Identifier: Apache-2.0
//! What keeps workers from their directories although the watcher works in them: found before the first file is taken.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kube::api::ListParams;
use kube::{Api, Client};
use tokio::time::sleep;

use super::report::Reporter;
use super::storage::{STORAGE_RETRY, patiently};
use crate::cluster::identity::Identity;
use crate::cluster::seen::LabelledPod;
use crate::files::Paths;

/// Reason of `StorageReady` while each pod would take the volumes from the others.
const SE_LINUX_LEVEL: &str = "SELinuxLevel";

/// Type of an NFS in statfs(2): `NFS_SUPER_MAGIC` of linux/magic.h.
const NFS: i64 = 0x6969;

/// `SELinux` label of a process, and the attribute that holds a file's.
const OWN_LABEL: &str = "/proc/self/attr/current";
const FILE_LABEL: &CStr = c"security.selinux";

/// Longest label that is read: a context has some dozens of bytes.
const LONGEST_LABEL: usize = 1024;

/// The directories into which the kubelet, as root, goes for a worker, and that an export which squashes root may keep
/// closed to it: in words for the condition. Whether the export squashes root cannot be seen from here.
pub(super) fn closed_to_squashed_root(paths: &Paths) -> Option<String> {
    let directories = [paths.queue(), &paths.processing(), paths.output(), &paths.work()].map(ToOwned::to_owned);
    let is_nfs = |path: &Path| rustix::fs::statfs(path).is_ok_and(|found| found.f_type == NFS);
    let closed = directories.iter().filter(|path| is_nfs(path)).filter_map(|path| {
        let mode = fs::metadata(path).ok()?.permissions().mode();
        closed(path, mode)
    });
    let closed: Vec<_> = closed.collect();
    (!closed.is_empty()).then(|| {
        format!(
            "; on NFS, others may not enter {}: where the export squashes root no worker can start, for the kubelet goes \
             there as root. Let them: chmod o+x, or export with no_root_squash",
            closed.join(", ")
        )
    })
}

/// The directory with its mode, where others may not enter it.
fn closed(path: &Path, mode: u32) -> Option<String> {
    (mode & 0o001 == 0).then(|| format!("{} (mode {:o})", path.display(), mode & 0o7777))
}

/// Waits as long as this pod's `SELinux` level is its own and the volumes carry it: the runtime labels a volume for the
/// pod that mounts it, and a worker of another level would take its files from this watcher.
pub(super) async fn one_level(client: &Client, identity: &Identity, reporter: &Reporter, paths: &Paths) {
    loop {
        let (queue, output) = (paths.queue().to_owned(), paths.output().to_owned());
        let looking = tokio::task::spawn_blocking(move || {
            let own = level(&fs::read_to_string(OWN_LABEL).ok()?)?;
            [queue, output]
                .iter()
                .any(|path| label(path).as_deref().and_then(level).as_ref() == Some(&own))
                .then_some(own)
        });
        let Ok(Some(own)) = patiently(looking, reporter).await else { return };
        // OpenShift gives each pod of a namespace the same one.
        if is_given(client, identity).await {
            return;
        }
        let message = format!(
            "the SELinux level of this pod, {own}, is its own, and the volumes carry it: each worker would take its files \
             from the watcher. Write spec.securityContext.seLinuxOptions.level: {own}, or for all queues the chart's \
             queueDefaults"
        );
        tracing::error!(reason = SE_LINUX_LEVEL, "{message}");
        reporter.update(|report| report.storage_unready(SE_LINUX_LEVEL, message));
        sleep(STORAGE_RETRY).await;
    }
}

/// Whether the pod's specification names a level. Where that can't be asked, nothing is held up.
async fn is_given(client: &Client, identity: &Identity) -> bool {
    let api = Api::<LabelledPod>::namespaced(client.clone(), &identity.namespace);
    let own = ListParams::default().fields(&format!("metadata.name={}", identity.pod));
    let Ok(found) = api.list(&own).await else { return true };
    found.items.iter().any(|pod| {
        let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let options = security.and_then(|security| security.se_linux_options.as_ref());
        options.and_then(|options| options.level.as_ref()).is_some_and(|level| !level.is_empty())
    })
}

fn label(path: &Path) -> Option<String> {
    let mut bytes = vec![0; LONGEST_LABEL];
    let length = rustix::fs::getxattr(path, FILE_LABEL, &mut bytes[..]).ok()?;
    bytes.truncate(length);
    String::from_utf8(bytes).ok()
}

/// The level of a label `user:role:type:level`, where it has categories: by these alone the runtime tells pods apart.
fn level(label: &str) -> Option<String> {
    let level = label.trim_end_matches(['\0', '\n']).splitn(4, ':').nth(3)?;
    level.contains(":c").then(|| level.to_owned())
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn a_level_tells_pods_apart_by_its_categories_alone() {
        let of = |label: &str| level(label);
        assert_eq!(of("system_u:system_r:container_t:s0:c12,c345\0"), Some("s0:c12,c345".to_owned()));
        assert_eq!(of("system_u:object_r:container_file_t:s0:c12,c345\n"), Some("s0:c12,c345".to_owned()));
        for other in ["system_u:object_r:nfs_t:s0", "unconfined", "docker-default (enforce)", ""] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_directory_that_others_may_not_enter_is_named_with_its_mode() {
        let path = Path::new("/q");
        assert_eq!(closed(path, 0o42_770), Some("/q (mode 2770)".to_owned()));
        assert_eq!(closed(path, 0o40_771), None);
        let here = tempdir().unwrap();
        let paths = Paths::new(here.path().join("queue"), here.path().join("output"));
        assert_eq!(closed_to_squashed_root(&paths), None, "no NFS");
    }
}
