#!/usr/bin/env bash
# ci/versions.sh [VERSION...]   runs the tests of launcher and compiler with each Triton whose launcher xkv can
#                               record (pyproject.toml, tool.xkv.tritons), each in its own folder
#
# Needs the environment of ci/run.sh (XKV_VENV, or .venv in the checkout), and a package index. Takes about three
# minutes for each version. Does not change that environment.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
py=${XKV_VENV:-$root/.venv}/bin/python
if (($# == 0)); then
    mapfile -t versions < <(cd "$root" && "$py" - <<'PY'
import re
from pathlib import Path

# tomllib is not in Python 3.10
(line,) = re.findall(r"^tritons = \[(.*)\]$", Path("pyproject.toml").read_text(), re.M)
print(*re.findall(r'"(.*?)"', line), sep="\n")
PY
    )
    set -- "${versions[@]}"
fi
unset TRITON_INTERPRET
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$root"
failed=()
for version; do
    echo "== triton $version"
    "$py" -m pip install -q --no-deps --target "$tmp/$version" "triton==$version"
    # takes precedence over the environment's triton
    PYTHONPATH=$tmp/$version "$py" - "$version" <<'PY'
import sys

import triton

assert triton.__version__ == sys.argv[1], triton.__file__
PY
    # 3.9 warns where it is unset, which the tests take for an error; xkv's kernels have no floats
    PYTHONPATH=$tmp/$version TRITON_CACHE_DIR=$tmp/cache TRITON_DEFAULT_FP_FUSION=1 "$py" -m pytest -q -n 2 -p no:cacheprovider \
        -m "compile" tests/host/test_launch.py tests/kernel/test_compile.py || failed+=("$version")
    rm -rf "${tmp:?}/$version"
done
if ((${#failed[@]})); then
    echo "ci/versions.sh: failed with triton ${failed[*]}" >&2
    exit 1
fi
