#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Takes the cluster down a while after its last user is gone. Started by up.sh for a cluster that tests asked for; one
# made by hand stays until down.sh.
#
# A user holds a shared lock on $S/users for as long as it lives, however it ends. The pause lets the next test binary
# of one run find the cluster still up.
. "$(dirname "$0")/environment.sh"
pause=${1:-90}
exec 7>>"$S/users"
while flock 7 && flock -u 7; do
  sleep "$pause"
  if flock -n 7; then
    exec "$here/down.sh"
  fi
done
