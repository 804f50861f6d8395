#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fails where a Rust source or a script names no licence in its first three lines.
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"
wrong=0
while IFS= read -r file; do
  head -n 3 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0' || { echo "$file: no SPDX line" >&2; wrong=1; }
done < <(git ls-files '*.rs' '*.sh' '*.py')
exit "$wrong"
