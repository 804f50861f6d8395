#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Boots a real control plane, and a real node where root and containerd are there. Prints the kubeconfig's path.
#
#   up.sh [control-plane|node]     (node: fails where no node can run; default: what this machine can)
#
# HYPER2KVM_CLUSTER_KEEPER=1: a cluster that is made now ends by itself when nobody uses it any more (keep.sh).
#
# Safe to repeat: what runs already stays. With root everything lives in a network namespace of its own, so that
# several clusters and whatever else listens on this machine don't meet:
#
#   host 10.98.K.1 ──veth── 10.98.K.2 namespace h2kK; bridge h2k0: 10.97.K.1/24 (pods' gateway, node, API server)
#                                                     and 10.96.0.1/32 (the service that pods call: no kube-proxy)
#
# Without root it is a control plane alone, on loopback and free ports.
. "$(dirname "$0")/environment.sh"
. "$here/identity.sh"
want=${1:-any}

alone
mkdir -p "$S"/{pki,logs,pids,etcd}
fresh=yes
! alive etcd || fresh=no

missing=$(missing_for_a_node | paste -sd, -)
case $want in
  control-plane) node=no ;;
  node) [ -z "$missing" ] || die "no node on this machine, it lacks: $missing"; node=yes ;;
  any) node=yes; [ -z "$missing" ] || { node=no; say "left out: the node; this machine lacks: $missing"; } ;;
  *) die "usage: up.sh [control-plane|node]" ;;
esac

# Each test of a run comes by here: where all is up, nothing is looked at again.
parts="etcd apiserver manager scheduler"
[ "$node" = no ] || parts="$parts containerd kubelet"
complete() {
  [ "$(cat "$S/complete" 2>/dev/null)" = "$parts" ] || return 1
  local part
  for part in $parts; do alive "$part" || return 1; done
}
if complete; then
  echo "$S/admin.kubeconfig"
  exit
fi

binaries=(etcd kube-apiserver kube-controller-manager kube-scheduler kubectl)
[ "$node" = no ] || binaries+=(kubelet)
bin=$("$here/build.sh" kubernetes "${binaries[@]}")
echo "$bin" >"$S/bin"

open_network() {
  [ ! -e "$S/network" ] || return 0
  close_network "$S/network.new"
  local k
  for k in $(seq 0 249); do
    ip netns add "h2k$k" 2>/dev/null && break
  done
  ip netns list | grep -q "^h2k$k\b" || die "no free network namespace"
  echo "h2k$k" >"$S/network.new"
  ip link add "h2k$k-host" type veth peer name eth0 netns "h2k$k"
  ip addr add "10.98.$k.1/30" dev "h2k$k-host"
  ip link set "h2k$k-host" up
  nsenter --net="/run/netns/h2k$k" bash -e <<N
    ip link set lo up
    ip addr add 10.98.$k.2/30 dev eth0
    ip link set eth0 up
    ip route add default via 10.98.$k.1
    # A bridge without an address of its own takes the lowest of its ports' and changes it as pods come and go: pods
    # then send into nothing for up to a minute.
    ip link add h2k0 address 02:00:00:00:00:01 type bridge
    ip addr add 10.97.$k.1/24 dev h2k0
    ip addr add 10.96.0.1/32 dev h2k0
    ip link set h2k0 up
    echo 1 >/proc/sys/net/ipv4/ip_forward
N
  ip route replace "10.97.$k.0/24" via "10.98.$k.2"
  mv "$S/network.new" "$S/network"
}

free_port() {
  local port
  while :; do
    port=$((RANDOM % 20000 + 30000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

if [ "$(id -u)" = 0 ] && command -v ip >/dev/null && command -v nsenter >/dev/null; then
  open_network
  k=$(sed s/h2k// "$S/network")
  server=10.98.$k.2 port=443 advertise=10.97.$k.1
  etcd_client=2379 etcd_peer=2380 manager_port=10257 scheduler_port=10259
else
  [ -s "$S/ports" ] || echo "$(free_port) $(free_port) $(free_port) $(free_port) $(free_port)" >"$S/ports"
  read -r port etcd_client etcd_peer manager_port scheduler_port <"$S/ports"
  server=127.0.0.1 advertise=10.97.0.1
fi

pki() {
  [ ! -e "$S/pki/done" ] || return 0
  openssl req -x509 "${key[@]}" -days 7 -subj /CN=hyper2kvm-test -keyout "$S/pki/ca.key" -out "$S/pki/ca.crt"
  certificate apiserver /CN=kube-apiserver \
    "IP:127.0.0.1,IP:10.96.0.1,IP:$advertise,IP:$server,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
  certificate admin /O=system:masters/CN=admin DNS:admin
  certificate manager /CN=system:kube-controller-manager DNS:manager
  certificate scheduler /CN=system:kube-scheduler DNS:scheduler
  certificate node /O=system:nodes/CN=system:node:node1 "DNS:node1,IP:127.0.0.1,IP:$advertise"
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$S/pki/accounts.key"
  openssl pkey -in "$S/pki/accounts.key" -pubout -out "$S/pki/accounts.pub"
  touch "$S/pki/done"
}
pki 2>"$S/logs/pki.log" || die "certificates failed: see $S/logs/pki.log"

echo "https://$server:$port" >"$S/server"
for name in admin manager scheduler node; do kubeconfig "$name"; done

ready() { "$bin/kubectl" --kubeconfig "$S/admin.kubeconfig" get --raw /readyz; }

# Nothing here outlives a power cut, so nothing is synced; the audit log counts who writes how much, and what service
# accounts of ours do at all.
cat >"$S/audit.yaml" <<K
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, verbs: [create, update, patch, delete, deletecollection]}
- {level: None, userGroups: ["system:serviceaccounts:kube-system"]}
- {level: Metadata, userGroups: ["system:serviceaccounts"]}
K
start etcd "$bin/etcd" --data-dir "$S/etcd" --unsafe-no-fsync --log-level warn \
  --listen-client-urls "http://127.0.0.1:$etcd_client" --advertise-client-urls "http://127.0.0.1:$etcd_client" \
  --listen-peer-urls "http://127.0.0.1:$etcd_peer"
# Aggregator routing: webhooks are called at their endpoints' addresses, for there is no kube-proxy.
cat >"$S/apiserver.sh" <<K
# Written by up.sh: the API server as it is started, and started again by tests that take it down.
exec "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:$etcd_client \\
  --secure-port=$port --bind-address=0.0.0.0 --advertise-address=$advertise \\
  --service-cluster-ip-range=10.96.0.0/24 --authorization-mode=Node,RBAC --allow-privileged=true \\
  --tls-cert-file="$S/pki/apiserver.crt" --tls-private-key-file="$S/pki/apiserver.key" \\
  --client-ca-file="$S/pki/ca.crt" --service-account-issuer=https://kubernetes.default.svc \\
  --service-account-key-file="$S/pki/accounts.pub" --service-account-signing-key-file="$S/pki/accounts.key" \\
  --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$S/pki/ca.crt" \\
  --kubelet-client-certificate="$S/pki/admin.crt" --kubelet-client-key="$S/pki/admin.key" \\
  --enable-aggregator-routing=true --audit-policy-file="$S/audit.yaml" --audit-log-path="$S/logs/audit.log"
K
start apiserver bash "$S/apiserver.sh"
until_ok 180 ready || die "the API server does not get ready: see $S/logs/apiserver.log"
# A claim that was seen before its volume waits for the next look at all of them.
start manager "$bin/kube-controller-manager" --kubeconfig="$S/manager.kubeconfig" \
  --authentication-kubeconfig="$S/manager.kubeconfig" --authorization-kubeconfig="$S/manager.kubeconfig" \
  --service-account-private-key-file="$S/pki/accounts.key" --root-ca-file="$S/pki/ca.crt" \
  --use-service-account-credentials=true --leader-elect=false --secure-port="$manager_port" \
  --cert-dir="$S/pki/manager" --kube-api-qps=500 --kube-api-burst=1000 --pvclaimbinder-sync-period=1s
start scheduler "$bin/kube-scheduler" --kubeconfig="$S/scheduler.kubeconfig" \
  --authentication-kubeconfig="$S/scheduler.kubeconfig" --authorization-kubeconfig="$S/scheduler.kubeconfig" \
  --leader-elect=false --secure-port="$scheduler_port" --cert-dir="$S/pki/scheduler"

if [ "$node" = yes ]; then
  suffix="" N=$S address=$advertise first=2 taint=""
  . "$here/node.sh"
fi
echo "$parts" >"$S/complete"
if [ "$fresh" = yes ] && [ "${HYPER2KVM_CLUSTER_KEEPER:-}" = 1 ]; then start keeper "$here/keep.sh"; fi
echo "$S/admin.kubeconfig"
