#!/usr/bin/env bash
# Fetches NVIDIA's run-time compiler from PyPI into a folder: lib/ with libnvrtc.so.13 and its builtins, include/ with cuda_fp16.h and
# others. Nothing is installed and no GPU is needed. The wheels are under NVIDIA's licence: they are fetched, never kept in a repository.
#
# usage: nvrtc.sh [folder]     (otherwise $MDLC_NVRTC, or ~/.cache/mdlc/nvrtc); prints the folder
set -euo pipefail

# 13.0 emits PTX 9.0, which drivers from 580 on take; a newer compiler's PTX they refuse.
wheels=(nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96)

dir=${1:-${MDLC_NVRTC:-${XDG_CACHE_HOME:-$HOME/.cache}/mdlc/nvrtc}}
if [[ -e $dir/lib/libnvrtc.so.13 && -e $dir/include/cuda_fp16.h ]]; then
    echo "$dir"
    exit
fi
command -v python3 >/dev/null || { echo "needs python3 with pip, to fetch wheels" >&2; exit 1; }

mkdir -p "$(dirname "$dir")"
new=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$new"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2010_x86_64 --platform manylinux_2_12_x86_64 \
    --dest "$new" "${wheels[@]}" >&2
python3 - "$new" <<'EOF'
import pathlib, sys, zipfile
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    zipfile.ZipFile(wheel).extractall(sys.argv[1])
    wheel.unlink()
EOF
mkdir -p "$dir"
cp -r "$new"/nvidia/cu13/{lib,include} "$dir"/
echo "$dir"
