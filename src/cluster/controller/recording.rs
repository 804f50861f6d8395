// SPDX-License-Identifier: Apache-2.0
//! Writes of a conversion's status, and the removal of its Jobs.

use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};

use super::context::Context;
use super::error::Error;
use super::status;
use crate::cluster::api::{ConversionJob, ConversionJobStatus};
use crate::cluster::names;
use crate::cluster::seen::Job;

/// Writes what changed of a status; `None` if nothing did.
pub(super) async fn write(
    conversion: &ConversionJob,
    wanted: &ConversionJobStatus,
    context: &Context,
) -> Result<Option<ConversionJob>, Error> {
    let Some(patch) = status::patch(conversion, wanted) else { return Ok(None) };
    let api = context.api::<ConversionJob>(&conversion.namespace().unwrap_or_default());
    let params = PatchParams::apply(names::MANAGER_CONTROLLER).force();
    let written = api.patch_status(&conversion.name_any(), &params, &Patch::Apply(patch)).await;
    let written = written.map_err(Error::api("write a ConversionJob's status"))?;
    context.writes.wrote(&written);
    Ok(Some(written))
}

/// Removes a Job with its pods, unless it is being removed already.
pub(super) async fn remove_job(job: &Job, context: &Context) -> Result<(), Error> {
    if job.metadata.deletion_timestamp.is_some() || context.writes.is_removed(job) {
        return Ok(());
    }
    let api = context.api::<Job>(&job.namespace().unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: job.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::background()
    };
    match api.delete(&job.name_any(), &params).await.map_err(Error::api("delete a Job")) {
        Err(error) if error.is_not_found() || error.is_conflict() => {}
        other => drop(other?),
    }
    context.writes.removed(job);
    Ok(())
}
