#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the container engine that runs kind: KIND_EXPERIMENTAL_PROVIDER as kind itself reads it, else docker, else podman.
set -euo pipefail
engine=${KIND_EXPERIMENTAL_PROVIDER:-}
if [ -z "$engine" ]; then
  engine=docker
  command -v docker >/dev/null || ! command -v podman >/dev/null || engine=podman
fi
case $engine in
  docker | podman) ;;
  *) echo "kind/engine.sh: KIND_EXPERIMENTAL_PROVIDER is $engine: use docker or podman" >&2; exit 1 ;;
esac
command -v "$engine" >/dev/null || { echo "kind/engine.sh: $engine is missing: install docker or podman" >&2; exit 1; }
echo "$engine"
