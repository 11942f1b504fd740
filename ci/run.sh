#!/usr/bin/env bash
# ci/run.sh demo [ARGUMENTS]   python -m xkv demo, on a real trace where one lies beside the checkout
# ci/run.sh test               lint, the documentation, then every tier of the tests that this machine can run
# ci/run.sh lint               lint alone
# ci/run.sh docs               the documentation's site, into the folder site of the checkout; a warning is an error
#
# Makes what is missing first, in a virtual environment: XKV_VENV, or .venv in the checkout. The documentation's
# tools have one of their own beside it, with -docs behind its name.
# A torch and triton that `python3` already has (an engine's image, a GPU node) are used as they are.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
venv=${XKV_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
py=$venv/bin/python
docs_py=$venv-docs/bin/python

setup() {
    local want found packages=()
    # What the environment depends on; unchanged since the last time means nothing to do.
    want=$(cat "$root/pyproject.toml"; grep '^__version__' "$root/xkv/__init__.py"; echo "$root")
    if [[ -x $py && -f $venv/xkv-stamp && $(<"$venv/xkv-stamp") == "$want" ]]; then return; fi

    echo "setting up $venv" >&2
    [[ -x $py ]] || make_venv "$venv"
    if ! has_torch "$py"; then
        if [[ -e /dev/kfd ]] && ! nvidia-smi -L >/dev/null 2>&1; then
            echo "ci/run.sh: an AMD GPU, but python3 has no torch with triton: install AMD's build first" >&2
            exit 1
        fi
        found=$(dependency_group "$py" torch)
        mapfile -t packages <<<"$found"
    fi
    # Not beside a node's own packages (make_venv): an engine there needs the huggingface-hub that it came with.
    if ! compgen -G "$venv/lib/python*/site-packages/node.pth" >/dev/null; then
        found=$(dependency_group "$py" hub)
        packages+=("$found")
    fi
    "$py" -m pip install -qq -e "${root}[test,lint,plot]" "${packages[@]}"
    echo "$want" >"$venv/xkv-stamp"
}

demo() {
    local trace=$root/../shared/traces/mooncake_conversation.jsonl
    if [[ -f $trace && " $*" != *" --trace"* ]]; then set -- --trace "$trace" "$@"; fi
    exec "$py" -m xkv demo "$@"
}

docs_setup() { # no torch: the tools read the package and never import it
    local want packages=()
    want=$(dependency_group python3 docs) || return
    if [[ -x $docs_py && -f $venv-docs/xkv-stamp && $(<"$venv-docs/xkv-stamp") == "$want" ]]; then return; fi

    echo "setting up $venv-docs" >&2
    mapfile -t packages <<<"$want"
    [[ -x $docs_py ]] || python3 -m venv "$venv-docs" || return
    "$docs_py" -m pip install -qq "${packages[@]}" || return
    echo "$want" >"$venv-docs/xkv-stamp"
}

# The variable silences a notice about MkDocs' future, not a warning about these pages.
docs() { docs_setup && NO_MKDOCS_2_WARNING=1 "$docs_py" -m mkdocs build --strict --site-dir site; }

failed=()
tier() { # NAME COMMAND...: a failure is noted, and what follows still runs
    echo "== $1"
    "${@:2}" || failed+=("$1")
}

lint() {
    local bin=$venv/bin
    tier ruff "$py" -m ruff check .
    tier format "$py" -m ruff format --check --quiet .
    tier mypy "$py" -m mypy
    tier shellcheck "$bin/shellcheck" -x ci/*.sh .ci/run
    # The schema finds a misspelt key, zizmor what an attacker would. Neither needs the network.
    tier workflows "$bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
    tier issue-forms "$bin/check-jsonschema" --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
    tier zizmor "$bin/zizmor" --quiet --offline --min-severity medium .github/workflows
}

run_tests() {
    unset TRITON_INTERPRET # Triton reads it at import: each tier is a process of its own
    lint
    tier docs docs
    # Offline compilation, and the reference that CPU tensors get.
    tier plain "$py" -m pytest -n 2 -m "not gpu and not kernel and not interpret"
    # A machine that must have a GPU gets the tier even if torch sees none: the tests then fail.
    if [[ -n ${XKV_REQUIRE_ARCH:-} ]] ||
        "$py" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        tier gpu "$py" -m pytest "${gpu_tier[@]}"
    fi
    if ((${#failed[@]})); then echo "== failed so far: ${failed[*]}"; fi
    # Last, and nothing printed after it: pytest's own summary closes the output.
    tier interpreter env TRITON_INTERPRET=1 "$py" -m pytest -n 2 -m "not compile and not gpu and not repo"
    exit $((${#failed[@]} > 0))
}

case ${1:-} in
    demo)
        setup
        demo "${@:2}"
        ;;
    test)
        setup
        cd "$root"
        run_tests
        ;;
    lint)
        setup
        cd "$root"
        lint
        exit $((${#failed[@]} > 0))
        ;;
    docs)
        cd "$root"
        docs
        ;;
    *)
        echo "usage: ci/run.sh demo [ARGUMENTS] | test | lint | docs" >&2
        exit 2
        ;;
esac
