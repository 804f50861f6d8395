// SPDX-License-Identifier: Apache-2.0
//! Copies the plan that a worker left into its conversion's status, once.

use std::path::{Path, PathBuf};

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::objects::{WatcherStatus, in_progress};
use super::state::ClusterExecutor;
use crate::cluster::api::{ConditionState, ConditionType, ConversionJob, condition};
use crate::cluster::client::told;
use crate::cluster::names;
use crate::conversion::contract::{MAX_PLAN_BYTES, PLAN_FILE};
use crate::conversion::plan::{self, Plan};
use crate::conversion::{Attempt, AttemptKind, ConversionId, chain};
use crate::files::store::{self, StoreError};

/// A conversion whose plan is not known yet.
struct Open {
    id: ConversionId,
    attempt: Attempt,
    uid: Option<String>,
    work: PathBuf,
    /// Whether its worker has run and ended.
    is_over: bool,
}

impl ClusterExecutor {
    /// Looks for the plans of all attempts that plan. A complaint ends the attempt: the controller reads it.
    pub(super) async fn copy_plans(&mut self) {
        let open = self.open_plans();
        self.plans.retain(|id, _| open.iter().any(|open| open.id == *id));
        for open in open {
            match self.plans.remove(&open.id) {
                Some(running) if !running.is_finished() => {
                    self.plans.insert(open.id, running);
                    continue;
                }
                Some(ended) => {
                    if let Some(why) = ended.await.unwrap_or_else(|error| Some(error.to_string())) {
                        self.complain(&open, &why).await;
                        continue;
                    }
                }
                None => {}
            }
            let (id, api) = (open.id.clone(), self.api());
            self.plans.insert(id, tokio::spawn(copy(open, api)));
        }
    }

    fn open_plans(&mut self) -> Vec<Open> {
        let ids: Vec<ConversionId> = self.known.keys().cloned().collect();
        let open = ids.into_iter().filter_map(|id| {
            let object = self.refresh(&id)?;
            let status = object.status.as_ref().filter(|status| status.plan.is_none())?;
            let attempt = status.state.open_attempt().filter(|open| open.kind == Some(AttemptKind::Plan))?;
            let is_over = attempt.pod_name.is_some() && !self.has_workers(&id);
            let work = self.paths.work_dir(&id, attempt.number);
            Some(Open { attempt: attempt.number, uid: object.uid(), work, is_over, id })
        });
        open.collect()
    }

    async fn complain(&mut self, open: &Open, why: &str) {
        let Some(status) = self.refresh(&open.id).and_then(|object| object.status.clone()) else { return };
        if condition(&status.conditions, ConditionType::Progressing).is_some_and(|c| c.status == "False") {
            return;
        }
        let message = format!("attempt {} left no plan that can be used: {why}", open.attempt);
        let unusable = ConditionState::new("False", "NoPlan", message.clone());
        let conditions = vec![in_progress(message), (ConditionType::Progressing, unusable)];
        let status = WatcherStatus { staged: status.state.staged, conditions, ..WatcherStatus::default() };
        match self.apply_status("refuse the plan of", &open.id, status).await {
            Ok(()) => tracing::warn!(conversion = %open.id, why, "the plan can't be used"),
            Err(error) => tracing::warn!(conversion = %open.id, error = %chain(&error), "cannot refuse a plan"),
        }
    }
}

/// Reads a plan, and writes it into the status under a field manager of its own: nothing else that the watcher applies
/// takes it away again.
async fn copy(open: Open, api: Api<ConversionJob>) -> Option<String> {
    let Open { id, uid, work, is_over, .. } = open;
    let read = tokio::task::spawn_blocking(move || read(&work)).await;
    let plan = match read.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(plan) => plan,
        // It may be written yet.
        Err(why) => return is_over.then_some(why),
    };
    let patch = json!({
        "apiVersion": ConversionJob::api_version(&()),
        "kind": ConversionJob::kind(&()),
        "metadata": {"name": id.as_str(), "uid": uid},
        "status": {"plan": plan},
    });
    let params = PatchParams::apply(names::MANAGER_PLAN).force();
    match api.patch_status(id.as_str(), &params, &Patch::Apply(patch)).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => Some(status.message.clone()),
        // It is tried again.
        Err(error) => {
            tracing::debug!(conversion = %id, error = told(&error), "cannot write a plan");
            None
        }
    }
}

/// Reads the plan in a work directory, which a hostile worker may have written.
fn read(work: &Path) -> Result<Plan, String> {
    let found = store::open_dir(work).and_then(|dir| store::read_untrusted(&dir, work, PLAN_FILE, MAX_PLAN_BYTES));
    let bytes = found.map_err(|error: StoreError| chain(&error))?;
    plan::read(&bytes).map_err(|error| format!("{PLAN_FILE}: {}", chain(&error)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_plan_is_read_and_what_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(PLAN_FILE);
        assert!(read(dir.path()).unwrap_err().contains(PLAN_FILE), "missing");
        let plan = json!({
            "contractVersion": 1,
            "disks": [{"file": "a.qcow2", "member": "a.vmdk", "virtualSizeBytes": 1 << 20}],
            "machines": [{"name": "a"}],
        });
        fs::write(&file, plan.to_string()).unwrap();
        assert_eq!(read(dir.path()).unwrap().disks[0].virtual_size_bytes, 1 << 20);
        fs::write(&file, "{").unwrap();
        assert!(read(dir.path()).is_err(), "no JSON");
        fs::write(&file, " ".repeat(MAX_PLAN_BYTES + 1)).unwrap();
        assert!(read(dir.path()).is_err(), "too long");
        fs::remove_file(&file).unwrap();
        symlink("/etc/passwd", &file).unwrap();
        assert!(read(dir.path()).is_err(), "a link");
    }
}
