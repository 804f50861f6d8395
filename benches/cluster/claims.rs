// SPDX-License-Identifier: Apache-2.0
//! An appliance onto claims of its own: bytes written, time until its machine is there, and writes to the API server.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hyper2kvm::cluster::api::ConversionJob;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::Api;
use serde_json::json;

use crate::audit::Request;
use crate::harness::{Cluster, Need, binaries, run};
use crate::node::{self, Operator};
use crate::volumes::{Device, Volumes};
use crate::{line, ova};

/// Size of the disk of data, in MiB. The other disk is a quarter larger than its own data.
const SMALL: usize = 64;

pub(crate) async fn measure(mib: usize) -> Result<()> {
    let cluster = Cluster::shared(Need::OwnNode).context("no node on this machine")?;
    Cluster::with_kubevirt().context("no definition of machines")?;
    let state = cluster.state.as_ref().context("another's audit log")?;
    let operator = Operator::install(cluster, "bench-claims", "target.enabled=true,kubevirt.enabled=true")?;
    let namespace = &operator.1;
    let sizes = [mib + mib / 4, SMALL];
    let volumes = Volumes::new(namespace, "Block", &sizes.map(|size| (size, size))).context("no loop devices")?;
    let spec = json!({
        "target": {"storageClassName": volumes.class, "volumeMode": "Block"},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}]},
    });
    let volume = node::queue(namespace, &spec)?;
    // On the queue's own volume, so that it gets there by a rename.
    let place = tempfile::tempdir_in(&volume)?;
    let appliance = appliance(place.path(), mib, sizes)?;
    let convert = converted(&appliance, &place.path().join("raw"))?;

    let before = volumes.devices.values().map(written).sum::<Result<u64>>()?;
    let dropped = jiff::Timestamp::now();
    fs::rename(&appliance, volume.join("queue/web01.ova"))?;
    let client = cluster.client().await;
    let over = node::all_over(&Api::<ConversionJob>::namespaced(client.clone(), &namespace.name), 1).await?;
    run(&mut Command::new("sync"));
    let after = volumes.devices.values().map(written).sum::<Result<u64>>()?;
    holds(&over[0], &volumes, Api::namespaced(client, &namespace.name), &place.path().join("raw")).await?;

    let writes = node::writes_of(state, &namespace.name);
    let is_made = |r: &&Request| r.verb == "create" && r.resource == "virtualmachines.kubevirt.io";
    let made = writes.iter().rfind(is_made).context("no machine in the audit log")?;
    let took = made.answered.duration_since(dropped).as_secs_f64();
    println!("{:64} {convert:>9.2} s", format!("`hyper2kvm convert` to raw, an OVA of {mib} MiB of data"));
    line("appliance dropped → its machine created", took, 1.25f64.mul_add(convert, 10.0).round(), "s");
    let devices = (sizes[0] + sizes[1]) as u64 * (1 << 20);
    #[expect(clippy::cast_precision_loss, reason = "gigabytes")]
    let share = (after - before) as f64 / devices as f64;
    line("bytes written to volumes, of their size (data and zeros)", share, 1.02, "");
    node::tell_writes(&writes, "an appliance of two disks on claims", 1, 16.0);
    Ok(())
}

/// An OVA in `place`: a disk of which four fifths are data that can't be packed, and a small one that is all data.
fn appliance(place: &Path, mib: usize, sizes: [usize; 2]) -> Result<PathBuf> {
    let disks = ["web01-disk1.vmdk", "web01-disk2.vmdk"];
    let capacities = sizes.map(|size| (size as u64) << 20);
    fs::write(place.join("web01.ovf"), ova::ovf(&[(disks[0], capacities[0]), (disks[1], capacities[1])]))?;
    for ((name, data), capacity) in disks.iter().zip([mib, SMALL]).zip(capacities) {
        let raw = place.join("disk.raw");
        let mut random = File::open("/dev/urandom")?;
        let mut file = File::create(&raw)?;
        std::io::copy(&mut std::io::Read::take(&mut random, (data as u64) << 20), &mut file)?;
        file.set_len(capacity)?;
        file.flush()?;
        let pack = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", "disk.raw", name];
        run(Command::new("qemu-img").args(pack).current_dir(place));
        fs::remove_file(raw)?;
    }
    let pack = ["--format=ustar", "--remove-files", "-cf", "web01.ova", "web01.ovf"];
    run(Command::new("tar").args(pack).args(disks).current_dir(place));
    let appliance = place.join("web01.ova");
    // The watcher moves it, as whoever brings it allows.
    std::os::unix::fs::chown(&appliance, Some(node::IMAGE_USER), Some(0))?;
    Ok(appliance)
}

/// Seconds that the command line takes for the same, into files.
fn converted(appliance: &Path, output: &Path) -> Result<f64> {
    let since = Instant::now();
    let mut convert = Command::new(binaries().join("hyper2kvm"));
    run(convert.args(["convert", "--format", "raw", "--output-dir"]).arg(output).arg(appliance));
    ensure!(output.is_dir(), "no directory {}", output.display());
    Ok(since.elapsed().as_secs_f64())
}

/// Bytes that were written to a loop device so far, with those that were zeroed by a range.
fn written(device: &Device) -> Result<u64> {
    let name = device.path.file_name().context("a device's name")?;
    let stat = fs::read_to_string(Path::new("/sys/block").join(name).join("stat"))?;
    // Documentation/block/stat.rst: sectors of 512 bytes, whatever the device's are.
    let sectors: u64 = stat.split_whitespace().nth(6).context("sectors written")?.parse()?;
    Ok(sectors * 512)
}

/// Whether the claims hold what the command line wrote into files.
async fn holds(
    conversion: &ConversionJob,
    volumes: &Volumes,
    claims: Api<PersistentVolumeClaim>,
    raw: &Path,
) -> Result<()> {
    let status = conversion.status.as_ref().context("a status")?;
    for (n, volume) in status.volumes.iter().enumerate() {
        let spec = claims.get(&volume.claim_name).await?.spec.context("a claim's spec")?;
        let bound = spec.volume_name.context("a volume")?;
        let disk = raw.join(format!("web01-disk{n}.raw"));
        let size = fs::metadata(&disk)?.size().to_string();
        let device = &volumes.devices.get(&bound).context("a volume of ours")?.path;
        run(Command::new("cmp").args(["--bytes", &size]).arg(&disk).arg(device));
    }
    Ok(())
}
