# shellcheck shell=bash
# What the scripts beside this one share; they source it.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# An offline node: pip, and what pip starts to build a wheel, look into this folder alone.
if [[ -n ${XKV_WHEELS:-} ]]; then
    PIP_FIND_LINKS=$(cd "$XKV_WHEELS" && pwd)
    export PIP_FIND_LINKS PIP_NO_INDEX=1
fi
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# What a GPU adds to the tiers of a CPU. Most of its time is compiling, hence a worker a core; they spread
# over the node's GPUs (tests/support/gpus.py).
# shellcheck disable=SC2034 # used where this is sourced
gpu_tier=(-n auto --maxprocesses 16 --maxschedchunk 1 -m "not compile and not interpret and not repo")

# From /, lest a folder named triton in the current one should pass for it.
has_torch() { (cd / && "$1" -c 'import torch, triton' >/dev/null 2>&1); }

make_venv() { # VENV: sees the torch and triton that python3 has, if it has them
    if ! has_torch python3; then
        python3 -m venv "$1"
        return
    fi
    # --system-site-packages would show the base Python's packages, not those of the virtual
    # environment that python3 itself may be in, as it is in most images; hence node.pth.
    # Through it the node's pip serves too: a new one would lay its setuptools over the node's.
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

dependency_group() { # PYTHON NAME: the requirements of a group of pyproject.toml, a line each
    "$1" - "$root/pyproject.toml" "$2" <<'PY'
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

path, name = sys.argv[1:]
# pip reads groups itself from 25.1 on; the one that a new environment gets is often older
with open(path, "rb") as file:
    print(*tomllib.load(file)["dependency-groups"][name], sep="\n")
PY
}

build_wheel() { # PYTHON FOLDER: leaves xkv's wheel there and prints its path
    "$1" -m pip wheel -q --no-deps --wheel-dir "$2" "$root" >&2 || return
    local wheels=("$2"/xkv-*.whl)
    if ((${#wheels[@]} != 1)); then
        echo "$2 holds more than one wheel: ${wheels[*]}" >&2
        return 1
    fi
    echo "${wheels[0]}"
}

torch_and_triton() { # PYTHON: vendor, versions and places; a line for torch, one for triton
    (cd / && "$1" -) <<'PY'
import importlib.metadata

import torch
import triton

vendor = "hip" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
print(vendor, torch.version.hip or torch.version.cuda, "torch", torch.__version__, torch.__file__)
# Whose it is, too: a second distribution may lay the same version over the first.
owners = sorted(set(importlib.metadata.packages_distributions().get("triton", ())))
print("triton", triton.__version__, triton.__file__, "of", *owners)
PY
}

unchanged() { # PYTHON COMMAND...: runs the command; fails if it fails or leaves another torch or triton
    local before after
    before=$(torch_and_triton "$1") || return
    "${@:2}" || return
    after=$(torch_and_triton "$1") || return
    if [[ $after != "$before" ]]; then
        printf '%s\nchanged\n%s\nto\n%s\n' "${*:2}" "$before" "$after" >&2
        return 1
    fi
}
