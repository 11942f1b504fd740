#!/usr/bin/env bash
# ci/engines.sh FOLDER [NAME...]        unpacks the engines of ci/engines.toml, each into FOLDER/NAME,
#                                       together with the packages that importing its modules needs
# ci/engines.sh --test FOLDER [NAME...] runs the tests of each engine, whose own loader finds xkv's plugin
#
# Needs the environment of ci/run.sh (XKV_VENV, or .venv in the checkout), and for the first form a package index.
# Does not change that environment: an engine's own torch is never installed. XKV_ENGINES_PYTHON=3.12 unpacks for
# another Python than that of the environment, for a node without a network.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
py=${XKV_VENV:-$root/.venv}/bin/python
[[ -x $py ]] || py=python3
testing=
if [[ ${1:-} == --test ]]; then
    testing=1
    shift
fi
if (($# == 0)); then
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift

row() { # NAME KEY: prints one entry a line; without arguments: the names of the engines
    "$py" - "$root/ci/engines.toml" "$@" <<'PY'
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

path, *keys = sys.argv[1:]
with open(path, "rb") as file:
    found = tomllib.load(file)["engines"]
for key in keys:
    found = found.get(key, []) if isinstance(found, dict) else found
print(*found, sep="\n")
PY
}

install() { # FOLDER ARGUMENTS...
    local other=()
    if [[ -n ${XKV_ENGINES_PYTHON:-} ]]; then
        other=(--python-version "$XKV_ENGINES_PYTHON" --only-binary=:all:)
    fi
    "$py" -m pip install -q --disable-pip-version-check --upgrade --target "$1" "${other[@]}" "${@:2}"
}

# Creates a stand-in for a module that needs a GPU, a browser or another torch, with the names that an engine imports.
standin() { # FOLDER MODULE:NAME,NAME
    local module=${2%%:*} path=$1
    local parts=() part
    IFS=. read -ra parts <<<"$module"
    for part in "${parts[@]}"; do
        path+=/$part
        mkdir -p "$path"
        touch "$path/__init__.py"
    done
    tr , '\n' <<<"${2#*:}" | sed 's/$/ = None/' >"$path/__init__.py"
}

unpack() { # NAME
    local at=$folder/$1 lines
    rm -rf "${at:?}"
    mapfile -t lines < <(row "$1" beside)
    install "$at" "${lines[@]}"
    mapfile -t lines < <(row "$1" wheels)
    install "$at" --no-deps "${lines[@]}"
    while read -r line; do rm -rf "${at:?}/${line:?}"; done < <(row "$1" unused | grep .)
    while read -r line; do standin "$at" "$line"; done < <(row "$1" standins | grep .)
    find "$at" \( -name __pycache__ -o -name bin \) -prune -exec rm -rf {} +
    echo "$1: $(du -sh "$at" | cut -f1)"
}

# Writes only the entry points of a distribution: the tests run the code of the checkout.
plugin() {
    "$py" - "$root/pyproject.toml" "$1" <<'PY'
import sys
from pathlib import Path

try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib

path, at = sys.argv[1:]
with open(path, "rb") as file:
    groups = tomllib.load(file)["project"]["entry-points"]
info = Path(at) / "xkv-0.dist-info"
info.mkdir(parents=True, exist_ok=True)
(info / "METADATA").write_text("Metadata-Version: 2.1\nName: xkv\nVersion: 0\n")
lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()]
(info / "entry_points.txt").write_text("\n".join(lines))
PY
}

run_tests() { # NAME
    local tests at=$folder/$1 links
    mapfile -t tests < <(row "$1" tests)
    links=$(mktemp -d)
    plugin "$links"
    local status=0
    # without a GPU the kernels run in Triton's interpreter
    if ! "$py" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then export TRITON_INTERPRET=1; fi
    # -W default: most warnings come from the engines and the packages that they import
    XKV_ENGINES=$folder PYTHONPATH=$root:$at:$links${PYTHONPATH:+:$PYTHONPATH} "$py" -m pytest -p no:cacheprovider -W default \
        -n "${XKV_ENGINES_WORKERS:-0}" "${tests[@]}" || status=$?
    rm -rf "$links"
    return "$status"
}

cd "$root"
if (($# == 0)); then
    mapfile -t names < <(row)
    set -- "${names[@]}"
fi
failed=()
for name; do
    echo "== $name"
    if [[ -n $testing ]]; then run_tests "$name" || failed+=("$name"); else unpack "$name"; fi
done
if ((${#failed[@]})); then
    echo "ci/engines.sh: failed: ${failed[*]}" >&2
    exit 1
fi
