#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Stops (at once) or starts again one part of a running cluster: part.sh stop|start apiserver|kubelet
. "$(dirname "$0")/environment.sh"
alone
[ -s "$S/$2.sh" ] || die "$2: no part of a cluster in $S that can be started again"
case $1 in
  stop) stop "$2" ;;
  start) start "$2" bash "$S/$2.sh" ;;
  *) die "usage: part.sh stop|start apiserver|kubelet" ;;
esac
