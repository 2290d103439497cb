# A clone needs Python 3.11 or later, make and a C++ compiler; `make demo` and `make test` install the rest into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE_SOURCES := $(foreach folder,runtime/native runtime/native/include tests/native tests/native/double \
	tests/native/interface examples/native,$(wildcard $(folder)/*.c $(folder)/*.cc $(folder)/*.h))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --group dev \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml

.DELETE_ON_ERROR:
.PHONY: help install demo test test-all lint format native wheel check-device constraints clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP) ## make .venv with tlc, all extras and the development tools

# Compiled at once: importing PyTorch from source text takes longer than most tests, wherever Python may not write its own.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) is too old to train and export" >&2; \
		  echo "hint: Install Python 3.11 or later, then run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable '.[all]' --group dev
	touch $@

demo: $(STAMP) ## train a small network on scikit-learn's digits and compress it
	$(BIN)/tlc demo

test: $(STAMP) ## run the tests but the slow ones, in two processes of one thread each
	$(PYTEST)

test-all: $(STAMP) ## run all tests
	$(PYTEST) --slow

lint: $(STAMP) ## check style, spelling and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)
	$(BIN)/mypy

format: $(STAMP) ## write what `make lint` asks of the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(NATIVE_SOURCES)

native: $(STAMP) ## build build/native/tlc-run and run its tests
	$(BIN)/cmake -S . -B build/native -DTLC_WARNINGS_AS_ERRORS=ON -DTLC_REQUIRE_ALL_TESTS=ON \
		-DTLC_PYTHON=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/native --parallel 2
	$(BIN)/ctest --test-dir build/native --output-on-failure

wheel: $(STAMP) ## build dist/: the sdist, and the wheel from it
	rm -rf dist
	$(BIN)/uv build --quiet --build-constraints constraints.txt --out-dir dist

check-device: wheel ## install the wheel without extras, as a device does, and see that it needs no training framework
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/device
	$(BIN)/uv pip install --quiet --python build/device/bin/python --constraint constraints.txt dist/*.whl pytest
	build/device/bin/pytest tests/test_lean_import.py

constraints: $(STAMP) ## resolve constraints.txt anew, for all extras, the tools, and Python 3.10 and later
	{ echo "# The versions that tlc is tested with: all extras and the dev group, Python 3.10 and later."; \
	  echo "# Made by \`make constraints\`."; $(COMPILE); } > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## remove what the commands above made, .venv included
	rm -rf $(VENV) build dist
