#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to a converted disk on a laptop: makes a kind cluster, builds and loads the image, installs the chart,
# drops a disk image and waits for the qcow2. Safe to repeat.
#
#   kind/up.sh [IMAGE]           (a disk image of yours instead of an empty one)
#   kind/drop.sh IMAGE           (one more)
#   kind delete cluster --name hyper2kvm
#
# Needs docker with buildx, or podman 4.8 or later; kind, kubectl and helm. Variables:
#   KIND_IMAGE                   node image (kindest/node:v1.33.1), else kind's own default
#   KIND_CONFIG                  another cluster than kind/cluster.yaml: kind/suite.yaml for the test suite
#   OPERATOR_IMAGE               an image that the engine has already, instead of a build
set -euo pipefail
fail() { echo "kind/up.sh: $*" >&2; exit 1; }
[ $# -le 1 ] || fail "give one disk image, or none"
[ $# -eq 0 ] || [ -f "$1" ] || fail "$1 is not a file: give the path of a disk image"
source=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."
engine=$(kind/engine.sh)
for tool in kind kubectl helm; do
  command -v "$tool" >/dev/null || fail "$tool is missing"
done
# The Dockerfile has here-documents, which the engines' older builders take for instructions.
if [ -z "${OPERATOR_IMAGE:-}" ] && [ "$engine" = docker ]; then
  docker buildx version >/dev/null 2>&1 || fail "docker buildx is missing: install Docker's buildx plugin"
fi
export KIND_EXPERIMENTAL_PROVIDER=$engine
context=kind-hyper2kvm

# kind says on standard error that there are none.
clusters=$(kind get clusters 2>/dev/null)
if ! grep -qx hyper2kvm <<<"$clusters"; then
  kind create cluster --config "${KIND_CONFIG:-kind/cluster.yaml}" ${KIND_IMAGE:+--image "$KIND_IMAGE"} --wait 120s
fi
# Before the build, which takes minutes.
version=$(kubectl --context "$context" get --raw /version | sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p')
[ "${version:-0}" -ge 33 ] ||
  fail "the cluster runs Kubernetes 1.${version:-?} and the chart needs 1.33 or later: kind delete cluster --name hyper2kvm, then KIND_IMAGE=kindest/node:v1.33.1 kind/up.sh"

# Tagged by its content: a cluster that runs an older build gets another name in its templates, so every pod is
# replaced, and no two versions run at a time. With a registry's name in front, docker and podman mean the same.
built=${OPERATOR_IMAGE:-localhost/hyper2kvm-operator:kind}
[ -n "${OPERATOR_IMAGE:-}" ] || "$engine" build --tag "$built" .
id=$("$engine" image inspect --format '{{.Id}}' "$built")
id=${id#sha256:}
repository=localhost/hyper2kvm-operator
image=$repository:kind-${id:0:12}
"$engine" tag "$built" "$image"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# As an archive, which kind loads from either engine and whatever store it keeps its images in.
"$engine" save --output "$scratch/image.tar" "$image"
kind load image-archive --name hyper2kvm "$scratch/image.tar"
rm "$scratch/image.tar"
helm upgrade --install hyper2kvm charts/hyper2kvm-operator --kube-context "$context" --namespace hyper2kvm \
  --create-namespace --set image.repository="$repository",image.tag="${image##*:}",image.pullPolicy=Never --wait

# A hostPath belongs to root, and nothing here runs as root: the directories are made for the image's user.
"$engine" exec hyper2kvm-worker sh -c 'mkdir -p /var/hyper2kvm/queue /var/hyper2kvm/output && chown -R 65532:65532 /var/hyper2kvm'
kubectl --context "$context" apply -f kind/queue.yaml
kubectl --context "$context" wait --for=condition=Ready hconv/demo --timeout=180s

if [ -z "$source" ]; then
  source=$scratch/empty.raw
  truncate -s 64M "$source"
fi
kind/drop.sh "$source"
