#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the file in which a release of Kubernetes describes its own API.
#
#   swagger.sh oldest|newest     (the oldest release that is served, the newest there is)
#
# It lies in the release's Go module, which needs no compiling: `kubeconform` asks elsewhere for schemas made of it.
. "$(dirname "$0")/environment.sh"
case ${1:-} in
  oldest) version=v1.33.13 digest=2af5abf98554af1599e516f31f7f1698085e6faa12b816401f569c097b9f7ef6 ;;
  newest) version=v1.37.2 digest=465276aedf437726de5a6ed23a41b86d78bb0d347edf251a755ae26a93cdd8a6 ;;
  *) die "usage: swagger.sh oldest|newest" ;;
esac
go=$("$here/go.sh") || die "left out: the schemas of Kubernetes, which come as a Go module"
cd "$here/tools/kubeconform"
module=$("$go/go" mod download -json "k8s.io/kubernetes@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
file=$module/api/openapi-spec/swagger.json
echo "$digest  $file" | sha256sum --check --quiet - >&2 || die "$file is not what $version holds"
echo "$file"
