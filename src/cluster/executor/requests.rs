// SPDX-License-Identifier: Apache-2.0
//! Objects without a claim: made by hand, or left when their claims were lost. Each requests the conversion of a file
//! in the queue.

use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use crate::cluster::api::{ConditionState, ConditionType, ConversionJob, HyperConversion};
use crate::conversion::lifecycle::{Observation, RetryPolicy, advance};
use crate::conversion::{Class, ConversionId, Failure, Reason};
use crate::executor::{Error, Request, Update};

use super::objects::WatcherStatus;
use super::state::{ClusterExecutor, Known};

impl ClusterExecutor {
    /// Whether this object, which has no claim here, waits for one. An object of an earlier queue goes with that
    /// queue.
    fn is_request(&self, object: &ConversionJob) -> bool {
        let kind = HyperConversion::kind(&());
        let is_earlier = object.owner_references().iter().any(|o| o.kind == kind && o.uid != self.queue_uid());
        let has_ended = object.status.as_ref().is_some_and(|status| status.state.is_terminal());
        !is_earlier && !has_ended && object.metadata.deletion_timestamp.is_none()
    }

    /// Receives the change of an object without a claim.
    pub(super) fn receive_request(&mut self, id: &ConversionId) {
        let reference = ObjectRef::new(id.as_str()).within(&self.queue.namespace().unwrap_or_default());
        let is_done = |object: &ConversionJob| object.uid().is_some_and(|uid| self.done.contains(&uid));
        match self.conversions.get(&reference).filter(|object| self.is_request(object) && !is_done(object)) {
            Some(object) => {
                self.asked.insert(id.clone(), object);
                self.publish(id);
            }
            None => drop(self.asked.remove(id)),
        }
    }

    /// An update that only makes the engine ask for requests.
    pub(super) fn request_update(&self, id: &ConversionId) -> Option<Update> {
        let object = self.asked.get(id)?;
        let status = object.status.clone().unwrap_or_default().state;
        let uid = object.uid();
        Some(Update { id: id.clone(), status: Some(status), is_recorded: false, uid, progress: None, may_run: false })
    }

    /// The objects that wait for their claim.
    pub(super) fn all_requests(&self) -> Vec<Request> {
        let overrides = |object: &Arc<ConversionJob>| object.spec.conversion.clone();
        let request = |(id, object): (&ConversionId, &Arc<ConversionJob>)| Request {
            id: id.clone(),
            path: object.spec.source.path.clone(),
            companions: object.spec.source.companions.clone(),
            emit: overrides(object).names_platforms().then(|| overrides(object).emit(&self.queue.spec.conversion)),
            unfit: unfit(object),
        };
        self.asked.iter().map(request).collect()
    }

    /// Ends a request without a claim.
    pub(super) async fn decline_request(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        let Some(object) = self.asked.get(id).cloned() else { return Ok(()) };
        let state = object.status.clone().unwrap_or_default().state;
        let ended = ConditionState::new("False", failure.reason.to_string(), failure.advice());
        let observation = match failure.class {
            Class::Cancelled => Observation::Cancelled(failure),
            _ => Observation::Rejected(failure),
        };
        let (state, _) = advance(state, observation, &RetryPolicy::default(), Timestamp::now());
        let conditions = vec![(ConditionType::Succeeded, ended)];
        let status = WatcherStatus { staged: state.staged, conditions, end: Some(&state), ..WatcherStatus::default() };
        self.known.insert(id.clone(), Known { uid: object.uid(), newest: Some(object), is_gone: false, trace: None });
        match self.apply_status("decline", id, status).await {
            Ok(()) => {
                self.drop_known(id);
                Ok(())
            }
            Err(error) => {
                self.known.remove(id);
                Err(error)
            }
        }
    }
}

/// Why an object can't be claimed: it has a field that only its watcher may set.
fn unfit(object: &ConversionJob) -> Option<Failure> {
    let message = "spec.duplicateOf is for conversions that the queue finds to be repeated: make the object without it";
    (!object.spec.duplicate_of.is_empty()).then(|| Failure::new(Reason::Cancelled, message))
}
