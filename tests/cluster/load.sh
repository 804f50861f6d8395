#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Brings images into the node: load.sh ARCHIVE.tar... (docker-archives)
. "$(dirname "$0")/environment.sh"
for archive in "$@"; do
  ctr -a "$containerd_socket" -n k8s.io images import "$archive" >/dev/null
done
