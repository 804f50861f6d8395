#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Drops a disk image into the queue of kind/queue.yaml and waits until its conversion has ended.
#
#   kind/drop.sh IMAGE
#
# Exit code 0 for a conversion that succeeded or was a duplicate, 1 for one that failed, with its reason, and for one
# that has not ended after WAIT seconds (600).
set -euo pipefail
fail() { echo "kind/drop.sh: $*" >&2; exit 1; }
[ $# -eq 1 ] || fail "give the path of one disk image"
image=$1
[ -f "$image" ] || fail "$image is not a file: give the path of a disk image"
engine=$("$(dirname "$0")/engine.sh")
node=hyper2kvm-worker
queue=/var/hyper2kvm/queue
name=$(basename "$image")
kubectl() { command kubectl --context kind-hyper2kvm "$@"; }

# One line for each conversion: uid, name, path of its source.
conversions() {
  kubectl get conversionjobs \
    --output jsonpath='{range .items[*]}{.metadata.uid}{"\t"}{.metadata.name}{"\t"}{.spec.source.path}{"\n"}{end}'
}
field() { kubectl get conversionjob "$job" --output jsonpath="{.$1}"; }

# Those of an earlier run bear the same path: only a conversion that is not there yet is this file's. One whose source
# can't be asked for (the API server does not answer) ends the script here, before anything is brought.
before=$(conversions)

# Copied under a name that the queue leaves alone, then renamed: it appears whole. A link is followed.
part=$queue/.$name.part
trap '"$engine" exec "$node" rm -f "$part" 2>/dev/null || true' EXIT
"$engine" cp "$(realpath "$image")" "$node:$part"
"$engine" exec "$node" sh -c 'chown 65532:65532 "$1" && mv "$1" "$2"' sh "$part" "$queue/$name"
trap - EXIT

echo "waiting for the conversion of $name"
deadline=$((SECONDS + ${WAIT:-600}))
job=""
end=""
while :; do
  [ -n "$job" ] || job=$(conversions | NAME=$name BEFORE=$before awk -F '\t' '
    BEGIN {
      lines = split(ENVIRON["BEFORE"], line, "\n")
      for (i = 1; i <= lines; i++) { split(line[i], field, "\t"); old[field[1]] = 1 }
    }
    !($1 in old) && $3 == ENVIRON["NAME"] { print $2; exit }')
  [ -z "$job" ] || end=$(field status.end)
  case $end in
    Succeeded | Duplicate) break ;;
    Failed | Cancelled)
      echo "kind/drop.sh: $job: $end: $(field status.failure.message)" >&2
      fail "for more: kubectl --context kind-hyper2kvm describe conversionjob $job" ;;
  esac
  if [ "$SECONDS" -ge "$deadline" ]; then
    [ -n "$job" ] || fail "no ConversionJob appeared for $name: kubectl --context kind-hyper2kvm describe hyperconversion demo"
    fail "$job has not ended after ${WAIT:-600} s: kubectl --context kind-hyper2kvm describe conversionjob $job"
  fi
  sleep 1
done
kubectl get conversionjobs --output wide
[ "$end" != Duplicate ] || echo "$name was converted before: $job repeats $(field spec.duplicateOf)"
