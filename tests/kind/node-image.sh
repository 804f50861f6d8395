#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes an image of a node for kind, without a registry and without an engine, and prints the path of its tar: Debian's
# packages, kind's own files from its module, Kubernetes as the suite builds it, and the control plane's images.
#
#   node-image.sh
#
# Other than in kindest/node: Debian 12 (its systemd takes cgroup v1), Debian's containerd and runc; no DNS; and a unit in
# place of kindnet, which gives pods addresses of their node and a way out, not to pods of other nodes.
. "$(dirname "$0")/../cluster/environment.sh"
kind=$("$here/build.sh" kind)
kubernetes=$("$here/build.sh" kubernetes)
kubeadm=$("$here/build.sh" kubeadm)

key=$(cat "$0" "$here/archive.sh" "$here/pause.c" "$here"/tools/{kind,kubernetes,kubeadm}/go.mod | sha256sum | cut -c1-16)
image=$cache/kind-node-$key.tar
[ ! -e "$image" ] || { echo "$image"; exit; }
exec 8>"$cache/kind-node.lock"
flock 8
[ ! -e "$image" ] || { echo "$image"; exit; }
say "making the node's image (once; kept as $image)"
# One place under one lock: what a run leaves that was killed is removed by the next.
work=$cache/kind-node.new daemon=""
clean() {
  [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
  unmount "$work"
  rm -rf "$work"
}
clean
trap clean EXIT
root=$work/root
mkdir -p "$root"
kind_files=$kind/files

packages=systemd,containerd,runc,containernetworking-plugins,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,libseccomp2,pigz,e2fsprogs,ca-certificates,curl,jq,procps
debootstrap --variant=minbase --include="$packages" bookworm "$root" >"$work/debootstrap.log" 2>&1 ||
  die "debootstrap failed: $(tail -n 1 "$work/debootstrap.log")"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}

cp -r --no-preserve=mode,ownership "$kind_files/." "$root/"
chmod 0755 "$root"/usr/local/bin/* "$root"/kind "$root"/kind/bin "$root"/kind/bin/*
find "$root"/lib/systemd/system/sysinit.target.wants -name systemd-tmpfiles-setup.service -delete
rm -f "$root"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* "$root"/etc/systemd/system/*.wants/* \
  "$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}*
echo "ReadKMsg=no" >>"$root/etc/systemd/journald.conf"
ln -sf /usr/lib/systemd/systemd "$root/sbin/init"
for program in containerd ctr containerd-shim-runc-v2; do ln -s "/usr/bin/$program" "$root/usr/local/bin/$program"; done
ctr oci spec | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
  >"$root/etc/containerd/cri-base.json"
# Where root lacks CAP_SYS_RESOURCE, sandboxes die without it.
sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$root/etc/containerd/config.toml"
sed -i 's/^\(KUBELET_EXTRA_ARGS=.*\)/\1 --fail-cgroupv1=false/' "$root/etc/default/kubelet"
mkdir -p "$root"/opt/cni/bin "$root/etc/kubernetes/manifests" "$root/kind/manifests"
for plugin in host-local loopback ptp portmap; do ln "$root/usr/lib/cni/$plugin" "$root/opt/cni/bin/"; done
install -m 0755 "$kubeadm/kubeadm" "$kubernetes/kubelet" "$kubernetes/kubectl" "$root/usr/bin/"
echo "$kubernetes_version" >"$root/kind/version"

cat >"$root/usr/local/bin/pod-network" <<'C'
#!/bin/bash
# Gives this node's pods the addresses that the control plane has set aside for it.
set -euo pipefail
until range=$(kubectl --kubeconfig /etc/kubernetes/kubelet.conf get node "$(hostname)" -o jsonpath='{.spec.podCIDR}' 2>/dev/null) && [ -n "$range" ]; do
  sleep 1
done
mkdir -p /etc/cni/net.d
cat >/etc/cni/net.d/.new <<L
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "$range"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
L
mv /etc/cni/net.d/.new /etc/cni/net.d/10-pods.conflist
C
chmod 0755 "$root/usr/local/bin/pod-network"
cat >"$root/etc/systemd/system/pod-network.service" <<'C'
[Unit]
Description=Addresses of this node's pods
After=containerd.service
[Service]
Type=oneshot
ExecStart=/usr/local/bin/pod-network
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
C
chroot "$root" systemctl --quiet enable kubelet containerd undo-mount-hacks pod-network 2>/dev/null
chroot "$root" systemctl --quiet mask systemd-binfmt 2>/dev/null
# kind applies both.
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: network-is-a-unit-of-the-node, namespace: kube-system}\n' >"$root/kind/manifests/default-cni.yaml"
printf 'apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}\nprovisioner: kubernetes.io/no-provisioner\n' >"$root/kind/manifests/default-storage.yaml"

# kube-proxy calls iptables, which loads its matches at run time.
proxy=$work/proxy
for program in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
  mkdir -p "$proxy/usr/sbin"
  ln -s xtables-nft-multi "$proxy/usr/sbin/$program"
done
install -D -m 0755 "$kubeadm/kube-proxy" "$proxy/usr/local/bin/kube-proxy"
cp "$root/usr/sbin/xtables-nft-multi" "$proxy/usr/sbin/"
mkdir -p "$proxy/usr/lib/x86_64-linux-gnu"
cp -r "$root"/usr/lib/*-linux-gnu/xtables "$proxy"/usr/lib/*-linux-gnu/
chroot "$root" sh -c 'ldd /usr/sbin/xtables-nft-multi /usr/lib/*-linux-gnu/xtables/*.so' | grep -o '/[^ :]*\.so[.0-9]*' | sort -u |
  while read -r library; do
    case $library in */xtables/*) continue ;; esac
    install -D -m 0755 "$root$library" "$proxy$library"
  done

mkdir "$work/images"
cc -static -Os -o "$work/pause" "$here/pause.c"
archive() { "$here/archive.sh" "$work/images/$1.tar" "registry.k8s.io/$2" "$3" "$4"; }
archive pause pause:3.10 "$work/pause" pause
for program in kube-apiserver kube-controller-manager kube-scheduler; do
  archive "$program" "$program:$kubernetes_version" "$kubernetes/$program" "usr/local/bin/$program"
done
etcd=$("$kubeadm/kubeadm" config images list --kubernetes-version "$kubernetes_version" 2>/dev/null | sed -n 's|registry.k8s.io/\(etcd:.*\)|\1|p')
archive etcd "$etcd" "$kubernetes/etcd" usr/local/bin/etcd
"$here/archive.sh" "$work/images/proxy.tar" "registry.k8s.io/kube-proxy:$kubernetes_version" "$proxy"

# The images lie in the node's containerd before it runs: this machine's, of the same release, writes there.
cat >"$work/containerd.toml" <<C
version = 2
root = "$root/var/lib/containerd"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "$work/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$work/opt"
C
containerd -c "$work/containerd.toml" >"$work/containerd.log" 2>&1 8>&- &
daemon=$!
until_ok 30 ctr -a "$work/containerd.sock" version || die "containerd does not answer: $(tail -n 1 "$work/containerd.log")"
for archive in "$work"/images/*.tar; do
  ctr -a "$work/containerd.sock" -n k8s.io images import --no-unpack "$archive" >/dev/null
done
kill "$daemon"
wait "$daemon" || true
daemon=""
tar -C "$root" --numeric-owner --one-file-system -cf "$work/image.tar" .
mv "$work/image.tar" "$image"
echo "$image"
