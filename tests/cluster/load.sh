#!/usr/bin/env bash
# Brings images into the node: load.sh ARCHIVE.tar... (docker-archives)
. "$(dirname "$0")/environment.sh"
for archive in "$@"; do
  ctr -a "$containerd_socket" -n k8s.io images import "$archive" >/dev/null
done
