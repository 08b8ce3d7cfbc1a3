#!/usr/bin/env bash
# Make .venv with everything in it: no root, nothing but Python 3 needed before.
# A local CPU build of torch that pip knows of (find-links) is used; otherwise uv picks
# the build for this machine: CPU without a GPU, CUDA with one.
# PYTHON, VENV, ESPNET and TORCH choose others than these: `make matrix` does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}

# The python3 of this shell where ESPnet has a release for it; else the newest that has one
for python in ${PYTHON:-python3 python3.13 python3.12 python3.11} ''; do
    case $("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null) in
        3.11) espnet=${ESPNET:-202511} torch=${TORCH:-2.13}; break ;;
        3.12 | 3.13) espnet=${ESPNET:-202611} torch=${TORCH:-2.14}; break ;;
    esac
done
[ -n "$python" ] || {
    echo "install: ${PYTHON:-no python3 here} is not Python 3.11, 3.12 or 3.13;" \
        "give PYTHON=/path/to/python3.12" >&2
    exit 1
}
echo "install: $venv with $("$python" --version), ESPnet $espnet, torch $torch"
"$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv

# uv does not read pip's settings: hand them on
links=${PIP_FIND_LINKS:-$("$venv/bin/pip" config get global.find-links 2>/dev/null || true)}
index=${PIP_INDEX_URL:-$("$venv/bin/pip" config get global.index-url 2>/dev/null || true)}
[ -z "$links" ] || export UV_FIND_LINKS=${links// /,}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index
uv=("$venv/bin/uv" pip install --python "$venv/bin/python")
install=("${uv[@]}" --constraint tools/constraints.txt "espnet==$espnet"
    -e '.[docs,espnet,espnet3,onnx,recipe,test]')
[ "$espnet" -ge 202609 ] || install+=(--override tools/overrides.txt)

torch="torch==$torch.*"
build=
if [ -n "$links" ]; then
    build=$("${uv[@]}" --dry-run --no-index --no-deps "$torch" 2>&1 |
        sed -n 's/^ + \(torch==.*\)/\1/p' || true)
fi
if [ -n "$build" ]; then
    echo "install: local build $build"
    "${install[@]}" "$build"
elif ! "${install[@]}" "$torch" --torch-backend auto; then
    echo "install: no torch build for this machine's backend; taking the usual one"
    "${install[@]}" "$torch"
fi

# The newest Whisper that ESPnet can use, without Triton, which it asks for and which
# belongs to torch. Its setup.py is of a time when setuptools had pkg_resources.
"${uv[@]}" --no-deps --build-constraint tools/build_constraints.txt \
    openai-whisper==20230918

# The CPU/torchaudio trap: see espnet_l0prune/doctor.py
"$venv/bin/espnet-l0prune" enable
"$venv/bin/espnet-l0prune" doctor --fix
touch "$venv/.done"
