#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to a converted disk on a laptop with Docker: makes a kind cluster, builds and loads the image, installs
# the chart, drops a disk image and waits for the qcow2. Safe to repeat.
#
#   kind/up.sh [IMAGE]           (a disk image of yours instead of an empty one)
#   kind delete cluster --name hyper2kvm
#
# Needs docker, kind, kubectl and helm. How the cluster suite runs here: docs/development.md.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in docker kind kubectl helm; do
  command -v "$tool" >/dev/null || { echo "kind/up.sh: $tool is missing" >&2; exit 1; }
done
image=hyper2kvm-operator:kind
context=kind-hyper2kvm

kind get clusters | grep -qx hyper2kvm || kind create cluster --config kind/cluster.yaml --wait 120s
docker build --tag "$image" .
kind load docker-image --name hyper2kvm "$image"
helm upgrade --install hyper2kvm charts/hyper2kvm-operator --kube-context "$context" --namespace hyper2kvm \
  --create-namespace --set image.repository="${image%:*}",image.tag="${image#*:}",image.pullPolicy=Never --wait

# A hostPath belongs to root, and nothing here runs as root: the directories are made for the image's user.
docker exec hyper2kvm-worker sh -c 'mkdir -p /var/hyper2kvm/queue /var/hyper2kvm/output && chown -R 65532:65532 /var/hyper2kvm'
kubectl --context "$context" apply -f kind/queue.yaml
kubectl --context "$context" wait --for=condition=Ready hconv/demo --timeout=180s

if [ $# -gt 0 ]; then
  source=$1
else
  source=$(mktemp -d)/empty.raw
  truncate -s 64M "$source"
fi
name=$(basename "$source")
# Copied under a name that the queue leaves alone, then renamed: it appears whole.
docker cp "$source" "hyper2kvm-worker:/var/hyper2kvm/queue/.$name.part"
docker exec hyper2kvm-worker sh -c 'chown 65532:65532 "$1" && mv "$1" "$2"' sh \
  "/var/hyper2kvm/queue/.$name.part" "/var/hyper2kvm/queue/$name"

echo "waiting for the conversion of $name"
job=
for _ in $(seq 60); do
  job=$(kubectl --context "$context" get hcj -o jsonpath="{.items[?(@.spec.source.path=='$name')].metadata.name}" |
    awk '{print $NF}')
  [ -z "$job" ] || break
  sleep 1
done
[ -n "$job" ] || { echo "kind/up.sh: no ConversionJob appeared: kubectl describe hconv demo" >&2; exit 1; }
kubectl --context "$context" wait --for=condition=Succeeded "hcj/$job" --timeout=600s
kubectl --context "$context" get hcj -o wide
