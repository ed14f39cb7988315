# `make demo` and `make test` are all a newcomer needs: each makes the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?=
BENCH ?=


.PHONY: help demo test check format model docs bench bench-quick bench-peers bench-fsspec bench-fetchers \
    bench-connections bench-cluster bench-many image matrix clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'shmstream needs Python 3.11 or later: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	@touch $@

$(VENV)/.docs-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

demo: $(VENV)/.ready  ## a stream, a flight, a registry, a cluster; one of each is killed
	$(BIN)/shmstream demo

test: $(VENV)/.ready  ## the whole suite; TESTS=... for a part of it
	PYTHONMALLOC=default $(BIN)/python -X dev -m pytest -n auto --dist loadfile \
	    --no-loadscope-reorder $(TESTS)

check: $(VENV)/.ready  ## format, lint, strict types, complete types, layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright tests/typing
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=$(CURDIR) \
	    $(BIN)/pyright --verifytypes shmstream --ignoreexternal >$(VENV)/types || \
	    { cat $(VENV)/types; exit 1; }
	$(BIN)/python -m pytest -q tests/docs/test_house.py

format: $(VENV)/.ready  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

model: $(VENV)/.ready  ## try every order of steps of the protocol's model, with spin; some minutes
	$(BIN)/python -m tools.models

docs: $(VENV)/.docs-ready  ## make the pages of tables in the code anew, and the whole site, in site/
	$(BIN)/python -m tools.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.ready  ## the measurements behind the README's figures
	$(BIN)/python -m bench.stream --json bench/stream.json --docs docs/costs.md
	$(BIN)/python -m bench.flight --json bench/flight.json --charts bench/charts

bench-quick: $(VENV)/.ready  ## whether the measurements still run; a minute
	$(BIN)/python -m bench.stream --quick
	$(BIN)/python -m bench.flight --quick

bench-many: $(VENV)/.ready  ## 50,000 files in /dev/shm, 100,000 blobs, 1,000 flights, into docs/costs.md
	$(BIN)/python -m bench.many --docs docs/costs.md $(BENCH)

bench-peers: $(VENV)/.ready  ## beside nginx, Varnish, Squid, Traffic Server; BENCH=--resume goes on
	$(BIN)/python -m bench.peers $(BENCH)

bench-fsspec: $(VENV)/.ready  ## `shmstream::` beside the caches of fsspec, into docs/fsspec.md
	$(BIN)/python -m bench.caches fsspec --docs docs/fsspec.md $(BENCH)

bench-fetchers: $(VENV)/.ready  ## beside huggingface_hub, pooch, aria2c, into docs/compared.md
	$(BIN)/python -m bench.caches fetchers --docs docs/compared.md $(BENCH)

bench-connections: $(VENV)/.ready  ## beside aria2c, curl, s3fs, also 50 ms away, into docs/flight.md
	$(BIN)/python -m bench.connections --docs docs/flight.md $(BENCH)
	$(BIN)/python -m bench.connections --docs docs/flight.md --round-trip 50 \
	    --only throttled,unthrottled $(BENCH)

bench-cluster: $(VENV)/.ready  ## nodes in network namespaces, into docs/cluster.md; needs root, Redis
	$(BIN)/python -m bench.cluster --docs docs/cluster.md $(BENCH)

image: $(VENV)/.ready  ## build the container image on Debian's packages, and run it; needs root, mmdebstrap
	SHMSTREAM_IMAGE_BASE=debian SHMSTREAM_REQUIRE_REAL=1 $(BIN)/python -m pytest -q \
	    tests/docs/test_paths.py -k kubernetes

matrix:  ## the suite on every Python from 3.11 on that this machine has
	@for version in 3.11 3.12 3.13 3.14; do \
	    if python$$version -c '' 2>/dev/null; then \
	        $(MAKE) --no-print-directory test PYTHON=python$$version VENV=.venv-$$version || exit 1; \
	    else echo "no python$$version here"; fi; \
	done

clean:  ## remove the virtual environments and caches
	rm -rf .venv .venv-3.* build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis site
