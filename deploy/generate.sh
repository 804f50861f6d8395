#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes what is generated from the API types and the chart: crds/, the chart's copy of it, docs/api.md,
# docs/chart-values.md, and deploy/base/operator.yaml.
#
#   generate.sh HYPER2KVM_OPERATOR HELM [ROOT]     (the two programs; ROOT: where to write, this checkout unless set)
set -euo pipefail
operator=$1 helm=$2
checkout=$(cd "$(dirname "$0")/.." && pwd)
root=${3:-$checkout}
chart=$checkout/charts/hyper2kvm-operator

"$operator" crds --dir "$root/crds"
"$operator" crds --dir "$root/charts/hyper2kvm-operator/files/crds"
mkdir -p "$root/deploy/base" "$root/docs"
"$operator" crds --reference >"$root/docs/api.md"
"$checkout/deploy/chart-values.py" "$chart/values.yaml" >"$root/docs/chart-values.md"
{
  echo "# Generated from the chart: make generate."
  "$helm" template hyper2kvm-operator "$chart" --namespace hyper2kvm --set crds.install=false --no-hooks |
    sed -e '/helm\.sh\/chart:/d' -e '/^ *app\.kubernetes\.io\/managed-by: Helm$/d' -e '/^# Source:/d'
} >"$root/deploy/base/operator.yaml"
