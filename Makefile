# Two commands do everything on a bare machine: `make demo` and `make test`. Each sets up what it needs first.
WATTBIT := .venv/bin/wattbit
DEMO_ARGS ?=
BOARD ?= pynq-z2
TOOLCHAIN ?=
# a file's tests stay together, for they share what they build; the demo's, the longest, begin early
PYTEST := .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo board deploy rollback virtual-board test test-system test-all lint clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup:  ## Debian packages, Python environment, the virtual board's root folder, yosys' compiled cache
	@python3 wattbit/provision.py
	@$(WATTBIT) setup

demo: setup  ## the whole path on real text and the virtual board, ending in runs/*/report/report.html
	$(WATTBIT) demo $(DEMO_ARGS)

board: setup  ## a bitstream for BOARD=pynq-z2, with TOOLCHAIN=vivado|open|virtual or the best at hand; makes a run if none is there
	$(WATTBIT) board --board $(BOARD) $(if $(TOOLCHAIN),--toolchain $(TOOLCHAIN))

deploy: setup  ## the last run's bundle to HOST=user@board over SSH
	$(WATTBIT) deploy $(if $(HOST),--host $(HOST))

rollback: setup  ## HOST goes back to the bundle before
	$(WATTBIT) rollback $(if $(HOST),--host $(HOST))

virtual-board: setup  ## the virtual board's system tier (QEMU, Debian's kernel): built once, then started in seconds
	@python3 wattbit/provision.py virtual-board
	$(WATTBIT) virtual-board build

test: setup lint  ## every law that holds in minutes
	$(PYTEST) -m "not slow"

test-system: virtual-board  ## the laws of the virtual board's system tier
	.venv/bin/python -m pytest tests/test_board_system.py

test-all: virtual-board lint  ## the slow tiers too
	$(PYTEST)

lint: setup  ## ruff and mypy --strict
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy benchmarks

clean:  ## environment and runs
	rm -rf .venv runs
