#!/usr/bin/env bash
# Makes a virtual environment in .venv and installs wmpo into it, with the versions of constraints.txt.
# usage: ./setup.sh [EXTRAS]    for example ./setup.sh dev,hub
# PYTHON names another interpreter. Done already and nothing changed: returns at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

extras="${1:-}"
say() { echo "setup: $*" >&2; }

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    say "Python 3.11 or newer is needed; on Debian 12, Ubuntu 24.04 or newer: apt install python3 python3-venv"
    exit 1
}

make_venv() {
    local python="$1" version
    if "$python" -m venv .venv >/dev/null 2>&1 && [ -x .venv/bin/pip ]; then
        return
    fi
    rm -rf .venv
    version="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "this Python can't make virtual environments; on Debian/Ubuntu: sudo apt install $version"
        exit 1
    fi
    say "installing $version"
    apt-get update -qq && apt-get install -y -qq "$version" >/dev/null
    "$python" -m venv .venv
}

state="$(cat pyproject.toml constraints.txt | cksum) $extras"
stamp=".venv/installed-${extras:-base}"
if [ -x .venv/bin/python ] && fits .venv/bin/python && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
    exit 0
fi
[ -x .venv/bin/pip ] && fits .venv/bin/python || make_venv "$(find_python)"
say "installing wmpo into .venv; the first time this downloads a few hundred megabytes"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}"
echo "$state" >"$stamp"
