#!/usr/bin/env bash
# ci/sanitize.sh   runs NVIDIA's compute-sanitizer on a part of the hostile cases: memcheck, initcheck, racecheck
#
# Each tool must find the faults that are planted for it, and nothing in the hostile cases. Every tensor is at the
# end of its own allocation. The tools run in parallel; their logs are written to XKV_OUT.
#
#   XKV_SANITIZER   compute-sanitizer (default: from PATH, the wheel nvidia-cuda-sanitizer-api, or /usr/local/cuda)
#   XKV_PYTHON      a Python with torch and triton (default: python3)
#   XKV_OUT         the folder for the logs (default: out/sanitize in the checkout)
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if (($#)); then
    echo "usage: ci/sanitize.sh" >&2
    exit 2
fi
# the interpreter itself, not a shim: only the process that is started is checked
py=$("${XKV_PYTHON:-python3}" -c 'import sys; print(sys.executable)')
out=${XKV_OUT:-$root/out/sanitize}
mkdir -p "$out"
out=$(cd "$out" && pwd)

find_sanitizer() {
    local wheel
    if [[ -n ${XKV_SANITIZER:-} ]]; then
        echo "$XKV_SANITIZER"
        return
    fi
    command -v compute-sanitizer && return
    wheel=$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia
    for found in "$wheel"/*/bin/compute-sanitizer /usr/local/cuda/bin/compute-sanitizer; do
        if [[ -x $found ]]; then
            echo "$found"
            return
        fi
    done
    # wheels before 13.5 lack TreeLauncherSubreaper, without which no process can be started
    echo "ci/sanitize.sh: no compute-sanitizer: set XKV_SANITIZER to the CUDA toolkit's, or" \
        "pip install 'nvidia-cuda-sanitizer-api>=13.5'" >&2
    return 1
}
sanitizer=$(find_sanitizer)

# A tool, a fault of ci/sanitized.py, and the tool's message for it.
faults=(
    "memcheck read Invalid __global__ read of size 4 bytes"
    "memcheck write Invalid __global__ write of size 4 bytes"
    "initcheck unwritten Uninitialized __global__ memory read of size 4 bytes"
    "racecheck barriers Race reported between"
)
declare -A options=(
    # torch's kernels are not checked, but initcheck must see what they write
    [memcheck]="--kernel-name kns=xkv_build --padding 4096 --report-api-errors no"
    [initcheck]="--check-api-memory-access no"
    [racecheck]="--kernel-name kns=xkv_build"
)
readonly FOUND=66

sanitized() { # TOOL WHAT: returns the sanitizer's exit status; its output goes to the log
    # shellcheck disable=SC2086 # options are words
    "$sanitizer" --tool "$1" ${options[$1]} --error-exitcode $FOUND --target-processes application-only \
        --launch-timeout 60 "$py" "$root/ci/sanitized.py" "$2" >"$out/$1-$2.txt" 2>&1
}

finds() { # TOOL FAULT WORDS: whether the tool reports the fault for xkv's kernel
    local status=0
    sanitized "$1" "$2" || status=$?
    if grep -q "$3" "$out/$1-$2.txt" && grep -q xkv_build "$out/$1-$2.txt"; then
        echo "$1: finds a planted fault: $2 (${SECONDS} s)"
    else
        echo "$1: does not find a planted fault: $2 (status $status): $out/$1-$2.txt" >&2
        return 1
    fi
}

clean() { # TOOL
    local status=0
    sanitized "$1" slice || status=$?
    if ((status == 0)) && grep -q "SUMMARY: 0" "$out/$1-slice.txt" && grep -q "[1-9] cases$" "$out/$1-slice.txt"; then
        echo "$1: clean: $(grep "cases$" "$out/$1-slice.txt") (${SECONDS} s)"
    else
        echo "$1: not clean (status $status): $out/$1-slice.txt" >&2
        return 1
    fi
}

unset TRITON_INTERPRET
export PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
echo "$sanitizer"
# Compiles the kernels of the slice, and checks that its results are right without a checker.
"$py" "$root/ci/sanitized.py" slice >"$out/slice.txt" || {
    echo "the slice fails by itself: $out/slice.txt" >&2
    exit 1
}
echo "without a checker: $(<"$out/slice.txt") (${SECONDS} s)"

jobs=()
for fault in "${faults[@]}"; do
    read -r tool name words <<<"$fault"
    finds "$tool" "$name" "$words" &
    jobs+=($!)
done
for tool in memcheck initcheck racecheck; do
    clean "$tool" &
    jobs+=($!)
done
failed=0
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
exit $failed
