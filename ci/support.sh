#!/usr/bin/env bash
# ci/support.sh [--check | --doc]: runs ci/support.py in a temporary environment with the packages that
# ci/engines.toml lists under "support".
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
py=$venv/bin/python
mapfile -t packages < <("$py" - "$root/ci/engines.toml" <<'PY'
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["support"], sep="\n")
PY
)
"$py" -m pip install -q "${packages[@]}"
"$py" "$root/ci/support.py" "$@"
