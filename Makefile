# `make demo` and `make test` need Python 3.11+ and a C++ compiler, nothing else; each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h')
# Kernels are checked on one thread and two; more threads than cores only add noise.
PYTEST := $(BIN)/python -m pytest --durations=10

.PHONY: demo test test-all lint format clean wheel

demo: .venv/built
	$(BIN)/ddi demo --out out/demo

test: .venv/built
	$(PYTEST) -m "not slow"

test-all: .venv/built
	$(PYTEST)

lint: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h')
	for cxx in g++ clang++; do if command -v $$cxx >/dev/null; then \
	  for f in csrc/cpu/*.cpp; do \
	    $$cxx -std=c++17 -O1 -Wall -Wextra -Werror -c $$f -o /dev/null || exit 1; done; \
	  else echo "lint: $$cxx is not installed, csrc/cpu not compiled with it"; fi; done

format: .venv/built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h')

wheel: .venv/built
	$(BIN)/python -m build --no-isolation

# torch brings its own CUDA triton where it has CUDA; elsewhere the interpreter needs it without dependencies.
.venv/installed: requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/python -c "import sys, torch; sys.exit(torch.version.cuda is None)" || \
	  $(BIN)/pip install --quiet --no-deps triton==3.6.0
	touch $@

.venv/built: .venv/installed $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist out *.egg-info .venv
