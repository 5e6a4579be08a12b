# What a developer types. Every target uses .venv, which `make setup` builds.
.PHONY: setup test test-fast lint format docs demo cards conformance coverage wheel clean test-min test-new soak

setup:
	python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[test]"

test:  ## everything, slow tests included
	.venv/bin/python -m pytest -m ""

test-fast:
	.venv/bin/python -m pytest

test-min:  ## the fast tests with the lowest versions allowed, in an environment of their own
	.ci/test-min

test-new:  ## the fast tests with the newest releases, in an environment of their own
	.ci/test-new

soak:  ## kills, a long extraction and the tests of faults, for docs/soak.md; goes on where it was stopped
	.venv/bin/python tests/soak/run.py

lint:
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format:
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs:  ## the documentation in site/; a broken link or a missing reference is an error
	.venv/bin/pip install -q -c constraints.txt -e ".[docs]"
	.venv/bin/python docs/gather.py
	.venv/bin/zensical build --strict --clean

demo:
	.venv/bin/mmlg demo --output-dir out

cards:  ## render the model cards again from the manifest and the results
	.venv/bin/python -m upload render

conformance:  ## transformers' own model tests against our classes (downloads its source distribution)
	.venv/bin/python tests/conformance/run.py $(ARGUMENTS)

coverage:
	.venv/bin/python -m pytest -m "" --cov=mmlg_hf --cov-report=term-missing

wheel:
	.venv/bin/pip wheel . --no-deps -w dist

clean:
	rm -rf build dist out site *.egg-info
