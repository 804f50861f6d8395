#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A second node for the cluster of up.sh, for tests that ask for it. Safe to repeat.
#
#   second.sh up      makes it; only pods that tolerate the taint hyper2kvm.io/second=yes:NoSchedule come to it
#   second.sh lose    ends it as a power cut would
#   second.sh cut     leaves it without network: its pods go on, and nobody hears of them
#   second.sh back    it is back, after either
#   second.sh down    removes it
#
# Its bridge and the first node's are one network, of which each gives its pods one half; it is the gateway of its own:
#
#   namespace h2kK, bridge h2k0: 10.97.K.1 ──veth── namespace h2kK-2, bridge h2k0: 10.97.K.128
. "$(dirname "$0")/environment.sh"
. "$here/identity.sh"
alone
[ -s "$S/cgroup" ] || die "no node of a cluster in $S"
first_network=$(cat "$S/network")
network=$S/network2
k=${first_network#h2k}
bin=$(cat "$S/bin")
suffix=2 N=$S/node2 address=10.97.$k.128 first=129 taint=hyper2kvm.io/second=yes:NoSchedule
socket=$N/run/containerd.sock

of_first() { nsenter --net="/run/netns/$first_network" "$@"; }
kubectl() { "$bin/kubectl" --kubeconfig "$S/admin.kubeconfig" "$@"; }

remove_network() {
  of_first ip link del node2 2>/dev/null || true
  close_network "$network"
}

open_network() {
  [ ! -e "$network" ] || return 0
  echo "$first_network-2" >"$network.new"
  close_network "$network.new"
  echo "$first_network-2" >"$network.new"
  of_first ip link del node2 2>/dev/null || true
  ip netns add "$first_network-2"
  of_first bash -e <<N
    ip link add node2 type veth peer name eth0 netns "$first_network-2"
    ip link set node2 master h2k0 up
N
  nsenter --net="/run/netns/$first_network-2" bash -e <<N
    ip link set lo up
    ip link add h2k0 address 02:00:00:00:00:02 type bridge
    ip link set eth0 master h2k0 up
    ip addr add $address/24 dev h2k0
    ip link set h2k0 up
    ip route add default via 10.97.$k.1
    echo 1 >/proc/sys/net/ipv4/ip_forward
N
  mv "$network.new" "$network"
}

# What the first node has, the second gets: there is no registry.
copy_images() {
  local names missing
  names=$(ctr -a "$containerd_socket" -n k8s.io images ls -q | grep '^localhost/' | sort)
  missing=$(comm -23 <(echo "$names") <(ctr -a "$socket" -n k8s.io images ls -q | sort))
  [ -n "$missing" ] || return 0
  # shellcheck disable=SC2086 # names of images
  ctr -a "$containerd_socket" -n k8s.io images export "$N/images.tar" $missing
  ctr -a "$socket" -n k8s.io images import "$N/images.tar" >/dev/null
  rm -f "$N/images.tar"
}

case ${1:-} in
  up)
    open_network
    mkdir -p "$N"
    if [ ! -s "$S/node2.kubeconfig" ]; then
      certificate node2 /O=system:nodes/CN=system:node:node2 "DNS:node2,IP:127.0.0.1,IP:$address" 2>>"$S/logs/pki.log"
      kubeconfig node2
    fi
    . "$here/node.sh"
    copy_images
    ;;
  lose) end_node 2 ;;
  cut) of_first ip link set node2 down ;;
  back)
    of_first ip link set node2 up
    start containerd2 bash "$S/containerd2.sh"
    until_ok 120 ctr -a "$socket" version || die "containerd does not answer: see $S/logs/containerd2.log"
    start kubelet2 bash "$S/kubelet2.sh"
    ;;
  down)
    end_node 2
    clear_node 2 "$N"
    remove_network
    rm -rf "$N"
    # Nobody else would say that they are gone.
    kubectl get pods --all-namespaces --field-selector spec.nodeName=node2 --no-headers \
      -o custom-columns=N:.metadata.namespace,P:.metadata.name | while read -r namespace pod; do
      kubectl delete pod --namespace "$namespace" "$pod" --force --grace-period=0 --ignore-not-found 2>/dev/null >&2 || true
    done
    kubectl delete node node2 --ignore-not-found >&2
    ;;
  *) die "usage: second.sh up|lose|cut|back|down" ;;
esac
