#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Keeps the version in one place, Cargo.toml, and everything that repeats it equal to it.
#
#   version.sh             prints the version; fails where a copy of it differs
#   version.sh X.Y.Z       writes it everywhere
set -euo pipefail
cd "${ROOT:-$(dirname "$0")/../..}"
chart=charts/hyper2kvm-operator/Chart.yaml

# FILE and the sed pattern whose only group is the version.
copies=(
  "$chart" '^version: (.*)$'
  "$chart" '^appVersion: (.*)$'
  Dockerfile '^ARG VERSION=(.*)$'
  README.md 'REGISTRY/hyper2kvm-operator:([0-9][^ ]*)'
)
in_cargo() { sed -nE '/^\[package\]/,/^\[lib\]/s/^version = "(.*)"$/\1/p' Cargo.toml; }
in_lock() { sed -nE '/^name = "hyper2kvm-operator"$/{n;s/^version = "(.*)"$/\1/p;}' Cargo.lock; }

if [ $# -gt 0 ]; then
  new=$1
  [[ $new =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || { echo "version.sh: $new is no version like 1.2.3" >&2; exit 2; }
  sed -i -E "/^\[package\]/,/^\[lib\]/s/^version = \".*\"$/version = \"$new\"/" Cargo.toml
  sed -i -E "/^name = \"hyper2kvm-operator\"$/{n;s/^version = \".*\"$/version = \"$new\"/;}" Cargo.lock
  sed -i -E "s/^(version|appVersion): .*/\1: $new/" "$chart"
  sed -i -E "s/^ARG VERSION=.*/ARG VERSION=$new/" Dockerfile
  sed -i -E "s|(REGISTRY/hyper2kvm-operator:)[0-9][^ ]*|\1$new|g" README.md
fi

version=$(in_cargo)
wrong=0
differs() {
  echo "version.sh: $1 says '$2', Cargo.toml '$version'" >&2
  wrong=1
}
[ "$(in_lock)" = "$version" ] || differs Cargo.lock "$(in_lock)"
for ((i = 0; i < ${#copies[@]}; i += 2)); do
  found=$(grep -oE "${copies[i + 1]}" "${copies[i]}" | sed -E "s|${copies[i + 1]}|\1|" | sort -u)
  [ "$found" = "$version" ] || differs "${copies[i]}" "$found"
done
[ "$wrong" = 0 ] || exit 1
echo "$version"
