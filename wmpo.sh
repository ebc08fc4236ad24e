#!/usr/bin/env bash
# Sets everything up, where that is still to do, and runs `wmpo` with the given arguments: ./wmpo.sh run push
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
"$here/setup.sh"
exec "$here/.venv/bin/wmpo" "$@"
