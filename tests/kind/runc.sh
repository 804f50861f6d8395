#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# runc for a root that lacks CAP_SYS_RESOURCE, as in a container: it can give nobody that capability, no higher limit and
# no lower OOM score. What the engine asks of them is taken out of the container's and of the process's description.
set -euo pipefail
filter='if has("process") then
    .process.capabilities |= with_entries(.value -= ["CAP_SYS_RESOURCE"]) | del(.process.rlimits, .process.oomScoreAdj, .linux.resources.oomScoreAdj)
  else
    .capabilities |= with_entries(.value -= ["CAP_SYS_RESOURCE"]) | del(.rlimits, .oomScoreAdj)
  end'
before=""
for argument; do
  case $before in
    --bundle | -b) file=$argument/config.json ;;
    --process | -p) file=$argument ;;
  esac
  before=$argument
  case $argument in
    --bundle=*) file=${argument#*=}/config.json ;;
    --process=*) file=${argument#*=} ;;
  esac
done
if [ -n "${file:-}" ]; then
  jq -c "$filter" "$file" >"$file.hyper2kvm"
  cat "$file.hyper2kvm" >"$file"
  rm "$file.hyper2kvm"
fi
exec runc "$@"
