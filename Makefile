# SPDX-License-Identifier: Apache-2.0
# make demo and make test set up what they need first: .venv, and Debian packages if we are root.

PYTHON := .venv/bin/python
PYTEST_ARGS ?=

.PHONY: demo test test-hard test-vm test-vm-subset bench lint docs setup clean

demo: .venv/ready-demo
	$(PYTHON) tools/demo.py

test: .venv/ready-test
	$(PYTHON) -m pytest $(PYTEST_ARGS)

# Other architectures and kernels, in QEMU: half an hour on two processors; fetches hundreds of megabytes the first time.
# Some of them: make test-vm ARCH=s390x KERNEL=6.12 TESTS="read or update"
test-vm: .venv/ready-vm
	$(PYTHON) -m pytest -m vm tests/vm --arch "$(ARCH)" --kernel "$(KERNEL)" -k "$(TESTS)" $(PYTEST_ARGS)

# A little of everything on all ten kernels; a few minutes.
test-vm-subset: .venv/ready-vm
	$(PYTHON) -m pytest -m vm_subset tests/vm --arch "$(ARCH)" --kernel "$(KERNEL)" -k "$(TESTS)" $(PYTEST_ARGS)

# What make test does of harm and nonsense, in full numbers: 200 and 100 kills, 150 and 150 failing calls, 10,000 and
# 300 mutated checkpoints, and images cut at every length.
# Takes half an hour; prints the counts.
test-hard: .venv/ready-test
	TORPOR_KILLS=200 TORPOR_RESTORE_KILLS=100 TORPOR_FAILING=150 TORPOR_MUTATIONS=10000 \
		TORPOR_RESTORED_MUTATIONS=300 TORPOR_CUTS=all $(PYTHON) -m pytest tests/faults $(PYTEST_ARGS)

# Against $CRIU, the `criu` that is there, or the one that tests/peer-criu sets up.
bench: .venv/ready-test
	CRIU=$${CRIU:-$$(command -v criu || tests/peer-criu)} $(PYTHON) -m bench

lint: .venv/ready-demo
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

docs: .venv/ready-demo
	$(PYTHON) tools/keywords.py
	$(PYTHON) tools/docs.py
	$(PYTHON) tools/supported.py

setup: .venv/ready-test

# The executor is built by the way, as a part of the package.
.venv/ready-%: pyproject.toml tools/setup tools/build_executor.py src/torpor/arch/executor.c
	tools/setup $*
	touch $@

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache
