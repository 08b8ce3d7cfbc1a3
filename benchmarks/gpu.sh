#!/usr/bin/env bash
# The measurements of benchmarks/gpu.py, on a machine that has a GPU and no network:
#
#   benchmarks/gpu.sh prepare FOLDER DATA        where there is a network; DATA is the folder
#                                                with FSDD's fsdd.tar and make_corpus.py
#   benchmarks/gpu.sh FOLDER OUT [OPTION ...]    on the GPU's machine, from the repository;
#                                                OPTIONs are gpu.py's (--help lists them)
#
# FOLDER needs less than 64 MiB. The GPU's machine needs a python3 of version 3.12 with
# torch 2.11 or later, torchaudio, numpy, scipy and numba; what it has stays as it is.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
most=64 # MiB

die() { echo "gpu.sh: $*" >&2; exit 1; }

prepare() { # FOLDER DATA
    local folder=$1 data=$2 file number platforms=()
    for file in fsdd.tar make_corpus.py; do
        [ -f "$data/$file" ] || die "no $data/$file; expected the folder of the FSDD data"
    done
    mkdir -p "$folder/wheels"
    cp "$data/fsdd.tar" "$data/make_corpus.py" "$folder/"
    for number in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${number}_x86_64"); done
    platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
    # antlr4 is to be had as source alone: it is pure Python, so any Python makes its wheel
    grep -v '^#\|^antlr4' "$here/gpu_wheels.txt" |
        xargs python3 -m pip download --quiet --no-deps --only-binary=:all: \
            --implementation cp --python-version 3.12 "${platforms[@]}" \
            --dest "$folder/wheels"
    grep '^antlr4' "$here/gpu_wheels.txt" |
        xargs python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels"
    local size
    size=$(du -sm "$folder" | cut -f1)
    [ "$size" -lt "$most" ] || die "$folder has $size MiB; expected less than $most"
    echo "$folder: $size MiB, $(find "$folder/wheels" -name '*.whl' | wc -l) wheels and FSDD"
}

measure() { # FOLDER OUT [OPTION ...]
    local folder=$1 out=$2 site
    shift 2
    [ -d "$folder/wheels" ] || die "no $folder/wheels; \`gpu.sh prepare $folder DATA\` makes it"
    python=$(mktemp -d)
    trap 'rm -rf "$python"' EXIT
    python3 -m venv --system-site-packages --without-pip "$python"
    # a python3 that is in an environment itself: its packages, not the system's alone, and
    # its .pth files (setuptools' brings distutils, which ESPnet imports)
    site=$("$python/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    python3 -c 'import site
for folder in site.getsitepackages():
    print(f"import site; site.addsitedir({folder!r})")' >"$site/a_parent.pth"
    python3 -c 'import torch, torchaudio, numpy, scipy, numba' ||
        die "python3 lacks one of torch, torchaudio, numpy, scipy and numba"
    local wheel missing=()
    for wheel in "$folder"/wheels/*.whl; do
        "$python/bin/python" -c 'import importlib.metadata as m, sys; m.version(sys.argv[1])' \
            "$(basename "$wheel" | cut -d- -f1)" 2>/dev/null || missing+=("$wheel")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
            --target "$site" "${missing[@]}"
    fi
    # the plugin, as its installation leaves it
    echo "$root" >"$site/b_repository.pth"
    cp "$root/espnet_l0prune.pth" "$site/c_espnet_l0prune.pth"
    mkdir -p "$out"
    "$python/bin/python" "$here/gpu.py" --data "$folder" --json "$out/gpu.json" "$@" |
        tee "$out/gpu.md"
}

case ${1:-} in
prepare) [ $# -eq 3 ] || die "usage: gpu.sh prepare FOLDER DATA"; prepare "$2" "$3" ;;
'' | -*) die "usage: gpu.sh prepare FOLDER DATA, then gpu.sh FOLDER OUT [OPTION ...]" ;;
*) [ $# -ge 2 ] || die "usage: gpu.sh FOLDER OUT [OPTION ...]"; measure "$@" ;;
esac
