# Two commands for a newcomer: `make bench` and `make test`. Both start from nothing.

PYTHON ?= python3
# The torch to install where .venv has none; any from 2.11 on will do.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc fused_optim -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.py' -o -name '*.pyi' | grep -v _build.py)

.PHONY: bench test lint format sanitize clean

bench: $(VENV)/.installed
	$(BIN)/python examples/digits.py
	$(BIN)/python -m benchmarks --quick

test: $(VENV)/.installed
	$(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu')
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu')

# The suite once under AddressSanitizer and UndefinedBehaviorSanitizer. The interpreter is not
# instrumented, so its leaks are not looked for; the sanitizers' runtime must be loaded first.
SANITIZED := $(CURDIR)/build/sanitize
SANITIZERS := env PYTHONPATH=$(SANITIZED)/lib ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)"
sanitize: $(VENV)/.installed
	FUSED_OPTIM_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(SANITIZED)/temp --build-lib $(SANITIZED)/lib
	cd tests && $(SANITIZERS) $(abspath $(BIN))/python -c "import fused_optim._C as c; assert 'sanitize' in c.__file__, c.__file__"
	$(SANITIZERS) $(BIN)/pytest -m "not process"

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)" numpy
	touch $@

$(VENV)/.installed: $(VENV)/.torch setup.py build_backend.py pyproject.toml $(SOURCES)
	$(BIN)/pip install --quiet ".[test,bench,lint]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fused_optim/_build.py fused_optim/*.so
