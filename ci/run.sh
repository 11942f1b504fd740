#!/usr/bin/env bash
# ci/run.sh demo [ARGUMENTS]   runs python -m xkv demo, on a real trace if there is one beside the checkout
# ci/run.sh test               runs lint, builds the documentation, runs every test tier that this machine can run
# ci/run.sh lint               runs lint only
# ci/run.sh docs               builds the documentation into the folder site of the checkout; a warning is an error
#
# First installs what is missing into a virtual environment: XKV_VENV, or .venv in the checkout. The tools of the
# documentation have a second environment, with -docs appended to the name.
# If `python3` already has a torch and triton (an engine's image, a GPU node), these are used unchanged.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
venv=${XKV_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
py=$venv/bin/python
docs_py=$venv-docs/bin/python

setup() {
    local want found packages=()
    # The environment depends on these; if they are unchanged, there is nothing to do.
    want=$(cat "$root/pyproject.toml"; grep '^__version__' "$root/xkv/__init__.py"; echo "$root")
    if [[ -x $py && -f $venv/xkv-stamp && $(<"$venv/xkv-stamp") == "$want" ]]; then return; fi

    echo "setting up $venv" >&2
    [[ -x $py ]] || make_venv "$venv"
    if ! has_torch "$py"; then
        if [[ -e /dev/kfd ]] && ! nvidia-smi -L >/dev/null 2>&1; then
            echo "ci/run.sh: this node has an AMD GPU, but python3 has no torch with triton: install AMD's build first" >&2
            exit 1
        fi
        found=$(dependency_group "$py" torch)
        mapfile -t packages <<<"$found"
    fi
    # Not if the node's own packages are visible (make_venv): an engine there needs its own huggingface-hub.
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

docs_setup() { # without torch: the tools parse the package and never import it
    local want packages=()
    want=$(dependency_group python3 docs) || return
    if [[ -x $docs_py && -f $venv-docs/xkv-stamp && $(<"$venv-docs/xkv-stamp") == "$want" ]]; then return; fi

    echo "setting up $venv-docs" >&2
    mapfile -t packages <<<"$want"
    [[ -x $docs_py ]] || python3 -m venv "$venv-docs" || return
    "$docs_py" -m pip install -qq "${packages[@]}" || return
    echo "$want" >"$venv-docs/xkv-stamp"
}

# The variable silences a notice about the future of MkDocs, not a warning about these pages.
docs() { docs_setup && NO_MKDOCS_2_WARNING=1 "$docs_py" -m mkdocs build --strict --site-dir site; }

failed=()
tier() { # NAME COMMAND...: records a failure and continues
    echo "== $1"
    "${@:2}" || failed+=("$1")
}

lint() {
    local bin=$venv/bin
    tier ruff "$py" -m ruff check .
    tier format "$py" -m ruff format --check --quiet .
    tier mypy "$py" -m mypy
    tier shellcheck "$bin/shellcheck" -x ci/*.sh .ci/run
    # The schemas find misspelt keys, zizmor security problems. Neither needs the network.
    tier workflows "$bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
    tier issue-forms "$bin/check-jsonschema" --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
    tier zizmor "$bin/zizmor" --quiet --offline --min-severity medium .github/workflows
}

run_tests() {
    unset TRITON_INTERPRET # Triton reads it at import, so that each tier needs its own process
    lint
    tier docs docs
    # Offline compilation, and the reference that serves CPU tensors.
    tier plain "$py" -m pytest -n 2 -m "not gpu and not kernel and not interpret"
    # With XKV_REQUIRE_ARCH the tier also runs if torch sees no GPU: the tests then fail.
    if [[ -n ${XKV_REQUIRE_ARCH:-} ]] ||
        "$py" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        tier gpu "$py" -m pytest "${gpu_tier[@]}"
    fi
    if ((${#failed[@]})); then echo "== failed so far: ${failed[*]}"; fi
    # Last, so that the output ends with pytest's own summary.
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
