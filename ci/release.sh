#!/usr/bin/env bash
# ci/release.sh [TAG]   builds the wheel into dist, installs it into a clean environment, runs the CPU demo
#
# With a TAG, fails if it does not match the version of the package: v1.2.3 for 1.2.3.
set -euo pipefail

# shellcheck source=ci/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/xkv/__init__.py")
if [[ -n ${1:-} && $1 != "v$version" ]]; then
    echo "ci/release.sh: tag $1, but the package is $version: expected v$version" >&2
    exit 1
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
py=$tmp/venv/bin/python
wheel=$(build_wheel "$py" "$tmp")
found=$(dependency_group "$py" torch)
mapfile -t packages <<<"$found"
"$py" -m pip install -q "${wheel}[bench]" "${packages[@]}"
cd "$tmp"
if [[ $("$py" -m xkv --version) != "xkv $version" ]]; then
    echo "ci/release.sh: $wheel says $("$py" -m xkv --version), not $version" >&2
    exit 1
fi
"$py" -m xkv demo --steps 50
mkdir -p "$root/dist"
rm -f "$root"/dist/xkv-*
cp "$wheel" "$root/dist"
echo "$root/dist/${wheel##*/}"
