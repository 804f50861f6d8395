#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds programs from the Go module in tools/MODULE and prints the directory that holds them.
#
#   build.sh kubernetes [BINARY...]     etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl
#   build.sh helm
#   build.sh kubeconform
#   build.sh kubevirt                  judges manifests by KubeVirt's own code (tools/kubevirt/main.go)
#   build.sh kueue                     and beside it, its chart
#   build.sh kubeadm                   kubeadm kube-proxy: what kind's nodes need more (of the same release as kubernetes)
#   build.sh kind                      and beside it, what it lays into the nodes' image
#
# They are kept in a cache keyed by the module's checksums. Those that KUBEBUILDER_ASSETS holds are taken from there.
# The modules were made with `go mod edit -tool=… && go mod tidy`; k8s.io/kubernetes asks for its staging modules at
# v0.0.0, so each of them is replaced by the release that belongs to it.
. "$(dirname "$0")/environment.sh"

module=${1:?usage: build.sh MODULE [BINARY...]}
shift
case $module in
  kubernetes) all=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl) ;;
  kubeadm) all=(kubeadm kube-proxy) ;;
  helm | kubeconform | kubevirt | kueue | kind) all=("$module") ;;
  *) die "$module: no such module below tools/" ;;
esac
[ $# -gt 0 ] || set -- "${all[@]}"

key=$(cat "$here/tools/$module/"* | sha256sum | cut -c1-16)
bin=$cache/$module-$key
mkdir -p "$bin"
exec 8>"$bin/.lock"
flock 8

component=k8s.io/component-base/version
minor=${kubernetes_version#v1.}
stamp="-X $component.gitVersion=$kubernetes_version -X $component.gitMajor=1 -X $component.gitMinor=${minor%%.*}"
stamp="$stamp -X k8s.io/client-go/pkg/version.gitVersion=$kubernetes_version"

for name in "$@"; do
  [ ! -x "$bin/$name" ] || continue
  if [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$name" ]; then
    ln -sf "$KUBEBUILDER_ASSETS/$name" "$bin/$name"
    continue
  fi
  go=$("$here/go.sh")
  case $name in
    etcd) package=go.etcd.io/etcd/server/v3 flags= ;;
    helm) package=helm.sh/helm/v4/cmd/helm flags= ;;
    kubevirt) package=. flags= ;;
    kueue) package=sigs.k8s.io/kueue/cmd/kueue flags= ;;
    kind) package=sigs.k8s.io/kind flags= ;;
    kubeconform) package=github.com/yannh/kubeconform/cmd/kubeconform flags= ;;
    *) package=k8s.io/kubernetes/cmd/$name flags=$stamp ;;
  esac
  say "building $name (once; kept in $bin)"
  (
    cd "$here/tools/$module"
    CGO_ENABLED=0 "$go/go" build -mod=readonly -buildvcs=false -trimpath -ldflags "-s -w $flags" -o "$bin/.$name" "$package"
  ) >&2
  # What comes with the module, and is used beside the program.
  case $name in
    kueue) part=charts/kueue as=chart ;;
    kind) part=images/base/files as=files ;;
    *) part="" ;;
  esac
  if [ -n "$part" ]; then
    source=$(cd "$here/tools/$name" && "$go/go" list -mod=readonly -m -f '{{.Dir}}' "sigs.k8s.io/$name")
    rm -rf "${bin:?}/$as"
    cp -R --no-preserve=mode "$source/$part" "$bin/$as"
  fi
  mv "$bin/.$name" "$bin/$name"
done
echo "$bin"
