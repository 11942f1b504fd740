#!/usr/bin/env bash
# ci/serve.sh ENGINE [CASE...]            runs vllm or sglang with xkv's plugin and without it, and compares
# ci/serve.sh pack FOLDER [PART...]       packs engines for a node without an index (ci/engines.toml, serve)
# ci/serve.sh unpack FOLDER TARGET PART.. unpacks them there, each into TARGET/PART: give it as --site TARGET/PART
#
# ENGINE is installed beside XKV_SERVE_PYTHON (python3), or lies in folders named with --site; --help says the rest.
# The engine is its own, whole, with a small model of random weights. Tokens and log-probabilities must be equal bit
# for bit; a table shows calls served and handed back, compiles, step time, and host and device time of each replaced
# call. It lands in $OUT, or ./out, with the logs' ends.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
py=${XKV_SERVE_PYTHON:-python3}
export PYTHONPATH=$root/ci${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
case ${1:-} in
    pack | unpack) exec "$py" -m "serve.$1" "${@:2}" ;;
    "" | -*)
        sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
    *) exec "$py" -m serve "$@" ;;
esac
