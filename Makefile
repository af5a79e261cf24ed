# make demo    raw text -> tokenizer -> token files -> model -> a story, from nothing, in minutes
# make test    ruff, mypy and the tests; then a run twice, bit for bit
#
# Both install what they need into .venv first; what is done already is not done again.
# A Python of your choice: make demo PYTHON=python3.12. More for pip: make demo PIP_FLAGS='--index-url ...'
# Tests in more processes: make test WORKERS=8

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_FLAGS ?=
WORKERS ?= 3
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)

.PHONY: help install demo data docs test test-fast test-repeat test-slow test-docs test-elsewhere test-oldest \
	test-cluster coverage drills torture gpu lint style types format hooks clean-demo

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'
	@echo "also: docs (a site to read), install, data (the demo's token files), lint, format, hooks, test-repeat, test-slow,"
	@echo "      test-docs, test-elsewhere, test-oldest, test-cluster, coverage, drills, torture, gpu, clean-demo"

# --- the environment -------------------------------------------------------------------------------------------------

install: .venv/.installed

.venv/.python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

# Shows only the large downloads and the last step of what pip prints; errors go past it. A pipe's exit code is that of
# its last command, so the recipe looks for the file.
BRIEFLY = | sed -n 's/^ *//; /[0-9][0-9]\.[0-9] MB)/p; s/^\(Installing collected packages\):.*/\1/p'; test -e $@

.venv/.installed: .venv/.python pyproject.toml constraints.txt
	@echo "installing into .venv; torch and its companions need some 1.5 GB of disk"
	@rm -f $@; { $(PIP) -e . && touch $@; } $(BRIEFLY)

.venv/.installed-test: .venv/.installed
	@echo "installing what the tests need"
	@rm -f $@; { $(PIP) -e '.[test,dev]' && touch $@; } $(BRIEFLY)

# --- the demo --------------------------------------------------------------------------------------------------------

TOKENIZER := data/demo/tokenizer/vocab.json

data: data/demo/train.bin data/demo/valid.bin

$(TOKENIZER): data/tinystories-train.txt.gz | .venv/.installed
	$(BIN)/tokenization train $< --vocab-size 2048 --output data/demo/tokenizer --overwrite

data/demo/%.bin: data/tinystories-%.txt.gz $(TOKENIZER) | .venv/.installed
	$(BIN)/tokenization encode $< --tokenizer data/demo/tokenizer --output data/demo/$*.bin --overwrite

# An interrupted run goes on where it stopped.
checkpoints/demo/.trained: data/demo/train.bin data/demo/valid.bin
	$(BIN)/lm fit -c configs/demo.yaml --ckpt_path auto
	@touch $@

demo: .venv/.installed checkpoints/demo/.trained
	$(BIN)/lm validate checkpoints/demo
	@echo
	$(BIN)/lm generate checkpoints/demo/best.ckpt --prompt "Once upon a time" --temperature 0.6 --max-new-tokens 250 --seed 1
	@printf '%s\n' "" \
		"That story was written by a model trained here, from data/tinystories-train.txt.gz. What to type next:" \
		"" \
		"  $(BIN)/lm generate checkpoints/demo/best.ckpt --prompt 'The little dog' --seed 7        another story" \
		"  $(BIN)/lm serve checkpoints/demo/best.ckpt                                              a page to write with" \
		"  $(BIN)/tensorboard --logdir checkpoints                                                 how it learnt" \
		"  $(BIN)/lm fit -c checkpoints/demo/config.yaml --ckpt_path checkpoints/demo/last.ckpt \\" \
		"      --trainer.max_steps 4000                                                           train on" \
		"  $(BIN)/lm --help                                                                        all the rest"

clean-demo:
	rm -rf data/demo checkpoints/demo

# What is compiled is kept, whatever the environment says: dozens of processes import it.
export PYTHONDONTWRITEBYTECODE :=

# --- the tests -------------------------------------------------------------------------------------------------------

lint: style types

style: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-test
	$(BIN)/mypy

format: .venv/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ruff and mypy before each commit, from .venv.
hooks: .venv/.installed-test
	$(BIN)/pre-commit install

# mypy, on one core, runs beside the tests; where either fails, so does make, at the end.
test: style
	$(MAKE) --no-print-directory --jobs 2 --keep-going types test-fast
	$(MAKE) --no-print-directory test-repeat

test-fast: .venv/.installed-test
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

# A run twice, and once killed and resumed: the same bits. A minute, with nothing beside it; test-slow has the rest.
test-repeat: .venv/.installed-test
	$(BIN)/pytest -m repeat tests/reliability/test_repeat.py

test-slow: .venv/.installed-test
	$(BIN)/pytest -m slow

# Exported models in lm-eval and llama.cpp, which is compiled here: cmake, a C++ compiler, a quarter of an hour.
test-elsewhere: .venv/.installed-test
	$(PIP) -e '.[test,elsewhere]'
	$(BIN)/pytest -m slow tests/interchange/test_elsewhere.py

# Every dependency at the oldest version that pyproject.toml allows, in an environment of its own. Old libraries may
# warn of newer ones.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/pytest -n $(WORKERS) --dist worksteal -W default

.venv-oldest/.installed: pyproject.toml .ci/floors.py
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) .ci/floors.py > .venv-oldest/floors.txt
	.venv-oldest/bin/pip install --disable-pip-version-check -c .venv-oldest/floors.txt $(PIP_FLAGS) -e '.[test]'
	@touch $@

# Ray, its workers killed at random, and texts on S3 (moto's server), in an environment of its own: some minutes.
test-cluster: .venv-cluster/.installed
	.venv-cluster/bin/pytest -m slow tests/tokenization/scaling/test_ray.py

# boto needs python-dateutil 2; the other tests use the newer one of constraints.txt.
.venv-cluster/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-cluster
	sed '/^python-dateutil==/d' constraints.txt > .venv-cluster/constraints.txt
	.venv-cluster/bin/pip install --disable-pip-version-check -c .venv-cluster/constraints.txt $(PIP_FLAGS) \
		-e '.[test,cluster]' 'moto[server]>=5' s3fs
	@touch $@

# Which lines the tests run; what LLVM has compiled is not seen.
coverage: .venv/.installed-test
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered

# Wrong values, files, settings and requests by the thousand: the long forms of tests/drills.
drills: .venv/.installed-test
	$(BIN)/pytest -m slow tests/drills

# The long run of tests/reliability: more than half an hour.
torture: .venv/.installed-test
	$(BIN)/pytest -m torture tests/reliability

# --- the handbook ----------------------------------------------------------------------------------------------------

# README and docs/ as a site, with a page for each module: open site/index.html. Nothing in it needs a network.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html is the front page"

.venv/.installed-docs: .venv/.installed
	@echo "installing what the site needs"
	@rm -f $@; { $(PIP) -e '.[docs]' && touch $@; } $(BRIEFLY)

# The site's links and the notebook in Jupyter; screenshots, if Chromium is installed. Some minutes.
test-docs: .venv/.installed-test
	$(PIP) -e '.[test,docs,notebook]'
	$(BIN)/pytest -m slow tests/test_site.py tests/test_notebook.py

# --- a GPU -----------------------------------------------------------------------------------------------------------

# What only a GPU can show, within ten minutes. On a machine without a network: python3 benchmarks/gpu.py --help
gpu: .venv/.installed-test
	$(BIN)/python benchmarks/gpu.py --output gpu-results
