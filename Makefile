# Everything runs in .venv, made on first use. PYTHON is the interpreter it is made from; ARGS goes
# to the program that runs (make train ARGS="--max-steps 100", make test ARGS="-k lstm").
PYTHON ?= python3
VENV := .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BUILD_FILES := pyproject.toml setup.py $(wildcard build_tools/*.py)
SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu)
FORMATTED := $(SOURCES) $(wildcard csrc/emulator/*.h csrc/emulator/*.cpp \
	csrc/emulator/avx512/*.h tests/*.cu tests/*.cpp)

.PHONY: train test test-deep bench lint format install-check abi-check \
	cuda-check cuda-load-check gpu clean
.NOTPARALLEL:

train: $(VENV)/installed-train $(VENV)/native
	$(BIN)/fastrnn.train $(ARGS)

test: $(VENV)/installed-test $(VENV)/native
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-deep: $(VENV)/installed-test $(VENV)/native
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/installed-test $(VENV)/native
	$(BIN)/python -m benchmarks $(ARGS); measured=$$?; \
	$(BIN)/python -m benchmarks.report && exit $$measured

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	bash -n .ci/run tests/install_check.sh

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

# Registers, shared memory and spills of every CUDA kernel (needs nvcc, no GPU and no torch).
cuda-check:
	$(PYTHON) -m build_tools.cuda_check $(ARGS)

# Installs into fresh environments of each kind (some minutes; needs the network).
install-check:
	PYTHON=$(PYTHON) bash tests/install_check.sh

# Runs the library built here, against the pinned torch's headers, under the newest torch release
# (a download of gigabytes).
abi-check: $(VENV)/native
	$(PYTHON) -m venv $(VENV)-abi
	$(VENV)-abi/bin/python -m pip install --quiet --disable-pip-version-check --upgrade torch
	PYTHONPATH=. $(VENV)-abi/bin/python tests/abi_check.py

# On a machine with a GPU, in under eight minutes and offline: builds if need be, checks, measures.
gpu:
	$(PYTHON) -m benchmarks.gpu $(ARGS)

# The same library under a CUDA build of the pinned torch, with no GPU (gigabytes, too).
CUDA_TORCH := $(subst ==,===,$(shell grep '^torch==' constraints.txt))
cuda-load-check: $(VENV)/native
	$(PYTHON) -m venv $(VENV)-cuda
	$(VENV)-cuda/bin/python -m pip install --quiet --disable-pip-version-check "$(CUDA_TORCH)"
	PYTHONPATH=. $(VENV)-cuda/bin/python tests/cuda_load_check.py

clean:
	rm -rf build dist fastrnn.egg-info .mypy_cache .pytest_cache .ruff_cache $(VENV)/native
	rm -f fastrnn/*.so fastrnn/*.reason

# torch comes first: the build then finds it in the environment and downloads none of its own.
$(VENV)/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"$(PYTHON) must be Python 3.11 or later, got " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch ninja
	@touch $@

$(VENV)/installed-%: $(VENV)/torch $(BUILD_FILES)
	$(PIP) --editable ".[$*]"
	@touch $@

# After a change in csrc/: only what depends on it is compiled again.
$(VENV)/native: $(VENV)/torch $(BUILD_FILES) $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
