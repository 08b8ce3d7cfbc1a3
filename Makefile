.PHONY: demo test quick matrix env lint docs dist clean

PYTHON ?= python3
# Where no compiled file may be kept, each process compiles ESPnet again: some 10 s more
unexport PYTHONDONTWRITEBYTECODE

# Everything on synthetic speech: train, prune, cut, fine-tune, pack, decode, score
demo: env
	PATH="$(CURDIR)/.venv/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv" \
	    egs/librispeech/run.sh --corpus mini

test: env
	.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Those that take no more than some seconds each: the answer is there in two minutes
quick: env
	.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST_ARGS)

# The tests with every Python, ESPnet and torch that we promise: see docs/matrix.md
matrix: env
	.venv/bin/nox

env: .venv/.done

.venv/.done: setup.py tools/install.sh tools/overrides.txt tools/constraints.txt tools/build_constraints.txt
	tools/install.sh

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck egs/librispeech/run.sh egs/librispeech/asr1/*.sh tools/install.sh benchmarks/*.sh studies/whisper/dense.sh .ci/run

docs: env
	.venv/bin/sphinx-build -W --keep-going -q -b html docs docs/_build

# The wheel, in dist/: what a machine that has ESPnet already installs. It needs pip only.
dist:
	rm -rf build
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf .venv .nox build dist *.egg-info egs/librispeech/data/mini egs/librispeech/exp/mini \
	    egs/librispeech/downloads docs/_build docs/_generated docs/jupyter_execute
