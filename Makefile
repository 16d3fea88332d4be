# Everything runs in .venv, which `tools/setup.sh` fills with the pinned versions when they or the extras changed.

PY := .venv/bin/python
# torch starts fastest of the backends. Another one: make check LANES=jax
LANES ?= free torch

.PHONY: help demo search test check lint validation

help:
	@echo "make demo   install, then train a small CLIP and classify with it (TensorFlow, about 5 minutes)"
	@echo "make search install, train the demo's model unless it is there, draw pictures, and serve a page to search them"
	@echo "make check  install, then the quick tests: those of no backend, and those of torch (LANES=jax: of JAX)"
	@echo "make test   install, then every test on TensorFlow, JAX and torch (about 40 minutes on 2 cores)"
	@echo "make validation   install TensorFlow Data Validation in .venv-validation (3 GB, a few minutes)"
	@echo "make lint   install, then ruff: faults and format"
	@echo "A Python of your choice: make test PYTHON=python3.12"

demo:
	@PYTHON="$(PYTHON)" sh tools/setup.sh demo
	KERAS_BACKEND=tensorflow $(PY) examples/demo.py

check:
	@PYTHON="$(PYTHON)" sh tools/setup.sh test
	$(PY) tools/run_tests.py --jobs 2 --lanes $(LANES) -m "not slow"

# Everything lies in runs/: what is there already is used again.
search:
	@PYTHON="$(PYTHON)" sh tools/setup.sh search
	@test -f runs/demo/clip.keras || KERAS_BACKEND=tensorflow $(PY) examples/demo.py
	KERAS_BACKEND=tensorflow $(PY) examples/search.py draw runs/search/pictures
	KERAS_BACKEND=tensorflow $(PY) examples/search.py index runs/search/pictures --model runs/demo/clip.keras --index runs/search/index
	KERAS_BACKEND=tensorflow $(PY) examples/search.py serve --index runs/search/index

test:
	@PYTHON="$(PYTHON)" sh tools/setup.sh test
	@PYTHON="$(PYTHON)" sh tools/setup_validation.sh
	$(PY) tools/run_tests.py --jobs 2 --strict-skips --continue-on-collection-errors

validation:
	@PYTHON="$(PYTHON)" sh tools/setup_validation.sh

lint:
	@PYTHON="$(PYTHON)" sh tools/setup.sh test
	$(PY) -m ruff check
	$(PY) -m ruff format --check
