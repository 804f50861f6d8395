#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Packs one program into an image of one layer, without any image tool: a docker-archive is three files in a tar.
#
#   archive.sh OUT.tar NAME:TAG PROGRAM [AS]     (a static program; it becomes /AS, or /program, and the entrypoint)
#   archive.sh OUT.tar NAME:TAG DIRECTORY        (its files, without an entrypoint)
set -euo pipefail
out=$1 name=$2 program=$3 as=${4:-program}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
digest() { sha256sum "$1" | cut -d' ' -f1; }
case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) arch=$(uname -m) ;; esac

config='{}'
mkdir -p "$work/layer/tmp"
chmod 1777 "$work/layer/tmp"
if [ -d "$program" ]; then
  cp -R "$program/." "$work/layer/"
else
  install -D -m 0755 "$program" "$work/layer/$as"
  config="{\"Entrypoint\":[\"/$as\"]}"
fi
tar -C "$work/layer" --owner=0 --group=0 --numeric-owner --sort=name -cf "$work/layer.tar" .
printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{}]}' \
  "$arch" "$config" "$(digest "$work/layer.tar")" >"$work/config"
config=$(digest "$work/config").json
mv "$work/config" "$work/$config"
printf '[{"Config":"%s","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$config" "$name" >"$work/manifest.json"
tar -C "$work" -cf "$out" "$config" layer.tar manifest.json
