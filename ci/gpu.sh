#!/usr/bin/env bash
# ci/gpu.sh ARCH   the GPU leg, on a node whose python3 has its vendor's torch and triton: installs the
#                  wheel beside them, runs the GPU tier, the demo and a short benchmark
#
# Fails if the GPUs of the node are not ARCH (sm90, gfx942, ...), or if torch or triton have changed afterwards.
# Changes nothing outside XKV_OUT and a temporary folder.
#
#   XKV_OUT      the folder for info.txt, tests.xml, demo.txt and bench.json (default: out in the checkout)
#   XKV_WHEEL    the wheel to install (default: one built from the checkout)
#   XKV_WHEELS   for an offline node: the folder with the wheels of the test tools (ci/README.md)
#   XKV_TESTS    files, folders or tests of the checkout in place of all tests; the last line then names them
#   XKV_DEMO     arguments of the demo (default: none)
#   XKV_BENCH    arguments of the benchmark (default: --quick)
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
    sm[0-9]*) vendor=cuda ;;
    gfx[0-9]*) vendor=hip ;;
    *)
        echo "usage: ci/gpu.sh ARCH, such as sm90 or gfx942" >&2
        exit 2
        ;;
esac
# An arch that is only overridden would not be tested.
unset XKV_ARCH TRITON_INTERPRET
words() { [[ -z $1 ]] || xargs printf '%s\n' <<<"$1"; } # one a line; quotes keep some together
for text in "${XKV_TESTS:-}" "${XKV_DEMO:-}" "${XKV_BENCH:-}"; do
    words "$text" >/dev/null # a quote that is left open ends the script here, but not below
done
mapfile -t chosen < <(words "${XKV_TESTS:-tests}")
mapfile -t demo < <(words "${XKV_DEMO:-}")
mapfile -t bench < <(words "${XKV_BENCH:---quick}")
export XKV_REQUIRE_ARCH=$1

found=$(torch_and_triton python3)
echo "$found"
if [[ $found != "$vendor "* ]]; then
    echo "ci/gpu.sh: $1 needs a torch built for $vendor, and python3 has one for ${found%% *}" >&2
    exit 1
fi

out=${XKV_OUT:-$root/out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
step() { echo "== $* (${SECONDS} s)"; }

step install
make_venv "$tmp/venv"
py=$tmp/venv/bin/python
wheel=${XKV_WHEEL:-$(build_wheel "$py" "$tmp")}
unchanged "$py" "$py" -m pip install -q --no-deps "$wheel"
unchanged "$py" "$py" -m pip install -q "${wheel}[test]"
cd "$tmp"
if [[ $("$py" -c 'import xkv; print(xkv.__file__)') != "$tmp"/* ]]; then
    echo "ci/gpu.sh: the tests would not run the wheel; unset PYTHONPATH" >&2
    exit 1
fi
"$py" -m xkv info | tee "$out/info.txt"

step "GPU tier"
rm -f "$out/failed.txt"
XKV_FAILED="$out/failed.txt" "$py" -m pytest -c "$root/pyproject.toml" -p no:cacheprovider "${gpu_tier[@]}" \
    --junitxml "$out/tests.xml" "${chosen[@]/#/$root/}"

step demo
"$py" -m xkv demo "${demo[@]}" | tee "$out/demo.txt"

step benchmark
rm -f "$out/bench.json"
"$py" -m xkv bench "${bench[@]}" --json "$out/bench.json"
"$py" -m json.tool "$out/bench.json" /dev/null

step torch and triton
for python in python3 "$py"; do
    if [[ $(torch_and_triton "$python") != "$found" ]]; then
        printf 'was\n%s\nand %s has\n%s\n' "$found" "$python" "$(torch_and_triton "$python")" >&2
        exit 1
    fi
done
step "done: $out${XKV_TESTS:+, of the tests $XKV_TESTS alone}"
