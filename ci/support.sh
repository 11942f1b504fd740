#!/usr/bin/env bash
# ci/support.sh [--check | --doc]: ci/support.py in an environment of its own, with what pyproject.toml names for it
# (tool.xkv.support).
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
py=$venv/bin/python
mapfile -t packages < <("$py" - "$root/pyproject.toml" <<'PY'
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["tool"]["xkv"]["support"], sep="\n")
PY
)
"$py" -m pip install -q "${packages[@]}"
"$py" "$root/ci/support.py" "$@"
