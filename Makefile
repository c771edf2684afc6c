# make demo [DATA=s3://bucket/prefix]   the whole method on real text, from a clean clone
# make test                             format, lint, types, all tests (on Debian installs Chromium if there is none)
# make check                            format, lint, types, the quick tests: for while one works
# make study [STUDY=small]              which method wins, at equal tokens: from the text to the tables (half an hour)
# make lint | make install | make bench | make constraints [STACK=plain]
# make install|demo STACK=plain         the same on the torch and transformers that Composer asks for (docs/install.md)
# make test STACK=plain                 a part of the tests on that stack; `make test` ends with it
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# current: the newest torch and transformers, through overrides.txt; plain: what Composer's own pins allow.
STACK ?= current
ifeq ($(STACK),current)
VENV ?= .venv
OTHER_VENV ?= .venv-plain
CONSTRAINTS := constraints.txt
OVERRIDES := overrides.txt
NEWEST_PYTHON := 3.14
else ifeq ($(STACK),plain)
VENV ?= .venv-plain
OTHER_VENV ?= .venv
CONSTRAINTS := constraints-plain.txt
OVERRIDES :=
NEWEST_PYTHON := 3.13
else
$(error STACK must be current or plain, got $(STACK))
endif
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= tuple(map(int, "$(NEWEST_PYTHON)".split("."))))' \
	2>/dev/null && echo "$$python" && break; done)
RUN := $(VENV)/bin
PYRIGHT = PYRIGHT_PYTHON_IGNORE_WARNINGS=1 "$(RUN)/pyright" --pythonpath "$(RUN)/python"
STAMP := $(VENV)/.crisp-stream-installed

# The dataset of the demo: a folder or s3://, gs://, az://. Everything else of the demo stands in OUT.
OUT ?= demo-out
DATA ?= $(OUT)/data
# Further arguments of `crisp-stream demo`, such as --fresh, or of `crisp-stream study`, such as --plan.
ARGS ?=
# A packaged study, or the YAML file of one.
STUDY ?= small
# What runs on the plain stack: files of the other one, the loader, training with resume, export, evaluation, MiniLM.
PLAIN_TESTS := $(addprefix tests/,test_stacks.py loading/test_mixture_dataset.py training/test_train.py \
	models/test_export.py evaluation/test_perplexity.py writers/embedding/test_embed.py)
# Further arguments of pytest, such as `-k order`.
PYTEST_ARGS ?=

# OpenMP threads that sleep while they wait: on a busy machine 4 times faster than spinning ones (see crisp_stream/demo.py).
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help install demo study test check lint browser bench constraints
help:
	@sed -n '/^#/!q; s/^# //p' Makefile

install: $(STAMP)

# uv installs in two minutes what takes pip six; where it cannot be had, or fails, pip does the same from the same pins.
# pip knows no overrides: it installs every pin, and looks at no requirement.
$(STAMP): pyproject.toml $(CONSTRAINTS) $(OVERRIDES)
	@test -n "$(PYTHON)" || { echo "error: crisp-stream needs Python 3.11 to $(NEWEST_PYTHON) on this stack; none was found. Run: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x "$(RUN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	@"$(RUN)/python" -m pip --version >/dev/null 2>&1 || "$(RUN)/python" -m ensurepip -q
	@test -x "$(RUN)/uv" || "$(RUN)/python" -m pip install -q --disable-pip-version-check uv || true
	UV_HTTP_TIMEOUT=300 "$(RUN)/uv" pip install --compile-bytecode --python "$(RUN)/python" -c $(CONSTRAINTS) \
		$(OVERRIDES:%=--override %) -e '.[dev]' \
	|| { "$(RUN)/python" -m pip install --disable-pip-version-check --no-deps -r $(CONSTRAINTS) \
		&& "$(RUN)/python" -m pip install --disable-pip-version-check --no-deps -e .; }
	@touch "$@"

demo: $(STAMP)
	"$(RUN)/crisp-stream" demo --out "$(DATA)" --run-folder "$(OUT)" $(ARGS)

study: $(STAMP)
	"$(RUN)/crisp-stream" study "$(STUDY)" $(ARGS)

lint: $(STAMP)
	"$(RUN)/ruff" check .
	"$(RUN)/ruff" format --check .
	$(PYRIGHT)

# The tests of the report page look at it in the system's Chromium.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do command -v "$$name" >/dev/null && exit 0; done; \
	command -v apt-get >/dev/null || exit 0; \
	sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	{ $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; } \
	|| echo "chromium could not be installed; the tests of the report page will fail" >&2

# pyright needs a core for a minute and a half: it runs beside the tests. What it finds is shown after their closing line.
# $(call test_beside_types,ARGUMENTS OF PYTEST)
define test_beside_types
	"$(RUN)/ruff" check .
	"$(RUN)/ruff" format --check .
	types=$$(mktemp); $(PYRIGHT) > "$$types" 2>&1 & pyright=$$!; \
	trap 'kill $$pyright 2>/dev/null || true; rm -f "$$types"' EXIT; trap 'exit 130' INT; \
	status=0; "$(RUN)/python" -m pytest -n auto --dist loadfile --no-loadscope-reorder $(1) $(PYTEST_ARGS) || status=$$?; \
	wait $$pyright || { cat "$$types"; status=1; }; \
	exit $$status
endef

# Each stack reads what the other one wrote (tests/test_stacks.py).
test: export OTHER_PYTHON := $(CURDIR)/$(OTHER_VENV)/bin/python
ifeq ($(STACK),current)
test: $(STAMP) browser
	$(MAKE) install STACK=plain VENV=$(OTHER_VENV)
	$(call test_beside_types,--durations=20)
	$(MAKE) test STACK=plain VENV=$(OTHER_VENV) OTHER_VENV=$(VENV) PYTEST_ARGS=
else
test: $(STAMP)
	$(MAKE) install STACK=current VENV=$(OTHER_VENV)
	"$(RUN)/python" -m pytest -n auto --dist loadfile $(PLAIN_TESTS) $(PYTEST_ARGS)
endif

check: $(STAMP)
	$(call test_beside_types,--quick)

bench: $(STAMP)
	for benchmark in benchmarks/*/bench_*.py; do "$(RUN)/python" "$$benchmark"; done

# The pins, compiled for Linux and macOS at once. `make constraints ARGS=--upgrade` moves to the newest versions that fit.
constraints: $(STAMP)
	cp $(CONSTRAINTS) constraints.new
	echo ".[dev,bench] ; python_version <= '$(NEWEST_PYTHON)' and sys_platform != 'win32'" \
	| "$(RUN)/uv" pip compile -q - $(OVERRIDES:%=--override %) --universal --python-version 3.11 --fork-strategy fewest \
		--no-annotate --no-header --no-emit-index-url $(ARGS) -o constraints.new
	{ sed -n '/^#/p' $(CONSTRAINTS); \
		sed "/^\./d; s/ ; python_full_version < '3[.][0-9]*' and sys_platform != 'win32'\$$//" constraints.new; } > constraints.sorted
	rm constraints.new
	mv constraints.sorted $(CONSTRAINTS)
