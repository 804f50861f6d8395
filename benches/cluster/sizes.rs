// SPDX-License-Identifier: Apache-2.0
//! What is shipped: the binaries, and the image.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::harness::{Cluster, Need, run};
use crate::line;

#[expect(clippy::cast_precision_loss, reason = "megabytes")]
pub(crate) fn measure() -> Result<()> {
    let operator = Path::new(env!("CARGO_BIN_EXE_hyper2kvm-operator"));
    let mut all = 0.0;
    for name in ["hyper2kvm", "hyper2kvmctl", "hyper2kvm-operator"] {
        let size = fs::metadata(operator.with_file_name(name))?.len() as f64 / 1e6;
        line(&format!("release binary {name}"), size, 20.0, "MB");
        all += size;
    }
    println!("{:64} {:>9.2} MB", "all three", all);
    let cluster = Cluster::shared(Need::Node).context("no node on this machine")?;
    let image = cluster.image().context("no image")?;
    let socket = cluster.state.as_ref().context("another's node")?.join("run/containerd.sock");
    let place = tempfile::tempdir()?;
    let archive = place.path().join("image.tar");
    run(Command::new("ctr").arg("-a").arg(socket).args(["-n", "k8s.io", "images", "export"]).arg(&archive).arg(image));
    let unpacked = fs::metadata(&archive)?.len() as f64 / 1e6;
    run(Command::new("gzip").arg("-6").arg(&archive));
    let packed = fs::metadata(place.path().join("image.tar.gz"))?.len() as f64 / 1e6;
    line("image as a registry holds it (with this machine's C library)", packed, 40.0, "MB");
    println!("{:64} {:>9.2} MB", "image as a node unpacks it", unpacked);
    Ok(())
}
