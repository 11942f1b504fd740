# shellcheck shell=bash
# Functions that the scripts in this folder share; they source this file.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Offline node: pip, and the processes that pip starts to build a wheel, use this folder only.
if [[ -n ${XKV_WHEELS:-} ]]; then
    PIP_FIND_LINKS=$(cd "$XKV_WHEELS" && pwd)
    export PIP_FIND_LINKS PIP_NO_INDEX=1
fi
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The tests that a GPU adds to the tiers of a CPU. Most of the time is spent compiling, hence one worker for each
# core; the workers are distributed over the node's GPUs (tests/support/gpus.py).
# shellcheck disable=SC2034 # used where this is sourced
gpu_tier=(-n auto --maxprocesses 16 --maxschedchunk 1 -m "not compile and not interpret and not repo")

# Runs in /, so that a folder named triton in the current folder is not imported.
has_torch() { (cd / && "$1" -c 'import torch, triton' >/dev/null 2>&1); }

make_venv() { # VENV: creates an environment that sees the torch and triton of python3, if it has them
    if ! has_torch python3; then
        python3 -m venv "$1"
        return
    fi
    # --system-site-packages would show the base Python's packages, not those of the virtual
    # environment that python3 itself may be in, as it is in most images; hence node.pth.
    # node.pth also makes the node's pip available: a new one would install its setuptools over the node's.
    if python3 -m pip --version >/dev/null 2>&1; then
        python3 -m venv --without-pip "$1"
    else
        python3 -m venv "$1"
    fi
    python3 - >"$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/node.pth" <<'PY'
import sys
for path in sys.path:
    if path.endswith("-packages"):
        print(f"import site; site.addsitedir({path!r})")
PY
}

dependency_group() { # PYTHON NAME: prints the requirements of a group of pyproject.toml, one a line
    "$1" - "$root/pyproject.toml" "$2" <<'PY'
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

path, name = sys.argv[1:]
# pip 25.1 and newer reads groups itself, but a new environment often gets an older pip
with open(path, "rb") as file:
    print(*tomllib.load(file)["dependency-groups"][name], sep="\n")
PY
}

build_wheel() { # PYTHON FOLDER: builds xkv's wheel in the folder and prints its path
    "$1" -m pip wheel -q --no-deps --wheel-dir "$2" "$root" >&2 || return
    local wheels=("$2"/xkv-*.whl)
    if ((${#wheels[@]} != 1)); then
        echo "$2 holds more than one wheel: ${wheels[*]}" >&2
        return 1
    fi
    echo "${wheels[0]}"
}

torch_and_triton() { # PYTHON: prints vendor, versions and locations; one line for torch, one for triton
    (cd / && "$1" -) <<'PY'
import importlib.metadata

import torch
import triton

vendor = "hip" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
print(vendor, torch.version.hip or torch.version.cuda, "torch", torch.__version__, torch.__file__)
# Also the owners: a second distribution may install the same version over the first.
owners = sorted(set(importlib.metadata.packages_distributions().get("triton", ())))
print("triton", triton.__version__, triton.__file__, "of", *owners)
PY
}

unchanged() { # PYTHON COMMAND...: runs the command; fails if it fails or changes torch or triton
    local before after
    before=$(torch_and_triton "$1") || return
    "${@:2}" || return
    after=$(torch_and_triton "$1") || return
    if [[ $after != "$before" ]]; then
        printf '%s\nchanged\n%s\nto\n%s\n' "${*:2}" "$before" "$after" >&2
        return 1
    fi
}
