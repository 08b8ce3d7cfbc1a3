#!/usr/bin/env bash
# Make .venv with everything in it: no root, nothing but Python 3 needed before.
# A local CPU build of torch that pip knows of (find-links) is used; otherwise uv picks
# the build for this machine: CPU without a GPU, CUDA with one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
venv=${VENV:-.venv}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "install: $python is too old; give PYTHON=python3.11" >&2; exit 1; }
echo "install: $venv with $("$python" --version)"
"$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv

# uv does not read pip's settings: hand them on
links=${PIP_FIND_LINKS:-$("$venv/bin/pip" config get global.find-links 2>/dev/null || true)}
index=${PIP_INDEX_URL:-$("$venv/bin/pip" config get global.index-url 2>/dev/null || true)}
[ -z "$links" ] || export UV_FIND_LINKS=${links// /,}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index
uv=("$venv/bin/uv" pip install --python "$venv/bin/python")
install=("${uv[@]}" --override tools/overrides.txt --constraint tools/constraints.txt
    -e '.[docs,espnet,ez,onnx,recipe,test]')

torch=
if [ -n "$links" ]; then
    torch=$("${uv[@]}" --dry-run --no-index --no-deps torch 2>&1 |
        sed -n 's/^ + \(torch==.*\)/\1/p' || true)
fi
if [ -n "$torch" ]; then
    echo "install: local build $torch"
    "${install[@]}" "$torch"
elif ! "${install[@]}" 'torch==2.13.*' --torch-backend auto; then
    echo "install: no torch build for this machine's backend; taking the usual one"
    "${install[@]}" 'torch==2.13.*'
fi

# The CPU/torchaudio trap: see espnet_l0prune/doctor.py
"$venv/bin/espnet-l0prune" enable
"$venv/bin/espnet-l0prune" doctor --fix
touch "$venv/.done"
