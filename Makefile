# One command each: `make demo` runs the main job, `make test` passes the tests. README.md has the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
ROUNDS ?= 10
# Tests mostly wait, so that there are more workers than cores. Those of one file share fixtures, and a worker.
WORKERS ?= 6
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The oldest Python that README promises; the pins are resolved by it, and hold for every newer one: constraints.txt for
# what the mirror runs on, constraints-dev.txt for what tests, documents and releases need besides.
OLDEST := $(shell sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
VERSION := import sys; wanted = tuple(map(int, "$(OLDEST)".split("."))); version = sys.version_info[:3]

# Else each process that the tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint quick check coverage test-s3 soak explore format bench bench-s3 bench-lines bench-registry man docs screenshots release pins audit install clean

demo: $(VENV)/run.ok        ## a simulated DataRobot and the mirror in front of it (ARGS=--once ends after the story)
	@$(BIN)/pps-mirror demo $(ARGS)

install: $(VENV)/run.ok     ## pps-mirror in .venv/bin

test: $(VENV)/dev.ok        ## the whole suite (ARGS: passed on to pytest)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.ok        ## format, lint, types, direction of imports, dead code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@! $(BIN)/vulture mirror tests benchmarks | grep '^mirror/'  # code that nothing uses

quick: lint                 ## that, pure logic and the disk store: while you work
	$(BIN)/python -m pytest -q -n 2 tests/unit tests/property tests/stores/test_disk.py tests/stores/test_space.py $(ARGS)

check: lint                 ## that, and the whole suite: in parallel, and then what other tests would disturb, alone
	@failed=0; \
	$(BIN)/python -m pytest $(PARALLEL) -m 'not soak and not alone' $(ARGS) || failed=1; \
	$(BIN)/python -m pytest -m alone $(or $(ARGS),$$(grep -rl --include=*.py 'mark[.]alone' tests)) || [ $$? -eq 5 ] || failed=1; \
	exit $$failed  # (5: ARGS leaves none of them)

coverage: $(VENV)/dev.ok    ## build/coverage, pages that show which lines pure logic and the disk store reach
	$(BIN)/python -m coverage run --source=mirror -m pytest -q tests/unit tests/property tests/stores/test_disk.py tests/stores/test_space.py $(ARGS)
	$(BIN)/python -m coverage html --directory build/coverage
	$(BIN)/python -m coverage report --skip-covered --sort=cover | head -30

test-s3: $(VENV)/dev.ok     ## stores and fleets over SeaweedFS, Ceph and Swift, each a real one (needs root)
	@for server in weed ceph swift; do echo "== $$server"; S3_SERVER=$$server FLEET_SEEDS=20 \
	  $(BIN)/python -m pytest -q tests/stores/test_conformance.py tests/stores/test_s3_servers.py \
	  tests/faults/test_fleet.py tests/faults/test_fleet_takes_over.py $(ARGS) || exit 1; done

soak: $(VENV)/dev.ok        ## at random for an hour (SOAK_SECONDS=...)
	$(BIN)/python -m pytest -s -m soak $(ARGS)

explore: $(VENV)/dev.ok     ## property tests with data that nobody has tried, again and again (ROUNDS=10)
	@for round in $$(seq $(ROUNDS)); do echo "round $$round of $(ROUNDS)"; $(BIN)/python -m pytest -q \
	  -m 'hypothesis and not soak' --hypothesis-profile='at random' $(ARGS) || exit 1; done

format: $(VENV)/dev.ok
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/run.ok       ## side by side with nginx, Varnish and curl; prints a table of ratios
	@$(BIN)/python -m benchmarks $(ARGS)

bench-s3: $(VENV)/dev.ok    ## the same over a bucket (SeaweedFS), beside a disk and beside botocore
	@$(BIN)/python -m benchmarks.s3 $(ARGS)

bench-registry: $(VENV)/run.ok ## how blobs are read from an archive, beside gzip and zlib alone
	@$(BIN)/python -m benchmarks.registry $(ARGS)

bench-lines: $(VENV)/dev.ok ## over slow lines, with one connection and with four, beside aria2c
	@$(BIN)/python -m benchmarks.slow_lines $(ARGS)

man: $(VENV)/dev.ok         ## build/pps-mirror.1, the manual page, from the help
	@$(BIN)/python docs/manual.py build/pps-mirror.1

screenshots: $(VENV)/dev.ok ## docs/images, of the status page (needs Chromium)
	@$(BIN)/python -m tests.browser.screenshots

docs: $(VENV)/dev.ok        ## build/site, this documentation as pages that ask nobody for anything
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release: $(VENV)/dev.ok     ## build and try out what is handed out, then cut the CHANGELOG; pushes nothing
	@$(BIN)/python -m tools.release

# What the mirror runs on comes first, so that no tool for tests, documents or releases holds it back.
pins:                       ## constraints.txt and constraints-dev.txt anew: the newest versions that the oldest Python takes
	@$(PYTHON) -c '$(VERSION); sys.exit(version != wanted)' || { echo "The pins are resolved by the oldest Python that is promised, $(OLDEST), as on Debian 12; there: make pins PYTHON=/usr/bin/python3" >&2; exit 2; }
	@rm -rf build/pins
	@$(PYTHON) -m venv build/pins
	@echo "Resolving the pins with Python $(OLDEST) ..."
	$(call quiet_pip,build/pins,-e .)
	@build/pins/bin/pip --disable-pip-version-check freeze --exclude-editable >build/pins.txt
	$(call quiet_pip,build/pins,-c build/pins.txt -e '.[dev]')
	@build/pins/bin/pip --disable-pip-version-check freeze --exclude-editable --all | grep -v '^pip==' | grep -vxF -f build/pins.txt >build/pins-dev.txt
	@mv build/pins.txt constraints.txt
	@mv build/pins-dev.txt constraints-dev.txt
	@rm -rf build/pins

audit: $(VENV)/audit.ok     ## known vulnerabilities of the pinned dependencies (needs the Internet)
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt -r constraints-dev.txt

# $(call quiet_pip,VENV,ARGUMENTS): warnings and errors are shown at once, and when it fails also the end of what else
# pip said. Only there does it say which pins conflict, or which Python a package wants.
quiet_pip = @$(1)/bin/pip install --disable-pip-version-check --progress-bar off $(2) >$(1)/pip.log || \
  { tail -n 30 $(1)/pip.log >&2; echo "pip could not install what is needed (all that it said: $(1)/pip.log)" >&2; exit 1; }

$(BIN)/pip:
	@$(PYTHON) -c '$(VERSION); sys.exit(version < wanted)' || { echo "pps-mirror needs Python $(OLDEST) or newer; try: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python lacks the venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.ok: $(BIN)/pip pyproject.toml constraints.txt
	@echo "Setting up $(VENV): pip installs what the mirror runs on, once; half a minute, or as long as the line takes"
	$(call quiet_pip,$(VENV),-c constraints.txt -e .)
	@touch $@

$(VENV)/dev.ok: $(BIN)/pip pyproject.toml constraints.txt constraints-dev.txt
	@echo "Setting up $(VENV) with what the tests need, once; some minutes"
	$(call quiet_pip,$(VENV),-c constraints.txt -c constraints-dev.txt -e '.[dev]')
	@touch $@ $(VENV)/run.ok

$(VENV)/audit.ok: $(BIN)/pip
	@echo "Setting up $(VENV)/audit ..."
	@$(PYTHON) -m venv $(VENV)/audit
	$(call quiet_pip,$(VENV)/audit,'pip-audit>=2.10$(comma)<3')
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
