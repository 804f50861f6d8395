// SPDX-License-Identifier: Apache-2.0
//! The cluster that commands talk to, and the meaning of its refusals.

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion};
use k8s_openapi::api::core::v1::Pod;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};

use super::Refusal;

/// One namespace of one cluster.
pub(super) struct Access {
    client: Client,
    pub namespace: String,
}

impl Access {
    /// By the kubeconfig, as kubectl would; in a pod by its service account.
    pub(super) async fn open(context: Option<String>, namespace: Option<String>) -> Result<Self, Refusal> {
        let config = match context {
            None => Config::infer().await.map_err(|error| {
                format!("no cluster to talk to: {error}; set KUBECONFIG, or try `kubectl config get-contexts`")
            })?,
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
                Config::from_kubeconfig(&options).await.map_err(|error| {
                    format!("cannot use context {context}: {error}; `kubectl config get-contexts` lists them")
                })?
            }
        };
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self { client: Client::try_from(config)?, namespace })
    }

    pub(super) fn queues(&self) -> Api<HyperConversion> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) fn conversions(&self) -> Api<ConversionJob> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// An error about a queue, for a person.
    pub(super) fn about_queue(&self, queue: &str, error: kube::Error) -> Refusal {
        let namespace = &self.namespace;
        match error {
            kube::Error::Api(status) if status.code == 404 => format!(
                "no HyperConversion {queue} in namespace {namespace}; `kubectl hyper2kvm -n {namespace} status` lists \
                 them"
            )
            .into(),
            error => told(error),
        }
    }

    /// An error about a conversion, for a person.
    pub(super) fn about_conversion(&self, conversion: &str, error: kube::Error) -> Refusal {
        let namespace = &self.namespace;
        match error {
            kube::Error::Api(status) if status.code == 404 => format!(
                "no ConversionJob {conversion} in namespace {namespace}; `kubectl -n {namespace} get conversionjobs` \
                 lists them"
            )
            .into(),
            error => told(error),
        }
    }
}

/// The API server's own message, without what surrounds it.
pub(super) fn told(error: kube::Error) -> Refusal {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone().into(),
        error => error.into(),
    }
}
