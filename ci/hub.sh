#!/usr/bin/env bash
# ci/hub.sh FOLDER   writes xkv in the layout that Hugging Face's `kernels` loads:
#                    kernels.get_local_kernel(Path(FOLDER))
#
# There is one build variant, "universal", without compiled code. Nothing is published.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if (($# != 1)); then
    echo "usage: ci/hub.sh FOLDER" >&2
    exit 2
fi
variant=$(realpath -m "$1")/build/torch-universal
if [[ -e $variant ]]; then
    echo "ci/hub.sh: $variant already exists" >&2
    exit 1
fi

mkdir -p "$variant"
cd "$root/xkv"
find . -type f -not -path '*/__pycache__/*' -print0 | xargs -0 cp --parents -t "$variant"
cp "$root/LICENSE" "$variant"

cd "$variant"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' __init__.py)
# The id is the name under which the loader imports this copy, and the namespace in torch.library. It depends on the
# content, so that copies with different content do not share it.
digest=$(find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
# The backend must be one that `kernels` knows; it is compared with the device only if archs are listed.
# python-depends accepts only names that `kernels` lists; `packaging`, which xkv needs, is installed with `kernels`.
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
