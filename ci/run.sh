#!/usr/bin/env bash
# ci/run.sh demo [ARGUMENTS]   python -m xkv demo, on a real trace where one lies beside the checkout
# ci/run.sh test               lint, then every tier of the tests that this machine can run
#
# Makes what is missing first, in a virtual environment: XKV_VENV, or .venv in the checkout.
# A torch and triton that `python3` already has (an engine's image, a GPU node) are used as they are.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${XKV_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
py=$venv/bin/python

# From /, lest a folder named triton in the current one should pass for it.
has_torch() { (cd / && "$1" -c 'import torch, triton' >/dev/null 2>&1); }

setup() {
    local want extras=test
    # What the environment depends on; unchanged since the last time means nothing to do.
    want=$(cat "$root/pyproject.toml"; grep '^__version__' "$root/xkv/__init__.py"; echo "$root")
    if [[ -x $py && -f $venv/xkv-stamp && $(<"$venv/xkv-stamp") == "$want" ]]; then return; fi

    echo "setting up $venv" >&2
    if [[ ! -x $py ]]; then
        if has_torch python3; then
            # --system-site-packages would show the base Python's packages, not those of the virtual
            # environment that python3 itself may be in, as it is in most images; hence node.pth.
            # Through it the node's pip serves too: a new one would lay its setuptools over the node's.
            if python3 -m pip --version >/dev/null 2>&1; then
                python3 -m venv --without-pip "$venv"
            else
                python3 -m venv "$venv"
            fi
            python3 - >"$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/node.pth" <<'PY'
import sys
for path in sys.path:
    if path.endswith("-packages"):
        print(f"import site; site.addsitedir({path!r})")
PY
        else
            python3 -m venv "$venv"
        fi
    fi
    if ! has_torch "$py"; then
        if nvidia-smi -L >/dev/null 2>&1; then
            extras+=,cuda
        elif [[ -e /dev/kfd ]]; then
            echo "ci/run.sh: an AMD GPU, but python3 has no torch with triton: install AMD's build first" >&2
            exit 1
        else
            extras+=,cpu
        fi
    fi
    "$py" -m pip install -qq --no-input --disable-pip-version-check -e "${root}[$extras]"
    echo "$want" >"$venv/xkv-stamp"
}

demo() {
    local trace=$root/../shared/traces/mooncake_conversation.jsonl
    if [[ -f $trace && " $*" != *" --trace"* ]]; then set -- --trace "$trace" "$@"; fi
    exec "$py" -m xkv demo "$@"
}

failed=()
tier() { # NAME COMMAND...: a failure is noted, and what follows still runs
    echo "== $1"
    "${@:2}" || failed+=("$1")
}

run_tests() {
    cd "$root"
    unset TRITON_INTERPRET # Triton reads it at import: each tier is a process of its own
    tier ruff "$py" -m ruff check .
    tier mypy "$py" -m mypy
    # Offline compilation, and the reference that CPU tensors get.
    tier plain "$py" -m pytest -n 2 -m "not gpu and not kernel and not interpret"
    # A machine that must have a GPU gets the tier even if torch sees none: the tests then fail.
    if [[ -n ${XKV_REQUIRE_ARCH:-} ]] ||
        "$py" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        tier gpu "$py" -m pytest -n 8 -m "not compile and not interpret"
    fi
    if ((${#failed[@]})); then echo "== failed so far: ${failed[*]}"; fi
    # Last, and nothing printed after it: pytest's own summary closes the output.
    tier interpreter env TRITON_INTERPRET=1 "$py" -m pytest -n 2 -m "not compile and not gpu"
    exit $((${#failed[@]} > 0))
}

case ${1:-} in
    demo)
        setup
        demo "${@:2}"
        ;;
    test)
        setup
        run_tests
        ;;
    *)
        echo "usage: ci/run.sh demo [ARGUMENTS] | test" >&2
        exit 2
        ;;
esac
