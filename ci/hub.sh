#!/usr/bin/env bash
# ci/hub.sh FOLDER   lays xkv out as Hugging Face's `kernels` loads it: kernels.get_local_kernel(Path(FOLDER))
#
# One build variant, "universal": there is no compiled code. Nothing is published.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if (($# != 1)); then
    echo "usage: ci/hub.sh FOLDER" >&2
    exit 2
fi
variant=$(realpath -m "$1")/build/torch-universal
if [[ -e $variant ]]; then
    echo "ci/hub.sh: $variant is there already" >&2
    exit 1
fi

mkdir -p "$variant"
cd "$root/xkv"
find . -type f -not -path '*/__pycache__/*' -print0 | xargs -0 cp --parents -t "$variant"
cp "$root/LICENSE" "$variant"

cd "$variant"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' __init__.py)
# The id is the name that the loader imports this copy under, and torch.library's namespace: one for each content.
digest=$(find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
# The backend has to be one that `kernels` knows. It compares it with the device only where archs are listed.
# python-depends takes what `kernels` lists alone; `packaging`, which xkv needs, comes with `kernels`.
cat >metadata.json <<JSON
{
  "name": "xkv",
  "id": "xkv_${digest:0:12}",
  "version": ${version%%.*},
  "license": "Apache-2.0",
  "python-depends": [],
  "backend": {"type": "cuda"}
}
JSON
echo "$variant"
