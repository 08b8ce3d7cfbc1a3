.PHONY: demo test env lint clean

# Everything on synthetic speech: train, prune, cut, fine-tune, pack, decode, score
demo: env
	egs/librispeech/run.sh --corpus mini

test: env
	.venv/bin/python -m pytest $(PYTEST_ARGS)

env: .venv/.done

.venv/.done: setup.py tools/install.sh tools/overrides.txt tools/constraints.txt
	tools/install.sh

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:
	rm -rf .venv build *.egg-info egs/librispeech/{data,exp,downloads}
