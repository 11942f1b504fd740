#!/usr/bin/env bash
# ci/serve.sh ENGINE [CASE...]            runs vllm or sglang with xkv's plugin and without it, and compares
# ci/serve.sh pack FOLDER [PART...]       packs engines for a node without a package index (ci/engines.toml, serve)
# ci/serve.sh unpack FOLDER TARGET PART.. unpacks them there into TARGET/PART, for use as --site TARGET/PART
#
# ENGINE is installed for XKV_SERVE_PYTHON (python3), or in folders that --site names; --help lists all options.
# The whole engine runs, with a small model of random weights. Tokens and log-probabilities must be equal bit for
# bit. A table shows the calls that xkv served and passed to the original, compiles, step time, and host and device
# time of each replaced call. It is written to $OUT, or ./out, with the ends of the logs.
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
