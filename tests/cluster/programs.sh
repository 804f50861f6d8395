#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds what the cluster suite runs beside our own, once: no test's time limit has to allow for it. Where it can't be
# built, the tests say what is missing.
. "$(dirname "$0")/environment.sh"
if [ -n "${KUBECONFIG:-}" ] || ! "$here/go.sh" >/dev/null 2>&1; then exit 0; fi
for module in kubernetes helm kubeconform kueue kubevirt; do
  "$here/build.sh" "$module" >/dev/null
done
