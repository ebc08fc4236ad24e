#!/usr/bin/env bash
# Sets everything up, where that is still to do, and runs `wmpo` with the given arguments: ./wmpo.sh run push
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
"$here/setup.sh"
# glibc would give the memory of every training step back and fault it in again: a tenth to a fifth of the time on a CPU.
export MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=67108864
exec "$here/.venv/bin/wmpo" "$@"
