# SPDX-License-Identifier: Apache-2.0
# Sourced by up.sh and second.sh: containerd and a kubelet, in the cluster's network, with root, state, socket, mounts
# and control group of their own.
#
# suffix   empty for node1, or the number of another
# N        its directory
# address  its address, which is also its pods' gateway
# first    first number of the 124 addresses of its pods
# taint    what only pods that tolerate it are started in spite of; may be empty
name=node${suffix:-1} socket=$N/run/containerd.sock

# A kubelet ends whatever it finds below its own control group and doesn't know: two of them must not share one.
group=hyper2kvm-$k${suffix:+-$suffix}
echo "$group" >"$S/cgroup$suffix"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mkdir -p "/sys/fs/cgroup/$group"
  for controller in cpu cpuset memory pids io; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
    echo "+$controller" >"/sys/fs/cgroup/$group/cgroup.subtree_control" 2>/dev/null || true
  done
  daemons=/sys/fs/cgroup/$group/daemons
else
  for hierarchy in /sys/fs/cgroup/*/; do
    mkdir -p "$hierarchy$group" 2>/dev/null || true
  done
  # A group without processors and memory nodes takes no process.
  for file in cpuset.cpus cpuset.mems; do
    [ ! -e "/sys/fs/cgroup/cpuset/$file" ] || cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/$group/$file"
  done
  daemons=/sys/fs/cgroup/pids/$group/daemons
fi
mkdir -p "$daemons"

mkdir -p "$N"/{run,containerd,cni,kubelet,pod-logs} "$S/volumes"
cat >"$N/containerd.toml" <<C
version = 2
root = "$N/containerd/root"
state = "$N/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "$socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "$N/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # Where root lacks CAP_SYS_RESOURCE, sandboxes die without it: "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  # Else a device is root's, and no container without root opens it.
  device_ownership_from_security_context = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$N/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
C
cat >"$N/cni/10-bridge.conflist" <<C
{"cniVersion": "1.0.0", "name": "$group", "plugins": [{
  "type": "bridge", "bridge": "h2k0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "$N/cni/addresses", "ranges": [[{"subnet": "10.97.$k.0/24", "gateway": "$address",
             "rangeStart": "10.97.$k.$first", "rangeEnd": "10.97.$k.$((first + 123))"}]],
           "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
# Containers are restarted within a second, so that tests may kill them often.
cat >"$N/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$group
containerRuntimeEndpoint: unix://$socket
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $S/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $S/pki/node$suffix.crt
tlsPrivateKeyFile: $S/pki/node$suffix.key
podLogsDir: $N/pod-logs
volumePluginDir: $N/kubelet/volume-plugins
failSwapOn: false
# The disk is this machine's: how full it is says nothing about images, and the pause image would go first.
imageGCHighThresholdPercent: 100
evictionHard: {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"}
resolvConf: ""
clusterDNS: []
nodeStatusUpdateFrequency: 5s
featureGates: {KubeletCrashLoopBackOffMax: true}
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
C

# Shims leave their containerd's process tree; they stay in its control group, where down.sh finds them.
cat >"$S/containerd$suffix.sh" <<C
echo \$\$ >"$daemons/cgroup.procs"
exec containerd -c "$N/containerd.toml"
C
start "containerd$suffix" bash "$S/containerd$suffix.sh"
until_ok 120 ctr -a "$socket" version || die "containerd does not answer: see $S/logs/containerd$suffix.log"
if ! ctr -a "$socket" -n k8s.io images ls -q | grep -qx localhost/pause:1; then
  cc -static -Os -o "$S/pause" "$here/pause.c"
  "$here/archive.sh" "$S/pause.tar" localhost/pause:1 "$S/pause"
  ctr -a "$socket" -n k8s.io images import "$S/pause.tar" >/dev/null
fi
cat >"$S/kubelet$suffix.sh" <<C
# Written by up.sh: the kubelet as it is started, and started again by tests that stop it.
exec "$bin/kubelet" --config="$N/kubelet.yaml" --kubeconfig="$S/node$suffix.kubeconfig" --hostname-override=$name \\
  --node-ip=$address --root-dir="$N/kubelet" --cert-dir="$S/pki/kubelet$suffix" --v=2 ${taint:+--register-with-taints=$taint}
C
start "kubelet$suffix" bash "$S/kubelet$suffix.sh"
until_ok 180 "$bin/kubectl" --kubeconfig "$S/admin.kubeconfig" wait --for=condition=Ready "node/$name" --timeout=1s ||
  die "the node does not get ready: see $S/logs/kubelet$suffix.log"
