# `make demo` and `make test` need Python 3.11+ and a C++ compiler, nothing else; each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
C_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPU_SOURCES := $(filter csrc/cpu/%.cpp,$(C_SOURCES))
CPU_HEADERS := $(filter csrc/cpu/%.h,$(C_SOURCES))
ENGINE_HEADERS := $(filter csrc/engine/%.h,$(C_SOURCES))
SOURCES := setup.py pyproject.toml csrc/cuda/nvcc_build.py $(C_SOURCES)
# The Python that `make check-gpu` runs on: one whose torch sees a GPU. Nothing is installed into it.
GPU_PYTHON ?= python3
JOBS := $(shell nproc 2>/dev/null || echo 1)
# Kernels are checked on one thread and two; more threads than cores only add noise.
PYTEST := $(BIN)/python -m pytest --durations=10

.PHONY: demo test test-all lint format clean wheel bench sanitize check-kernels check-headers check-arm check-gpu tune-gpu \
  engine fuzz

demo: .venv/built
	$(BIN)/ddi demo --out out/demo

# A file a process at a time, on one thread where a test does not ask for more; the engine, which several
# of them build, is there before they start.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist loadfile
BUILD_ENGINE := if command -v g++ >/dev/null; then $(MAKE) -j$(JOBS) engine CXX=g++; fi

test: .venv/built
	$(BUILD_ENGINE)
	$(SIDE_BY_SIDE) -m "not slow"

test-all: .venv/built
	$(BUILD_ENGINE)
	$(SIDE_BY_SIDE)

#: clang says where it unrolls no loop that has as many turns as it likes.
lint: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	for cxx in g++ clang++; do if command -v $$cxx >/dev/null; then \
	  echo $(CPU_SOURCES) | xargs -n 1 -P $(JOBS) \
	    $$cxx -std=c++17 -O1 -Wall -Wextra -Werror -Icsrc/cpu -o /dev/null -c || exit 1; \
	  else echo "lint: $$cxx is not installed, csrc/cpu not compiled with it"; fi; done

format: .venv/built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_SOURCES)

# The tables of bench/results: an otherwise idle machine, about ten minutes.
bench: .venv/built
	$(BIN)/ddi bench op --suite cpu --threads 1 --json out/bench/op_cpu_t1.jsonl --plot out/bench/roofline.png
	$(BIN)/ddi bench scaling --json out/bench/scaling.jsonl --plot out/bench/scaling.png

# The grid of odd cases on a library built with AddressSanitizer and UBSan, on every instruction set.
SANITIZE := -DDDI_SEPARATE_BUFFERS -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
sanitize: export PYTHONPATH := build/sanitize:python
sanitize: export ASAN_OPTIONS := detect_leaks=0
sanitize: .venv/built
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r ddi_kernels build/sanitize && rm -f build/sanitize/ddi_kernels/_C*
	CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" DDI_BUILD=cpu DDI_REQUIRE_C=1 PYTHONPATH= \
	  $(BIN)/python setup.py build_ext --build-lib build/sanitize --build-temp build/sanitize/temp
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)"; \
	$(BIN)/python -P -c "import ddi_kernels._C as c; assert 'build/sanitize' in c.__file__, c.__file__" && \
	$(BIN)/python -P -m pytest tests/ops -k "not compile and not opcheck and not docstring and not examples and not skip_conv2d"

# GPU code without a GPU: Triton's interpreter, cubins of every shipped tile, nvcc.
check-kernels: .venv/built
	$(PYTEST) tests/interpreter tests/aot tests/cuda

# The CUDA sources against the headers of the torch that a GPU machine has; downloads its wheel.
check-headers: .venv/built
	$(BIN)/python tests/cuda/other_torch.py $(or $(TORCH),2.11.0)

# ARM code without an ARM: cross-compilers and qemu must be there.
ARM_TOOLS := aarch64-linux-gnu-g++ arm-linux-gnueabihf-g++ qemu-aarch64 qemu-arm
check-arm: .venv/built
	for tool in $(ARM_TOOLS); do command -v $$tool >/dev/null || { echo "check-arm: $$tool is missing; install the\
	 Debian packages g++-aarch64-linux-gnu, g++-arm-linux-gnueabihf and qemu-user" >&2; exit 1; }; done
	$(PYTEST) tests/build/test_arm.py tests/engine/test_arm_engine.py

# On a machine with a GPU: downloads nothing, builds in place, every step under its own time limit.
check-gpu:
	$(GPU_PYTHON) tests/gpu/check.py

# Measures the tiles of the Triton kernels on this machine's GPU and writes the table that they take from then on.
tune-gpu: export PYTHONPATH := .:python
tune-gpu:
	$(GPU_PYTHON) -m bench.gpu.tune

# The engine alone, for C and the shell: no Python, no torch. CXX=aarch64-linux-gnu-g++ cross-compiles.
ENGINE_DIR := build/engine/$(notdir $(CXX))
ENGINE_FLAGS := -O2 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -Icsrc/cpu -Icsrc/engine
ENGINE_FLAGS += -ffunction-sections -fdata-sections
ENGINE_MAP := csrc/engine/libddi.map
ENGINE_CLI := $(filter csrc/engine/cli/%.cpp,$(C_SOURCES))
ENGINE_LIB := $(CPU_SOURCES) $(filter-out $(ENGINE_CLI),$(filter csrc/engine/%.cpp,$(C_SOURCES)))
ENGINE_OBJECTS := $(ENGINE_LIB:csrc/%.cpp=$(ENGINE_DIR)/%.o)

# Drivers throw nothing; without the tables for it the library is smaller.
$(ENGINE_DIR)/cpu/%.o: ENGINE_FLAGS += -fno-exceptions -fno-asynchronous-unwind-tables

engine: $(ENGINE_DIR)/libddi.so $(ENGINE_DIR)/ddi_run

$(ENGINE_DIR)/%.o: csrc/%.cpp $(CPU_HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(ENGINE_FLAGS) $(CXXFLAGS) -c $< -o $@

$(filter $(ENGINE_DIR)/engine/%,$(ENGINE_OBJECTS)): $(ENGINE_HEADERS)
$(ENGINE_CLI:csrc/%.cpp=$(ENGINE_DIR)/%.o): $(ENGINE_HEADERS)

$(ENGINE_DIR)/libddi.so: $(ENGINE_OBJECTS) $(ENGINE_MAP)
	$(CXX) -shared -s -Wl,--gc-sections -Wl,-soname,libddi.so -Wl,--version-script=$(ENGINE_MAP) $(LDFLAGS) \
	  $(ENGINE_OBJECTS) -pthread -o $@

$(ENGINE_DIR)/ddi_run: $(ENGINE_CLI:csrc/%.cpp=$(ENGINE_DIR)/%.o) $(ENGINE_DIR)/libddi.so
	$(CXX) -s $(LDFLAGS) $^ -Wl,-rpath,'$$ORIGIN' -o $@

# Malformed plans against the engine, with clang's libFuzzer, from the plans of tests/engine/corpus and what
# earlier runs have found: for a minute, or as FUZZ_LIMIT says, e.g. -runs=1000000.
FUZZ_LIMIT ?= -max_total_time=60
FUZZ_FLAGS := -gline-tables-only -std=c++17 -ffp-contract=off -Icsrc/cpu -Icsrc/engine -pthread
FUZZ_FLAGS += -fno-sanitize-recover=all -DDDI_SEPARATE_BUFFERS
FUZZ_IGNORE := tests/engine/fuzz_ignore.txt
FUZZ_CHECKS := -O2 -fsanitize=fuzzer,address,undefined
FUZZ_CHECKS += -fsanitize-ignorelist=$(FUZZ_IGNORE) -fsanitize-coverage-ignorelist=$(FUZZ_IGNORE)
# The micro-kernels have no decisions worth covering; their checks are calls, which compile in a tenth
# of the time.
MICRO_CHECKS := -O1 -fsanitize=address -mllvm -asan-instrumentation-with-call-threshold=0
FUZZ_OBJECTS := $(ENGINE_LIB:csrc/%.cpp=build/fuzz/%.o)

fuzz: build/fuzz/fuzz_plan
	mkdir -p build/fuzz/corpus
	build/fuzz/fuzz_plan $(FUZZ_LIMIT) -max_len=16384 -timeout=20 -malloc_limit_mb=512 \
	  -print_final_stats=1 -artifact_prefix=build/fuzz/ build/fuzz/corpus tests/engine/corpus

$(filter build/fuzz/engine/%,$(FUZZ_OBJECTS)): $(ENGINE_HEADERS)

build/fuzz/%.o: csrc/%.cpp $(FUZZ_IGNORE) $(CPU_HEADERS)
	@mkdir -p $(@D)
	clang++ $(FUZZ_FLAGS) $(if $(findstring /micro_,$<),$(MICRO_CHECKS),$(FUZZ_CHECKS)) -c $< -o $@

build/fuzz/fuzz_plan: tests/engine/fuzz_plan.cpp $(FUZZ_OBJECTS)
	clang++ $(FUZZ_FLAGS) $(FUZZ_CHECKS) $^ -o $@

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
