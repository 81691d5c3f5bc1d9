# make bench | make test: each sets everything up from a fresh clone, then does its job.

ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(CURDIR)/.venv)
PY := $(ENV)/bin/python
INSTALLED := $(ENV)/.fusednn-installed
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help install build emulated bench test test-full lint cpp sanitize mutants machine-code passports wheel results users map claims clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

$(PY):
	python3 -m venv $(ENV)

# The marker names this checkout: an environment that serves another one is set up anew.
$(INSTALLED): $(PY) pyproject.toml setup.py tools/install.py
	$(PY) tools/install.py
	@echo $(CURDIR) > $@

install: $(INSTALLED) ## environment, torch, fusednn (editable) and what bench and tests need
	@[ "$$(cat $(INSTALLED))" = "$(CURDIR)" ] || { $(PY) tools/install.py && echo $(CURDIR) > $(INSTALLED); }

build: install ## compile what changed in csrc
	@$(PY) tools/build.py

emulated: install ## the CUDA kernels as a library that runs on any machine (FUSEDNN_EMULATE=1)
	@$(PY) tools/providers.py emulated

bench: build ## the benchmark: report in build/report/index.html
	$(PY) -m pytest bench

test: build emulated ## the tests
	$(PY) -m pytest tests -m "not slow"

test-full: build emulated mutants sanitize ## all tests, mutants, sanitizers, all machine code, and the built module under the oldest and the newest torch
	$(PY) -m pytest tests
	FUSEDNN_TEST_ALL_FLOATS=1 build/cpp/test_math every_float
	$(PY) tools/passports.py --all
	$(PY) tools/machine_code.py --all
	$(PY) tools/torch_versions.py

lint: install ## ruff, clang-format, pyright
	$(PY) -m pip install -q ruff pyright clang-format
	$(PY) tools/lint.py

cpp: ## the C++ tests: no torch, no Python
	cmake -S . -B build/cpp -G Ninja $(CMAKE_FLAGS)
	cmake --build build/cpp
	ctest --test-dir build/cpp --output-on-failure -j 2

sanitize: ## the C++ tests, the emulated kernels too, under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake -S . -B build/sanitize -G Ninja -DFUSEDNN_SANITIZE=ON
	cmake --build build/sanitize
	ctest --test-dir build/sanitize --output-on-failure -j 2

mutants: cpp ## remove each wait, fence and barrier of the CUDA kernels: the C++ tests must fail every time
	$(PY) tools/mutate.py

machine-code: build emulated ## registers, spills, MMA instructions of the CUDA kernels against the table; needs nvcc
	$(PY) tools/machine_code.py

passports: install ## what Triton makes of its kernels, on the oldest and the newest, against the table
	$(PY) tools/passports.py

wheel: install ## wheel and sdist in dist/
	$(PY) -m pip install -q build
	$(PY) -m build --no-isolation

results: bench ## keep this machine's results in bench/results, and bring README's table and picture up to date
	$(PY) -m bench.publish

users: build ## measure this machine for docs/should-i-use-it.md, and write its tables (a quarter of an hour)
	$(PY) -m pytest bench/bench_users.py --bench-tier users --bench-out build/users
	$(PY) -m bench.publish --users build/users

map: build ## who wins over batch, length and width: docs/crossover.md (ten minutes)
	$(PY) -m pytest bench/bench_crossover.py --bench-tier crossover --bench-out build/crossover
	$(PY) -m bench.publish --crossover build/crossover

claims: build ## train the small models that the claims on learning are judged by (a quarter of an hour)
	$(PY) -m pytest bench/bench_learning.py --bench-tier learning --bench-out build/learning
	$(PY) -m bench.publish --learning build/learning

clean: ## remove what was built
	rm -rf build dist pyext/fusednn/*.so pyext/fusednn/lib $(INSTALLED)
