#!/usr/bin/env bash
# ci/readers.sh FOLDER   runs Aiter's and SGLang's Triton attention over xkv's tables, beside dense attention
#
# FOLDER holds what it reads, neither of which is installed:
#
#   FOLDER/aiter            a checkout of ROCm/aiter; of it, aiter/ops/triton is needed
#   FOLDER/sglang-0.5.23    SGLang's wheel: ci/engines.sh FOLDER sglang-0.5.23 unpacks it
#
# One of the two is enough; the other's tests are skipped, and said to be. On a GPU the compiled kernels run, with
# sizes as in an engine; without one, Triton's interpreter runs them, with tiny ones. If XKV_AMD_EXECUTOR and
# TINYGRAD are set, gfx942 machine code is executed on the CPU in addition (ci/README.md). Fails if nothing ran.
#
# Needs the environment of ci/run.sh (XKV_VENV, or .venv in the checkout), or a python3 with torch, triton, pytest.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
py=${XKV_VENV:-$root/.venv}/bin/python
[[ -x $py ]] || py=python3
if (($# != 1)); then
    sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
folder=$(cd "$1" && pwd)
unset XKV_AITER XKV_ENGINES
found=()
if [[ -d $folder/aiter ]]; then
    export XKV_AITER=$folder/aiter
    found+=(aiter)
fi
if [[ -d $folder/sglang-0.5.23 ]]; then
    export XKV_ENGINES=$folder
    found+=(sglang)
fi
if ((${#found[@]} == 0)); then
    echo "ci/readers.sh: $folder holds neither aiter nor sglang-0.5.23" >&2
    exit 1
fi

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
failed=0

# Runs some of the tests of what was found, and fails if one fails or those of a package all were skipped: a run
# without tests proves nothing.
leg() { # NAME PYTEST-ARGUMENTS...
    local name=$1 package
    for package in "${found[@]}"; do
        echo "== $package, $name"
        "$py" -m pytest -p no:cacheprovider -q -n "${XKV_READERS_WORKERS:-0}" --junitxml "$reports/tests.xml" "${@:2}" \
            "$root/tests/kernel/test_${package}_readers.py" || failed=1
        "$py" - "$reports/tests.xml" "$package, $name" <<'PY' || failed=1
import sys
import xml.etree.ElementTree as ET

suites = ET.parse(sys.argv[1]).getroot().iter("testsuite")
tests, skipped = map(sum, zip(*((int(s.get("tests")), int(s.get("skipped"))) for s in suites), strict=True))
if tests == skipped:
    sys.exit(f"ci/readers.sh: {sys.argv[2]}: none of {tests} tests ran")
print(f"{sys.argv[2]}: {tests - skipped} tests ran, {skipped} were skipped")
PY
    done
}

cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if "$py" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    leg "on a GPU" -m kernel
else
    TRITON_INTERPRET=1 leg "in the interpreter" -m kernel
fi
if [[ -n ${XKV_AMD_EXECUTOR:-} && -n ${TINYGRAD:-} ]]; then
    (
        unset TRITON_INTERPRET
        leg "gfx942 machine code, emulated" -m compile
        exit "$failed"
    ) || failed=1
fi
exit "$failed"
