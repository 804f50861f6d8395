#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the directory of a Go that is new enough for the modules in tools/. An older one, such as Debian's, fetches it
# as the module that Go itself is published as, and it is kept in the cache.
. "$(dirname "$0")/environment.sh"
version=1.26.8
case $(uname -m) in
  x86_64) platform=linux-amd64 sum=h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM= ;;
  aarch64) platform=linux-arm64 sum=h1:sYL/O6MqS68ML0kjsQ36WoYIpJqkw60TxizWUYUKQMc= ;;
  *) platform="" sum="" ;;
esac

new_enough() {
  local found
  found=$("$1" env GOVERSION 2>/dev/null) && printf 'go1.26\n%s\n' "$found" | sort --version-sort --check=quiet
}

go=$(command -v go || true)
kept=$cache/go$version
if [ -n "$go" ] && new_enough "$go"; then
  dirname "$go"
  exit
fi
if [ ! -x "$kept/bin/go" ]; then
  [ -n "$go" ] || die "Go is not installed"
  [ -n "$platform" ] || die "Go 1.26 is not installed, and for $(uname -m) there is none to fetch"
  mkdir -p "$cache"
  exec 8>"$kept.lock"
  flock 8
fi
if [ ! -x "$kept/bin/go" ]; then
  say "fetching Go $version (once; kept in $kept)"
  new=$(mktemp -d "$cache/go.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  module=$(cd "$new" && GOMODCACHE=$new/modules GOFLAGS=-modcacherw GOTOOLCHAIN=local \
    "$go" mod download -json "golang.org/toolchain@v0.0.1-go$version.$platform") ||
    die "Go 1.26 is not installed and can't be fetched: $module"
  grep -qF "\"Sum\": \"$sum\"" <<<"$module" || die "what was fetched as Go $version is something else: $module"
  tree=$new/modules/golang.org/toolchain@v0.0.1-go$version.$platform
  # What a module can't hold: files that may be run, and modules within it.
  chmod -R +x "$tree"/bin "$tree"/pkg/tool
  find "$tree" -name _go.mod -execdir mv _go.mod go.mod ';'
  mv "$tree" "$kept"
fi
echo "$kept/bin"
