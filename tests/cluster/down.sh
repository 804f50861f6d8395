#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Ends the cluster of up.sh and removes all of it: processes, mounts, control groups, network, state. Safe to repeat.
#
#   down.sh [--of-tests]     (leaves alone what was made by hand)
. "$(dirname "$0")/environment.sh"
alone
[ -d "$S" ] || exit 0
if [ "${1:-}" = --of-tests ] && ! alive keeper; then exit 0; fi
# The keeper itself becomes this script in the end.
[ "$(cat "$S/pids/keeper" 2>/dev/null || true)" = $$ ] || stop keeper

# Pods first, while nobody is left to start them again.
end_node 2
end_node ""
for name in scheduler manager apiserver etcd; do stop "$name"; done

clear_node 2 "$S/node2"
clear_node "" "$S"
close_network "$S/network2"
close_network "$S/network"
close_network "$S/network.new"
if awk -v top="$S/" 'index($2, top) == 1 {found = 1} END {exit !found}' /proc/self/mounts; then
  die "still mounted below $S: nothing there is removed"
fi
rm -rf "$S"
