#!/bin/sh
# Make a virtual environment and install the project into it, unless that was done already.
#   EXTRAS=all,dev STAMPS=test sh tools/environment.sh VENV KEY [PYTHON]
# KEY names what is installed. A stamp file is written last, so an interrupted installation is simply done again.
# STAMPS lists the installations that are good enough; the first is the one that is made here.
set -eu
venv=$1 key=$2 python=${3:-}

works() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

for stamp in $STAMPS; do
    if [ -e "$venv/.installed-$stamp-$key" ] && works "$venv/bin/python"; then
        exit 0
    fi
done

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || ! works "$venv/bin/python"; then
    for candidate in "$python" python3 python3.13 python3.12 python3.11 python3.14 python; do
        [ -n "$candidate" ] && works "$candidate" && break
        if [ -n "$python" ]; then
            echo "error: '$python' is not a Python of version 3.11 or newer" >&2
            exit 2
        fi
        candidate=
    done
    if [ -z "$candidate" ]; then
        echo "error: no Python of version 3.11 or newer found; install one, or name it: make ... PYTHON=/path/to/python3" >&2
        exit 2
    fi
    echo "Making the environment $venv with $("$candidate" --version)"
    if ! "$candidate" -m venv --clear "$venv"; then
        echo "error: '$candidate -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    fi
fi

echo "Installing visionssm[$EXTRAS] into $venv (the first time this fetches torch, which is large)"
"$venv/bin/python" -m pip install --disable-pip-version-check --editable ".[$EXTRAS]"
if ! "$venv/bin/python" -c 'import importlib.metadata as m, sys
sys.exit(not any("libvisionssm" in f.name for f in m.files("visionssm") or []))'; then
    echo "note: no C++ compiler (GCC or Clang) was found, so the fast CPU back-end is not there; everything works without it, slower"
fi
rm -f "$venv"/.installed-*
: > "$venv/.installed-${STAMPS%% *}-$key"
