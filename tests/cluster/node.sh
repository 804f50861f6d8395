# SPDX-License-Identifier: Apache-2.0
# Sourced by up.sh: containerd and a kubelet, in the cluster's network, with root, state, socket, mounts and control
# group of their own.

# A kubelet ends whatever it finds below its own control group and doesn't know: two of them must not share one.
group=hyper2kvm-$k
echo "$group" >"$S/cgroup"
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

mkdir -p "$S"/{run,containerd,cni,kubelet,pod-logs,volumes}
cat >"$S/containerd.toml" <<C
version = 2
root = "$S/containerd/root"
state = "$S/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "$containerd_socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "$S/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # Where root lacks CAP_SYS_RESOURCE, sandboxes die without it: "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  # Else a device is root's, and no container without root opens it.
  device_ownership_from_security_context = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$S/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
C
cat >"$S/cni/10-bridge.conflist" <<C
{"cniVersion": "1.0.0", "name": "$group", "plugins": [{
  "type": "bridge", "bridge": "h2k0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "$S/cni/addresses", "ranges": [[{"subnet": "10.97.$k.0/24"}]],
           "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
# Containers are restarted within a second, so that tests may kill them often.
cat >"$S/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$group
containerRuntimeEndpoint: unix://$containerd_socket
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $S/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $S/pki/node.crt
tlsPrivateKeyFile: $S/pki/node.key
podLogsDir: $S/pod-logs
volumePluginDir: $S/kubelet/volume-plugins
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
cat >"$S/containerd.sh" <<C
echo \$\$ >"$daemons/cgroup.procs"
exec containerd -c "$S/containerd.toml"
C
start containerd bash "$S/containerd.sh"
until_ok 120 ctr -a "$containerd_socket" version || die "containerd does not answer: see $S/logs/containerd.log"
if ! ctr -a "$containerd_socket" -n k8s.io images ls -q | grep -qx localhost/pause:1; then
  cc -static -Os -o "$S/pause" "$here/pause.c"
  "$here/archive.sh" "$S/pause.tar" localhost/pause:1 "$S/pause"
  ctr -a "$containerd_socket" -n k8s.io images import "$S/pause.tar" >/dev/null
fi
cat >"$S/kubelet.sh" <<C
# Written by up.sh: the kubelet as it is started, and started again by tests that stop it.
exec "$bin/kubelet" --config="$S/kubelet.yaml" --kubeconfig="$S/node.kubeconfig" --hostname-override=node1 \\
  --node-ip=$advertise --root-dir="$S/kubelet" --cert-dir="$S/pki/kubelet" --v=2
C
start kubelet bash "$S/kubelet.sh"
until_ok 180 "$bin/kubectl" --kubeconfig "$S/admin.kubeconfig" wait --for=condition=Ready node/node1 --timeout=1s ||
  die "the node does not get ready: see $S/logs/kubelet.log"
