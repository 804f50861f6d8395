// SPDX-License-Identifier: Apache-2.0
//! Which queue a process of a watcher's pod works for, and where that queue's directories are.

use std::path::PathBuf;

/// Settings of the watcher and its sidecar.
#[derive(Clone, Debug)]
pub struct Identity {
    pub namespace: String,
    pub queue: String,
    /// UID of the `HyperConversion`: one made again under the same name is another queue.
    pub queue_uid: String,
    pub pod: String,
    pub queue_dir: PathBuf,
    pub output_dir: PathBuf,
    /// Volume that is shared with the sidecar.
    pub run_dir: PathBuf,
    /// Where the Secrets of its notifications are mounted.
    pub secrets_dir: PathBuf,
}
