# Two commands for a newcomer: `make bench` and `make test`. Both start from nothing.

PYTHON ?= python3
# The torch to install where .venv has none; any from 2.7 on will do.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc fused_optim -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.py' -o -name '*.pyi' | grep -v _build.py)

.PHONY: bench test test-frameworks test-versions test-aarch64 smoke lint docs format sanitize tsan \
  cuda-build clean
.DELETE_ON_ERROR:

bench: $(VENV)/.installed
	$(BIN)/python examples/digits.py
	$(BIN)/python -m benchmarks --quick

test: $(VENV)/.installed
	$(BIN)/pytest -n auto

# Inside the frameworks that people train with, in an environment of their own. The package is
# compiled once for both.
FRAMEWORKS_VENV ?= .venv-frameworks
WHEELS := build/wheels
test-frameworks: $(VENV)/.installed $(FRAMEWORKS_VENV)/.torch
	rm -rf $(WHEELS)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir $(WHEELS) .
	for wheel in $(WHEELS)/*.whl; do \
	  $(FRAMEWORKS_VENV)/bin/pip install --quiet --force-reinstall --no-deps "$$wheel" && \
	  $(FRAMEWORKS_VENV)/bin/pip install --quiet "$$wheel[test,frameworks]" || exit 1; done
	$(FRAMEWORKS_VENV)/bin/pip install --quiet --upgrade --no-deps --target $(FRAMEWORKS_VENV)/timm "timm>=1.0.15"
	$(FRAMEWORKS_VENV)/bin/pytest tests/frameworks

$(FRAMEWORKS_VENV)/.torch:
	$(MAKE) VENV="$(FRAMEWORKS_VENV)" "$@"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu')
	$(BIN)/mypy

# The site, without a network: docs/mkdocs.yml. The package is there already, so this installs no
# more than what its extra names. With --quiet, warnings would not count as --strict has them.
docs: $(VENV)/.installed
	$(BIN)/pip install --quiet "fused_optim[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml
	@echo "build/docs/index.html"

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu')

# The suite once under AddressSanitizer and UndefinedBehaviorSanitizer, and the CPU engine under
# ThreadSanitizer. The interpreter is not instrumented, so its leaks are not looked for; the
# sanitizers' runtime must be loaded first.
SANITIZED := $(CURDIR)/build/sanitize
SANITIZERS := env PYTHONPATH=$(SANITIZED)/lib ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)"
sanitize: $(VENV)/.installed tsan
	FUSED_OPTIM_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(SANITIZED)/temp --build-lib $(SANITIZED)/lib
	cd tests && $(SANITIZERS) $(abspath $(BIN))/python -c "import fused_optim._C as c; assert 'sanitize' in c.__file__, c.__file__"
	$(SANITIZERS) $(BIN)/pytest -n auto -m "not process"

# The CPU engine in a program of its own. Of torch it needs the headers only. Some Linux kernels
# place memory where ThreadSanitizer cannot have it, unless addresses are not randomised.
TSAN := build/tsan
TSAN_OBJECTS := $(patsubst %.cpp,$(TSAN)/%.o,$(wildcard csrc/cpu/*.cpp tests/tsan/*.cpp))
TSAN_FLAGS := -fsanitize=thread -O1 -g -std=c++20 -Wall -Wextra -pthread -Icsrc \
  -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd
tsan: $(TSAN)/cpu_engine
	TSAN_OPTIONS=halt_on_error=1 $(shell setarch -R true 2>/dev/null && echo setarch -R) $<

$(TSAN)/cpu_engine: $(TSAN_OBJECTS)
	$(CXX) $(TSAN_FLAGS) $^ -o $@ -ldl

$(TSAN)/%.o: %.cpp $(TSAN)/torch_includes
	@mkdir -p $(@D)
	$(CXX) $(TSAN_FLAGS) -MMD -MP @$(TSAN)/torch_includes -c $< -o $@

$(TSAN)/torch_includes: $(VENV)/.torch
	@mkdir -p $(@D)
	$(BIN)/python -c "from torch.utils import cpp_extension as c; print(*('-isystem' + p for p in c.include_paths()))" > $@

-include $(TSAN_OBJECTS:.o=.d)

# One result on every architecture: the CPU engine natively and, by an emulator, as aarch64. By hand,
# with qemu-user and a cross compiler (Debian: qemu-user, g++-aarch64-linux-gnu).
AARCH64 := build/aarch64
AARCH64_CXX ?= aarch64-linux-gnu-g++
AARCH64_RUN ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
ENGINE_HASH := $(wildcard csrc/cpu/*.cpp) $(addprefix tests/,tsan/steps.cpp tsan/norms.cpp tsan/threads.cpp aarch64/engine_hash.cpp)
ENGINE_FLAGS := -O3 -std=c++20 -pthread -Icsrc -Itests -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd
test-aarch64: $(TSAN)/torch_includes
	mkdir -p $(AARCH64)
	$(CXX) $(ENGINE_FLAGS) @$(TSAN)/torch_includes $(ENGINE_HASH) -o $(AARCH64)/native -ldl
	$(AARCH64_CXX) $(ENGINE_FLAGS) @$(TSAN)/torch_includes $(ENGINE_HASH) -o $(AARCH64)/emulated -ldl
	$(AARCH64)/native > $(AARCH64)/native.txt
	$(AARCH64_RUN) $(AARCH64)/emulated > $(AARCH64)/emulated.txt
	diff $(AARCH64)/native.txt $(AARCH64)/emulated.txt
	tail -n 1 $(AARCH64)/emulated.txt

# The package with its CUDA kernels, in a second environment with a CUDA build of torch: compiled,
# linked, imported and tested, with or without a GPU: what CUDA's build may change, and a part of
# everything else with the torch that it is compiled for.
CUDA_TESTS := $(wildcard tests/test_*cuda*.py) $(addprefix tests/,smoke.py test_for_the_gpu.py \
  test_gpu_script.py test_installation.py test_equivalence.py test_state_dict.py test_bad_input.py \
  test_coded_states.py test_coded_bad_input.py test_masters.py test_sharded.py test_drop_in.py)
CUDA_VENV ?= .venv-cuda
CUDA_TORCH ?= torch==2.11.0
CUDA_HOME ?= /usr/local/cuda
TORCH_CUDA_ARCH_LIST ?= 8.0;9.0
CUDA_BUILD := FUSED_OPTIM_CUDA=1 CUDA_HOME="$(CUDA_HOME)" TORCH_CUDA_ARCH_LIST="$(TORCH_CUDA_ARCH_LIST)"
cuda-build:
	$(CUDA_BUILD) $(MAKE) VENV="$(CUDA_VENV)" TORCH="$(CUDA_TORCH)" "$(CUDA_VENV)/.installed"
	$(CUDA_VENV)/bin/python -m fused_optim info
	$(CUDA_BUILD) $(CUDA_VENV)/bin/pytest -n auto $(CUDA_TESTS)

# The lowest and the newest torch that the package promises: built for the CPU and given a short run
# over everything (the whole suite is for the torch of `make test`). The environments, of several
# gigabytes where torch brings CUDA's libraries, are kept until this file or pyproject.toml changes.
LOWEST_TORCH ?= torch==2.7.1
NEWEST_TORCH ?= torch
VERSIONS ?= $(HOME)/.cache/fused_optim/versions-$(shell cat Makefile pyproject.toml | sha256sum | cut -c1-16)
test-versions:
	mkdir -p "$(VERSIONS)" && touch "$(VERSIONS)"
	$(MAKE) smoke VENV="$(VERSIONS)/lowest" TORCH="$(LOWEST_TORCH)"
	$(MAKE) smoke VENV="$(VERSIONS)/newest" TORCH="$(NEWEST_TORCH)"

smoke: $(VENV)/.torch
	FUSED_OPTIM_CUDA=0 $(BIN)/pip install --quiet ".[test]"
	cd tests && $(abspath $(BIN))/python -m fused_optim info
	$(BIN)/pytest -n auto tests/smoke.py

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)" numpy
	touch $@

$(VENV)/.installed: $(VENV)/.torch setup.py build_backend.py build_checks.py pyproject.toml $(SOURCES)
	$(BIN)/pip install --quiet ".[test,bench,lint]"
	touch $@

clean:
	rm -rf $(VENV) $(CUDA_VENV) $(FRAMEWORKS_VENV) build dist *.egg-info fused_optim/_build.py fused_optim/*.so
