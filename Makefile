# `make run` shows the main job done on this machine, `make test` proves it. `make help` lists the rest.

SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
export PREFIX SYSCONFDIR DESTDIR PYTHON
# Tests need root for namespaces, mounts and cgroups; an ordinary user gets it through sudo.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
TESTS ?= tests/integration
# All of them run, also after one that fails.
CHECKS := "ruff check ." "ruff format --check ." mypy "lint-imports --no-logo" "python -m scripts.rules" \
  "python -m scripts.generated --check"

.DEFAULT_GOAL := help
.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z][a-z.-]*):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: system.run system.test venv.run venv.dev
system.run:
	@scripts/packages.sh run
system.test:
	@scripts/packages.sh run test
venv.run:
	@scripts/venv.sh run
venv.dev:
	@scripts/venv.sh dev

.PHONY: root
root:
	@if [ -n "$(AS_ROOT)" ]; then \
	  command -v sudo >/dev/null || { echo "error: this needs root, and there is no sudo: run it as root" >&2; exit 1; }; \
	  echo "this needs root: using sudo"; fi

.PHONY: run
run: system.run venv.run root ## run redis in a pod through this runtime, step by step, and leave nothing behind
	@$(AS_ROOT) $(PY) -m scripts.main_job

.PHONY: test
test: test.property test.integration ## all tests

.PHONY: test.property
test.property: venv.dev ## the fast, pure tests
	$(PY) -m pytest tests/property

.PHONY: test.integration
test.integration: system.test venv.dev root ## the tests on real parts; TESTS=path chooses some
	$(AS_ROOT) $(PY) -m pytest $(TESTS)

.PHONY: soak mutate
soak: system.test venv.dev root ## random programs on the simulated node for MINUTES (60), then 200 kills and 1000 containers on the real one
	@$(AS_ROOT) $(PY) -m scripts.soak --minutes $(or $(MINUTES),60) --kills $(or $(KILLS),200) --churn $(or $(CHURN),1000)
mutate: venv.dev ## break the core on purpose, in each of many ways, and see that the simulation finds it
	@$(PY) -m scripts.mutate

.PHONY: bench bench.profile
bench: system.test venv.dev root ## compare with containerd and bare commands, about 10 minutes; QUICK=1 takes 2
	@$(AS_ROOT) $(PY) -m bench $(if $(QUICK),--quick)
bench.profile: system.test venv.dev root ## where the time of a pod goes, effect by effect, beside bare commands
	@$(AS_ROOT) $(PY) -m bench.profile

.PHONY: check
check: venv.dev ## lint, format, types, import rules, house rules, generated files
	@failed=''; for check in $(CHECKS); do \
	  echo "== $$check"; $(VENV)/bin/$$check || failed="$$failed; $$check"; done; \
	[ -z "$$failed" ] || { echo "failed:$${failed#;}" >&2; exit 1; }

.PHONY: fix
fix: venv.dev ## apply what ruff can repair by itself
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

.PHONY: spec
spec: venv.dev ## write the generated files: CRI stubs, lifecycle diagrams, option reference
	$(PY) -m scripts.generated

.PHONY: install
install: ## install into PREFIX (default /usr/local), below DESTDIR when that is given
	@scripts/install.sh programs

.PHONY: install.config
install.config: ## write SYSCONFDIR/crio/crio.conf (default /etc) unless there is one
	@scripts/install.sh config

.PHONY: clean
clean: ## remove the environment, caches and build results
	@rm -rf $(VENV) build dist bench/out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info && \
	  find bench conmon crio_core crio_io crio_server scripts tests -name __pycache__ -type d -prune -exec rm -rf {} + || \
	  { echo "error: what a run through sudo left belongs to root: sudo make clean" >&2; exit 1; }
