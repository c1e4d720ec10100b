# Commands of a developer. The environment is made once, by `uv sync`; nothing here touches it.
RUN := uv run --no-sync

.PHONY: help unit lint types test fire docs bench

help:  ## List the targets.
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## */\t/' | expand -t 8

unit:  ## Run the unit tests in two processes.
	$(RUN) pytest tests/unit -n 2 --timeout 120

lint:  ## Check format and lint, and change nothing.
	$(RUN) ruff format --check
	$(RUN) ruff check

types:  ## Check types.
	$(RUN) mypy

test: lint types  ## Check format, lint and types, then run all tests.
	$(RUN) pytest

fire:  ## Run whole jobs under long series of faults, for half an hour.
	$(RUN) pytest -m fire

docs:  ## Write the spec reference and the list of files again, then check READMEs and prose.
	$(RUN) python -m magbatch.spec.reference jobs/README.md
	$(RUN) python tests/support/files.py
	$(RUN) pytest -n 0 tests/unit/test_readme.py tests/unit/test_prose.py tests/unit/spec/test_reference.py

bench:  ## Measure magbatch on this machine against vLLM and ray.data.llm.
	$(RUN) magbatch bench
