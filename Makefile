# odproject on one machine. `make up` runs the service, `make help` lists the rest.
#
#   make PYTHON=/path/to/python3.12 ...   chooses the interpreter for .venv

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install install-dev up demo test faults lint bench train screenshots clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

help:
	@echo "make up      run the service on http://127.0.0.1:8080"
	@echo "make demo    the main job, start to finish; MEDIA=folder takes your own images and videos"
	@echo "make test    run the tests"
	@echo "make faults  break the running service in every way, and see that it recovers (minutes)"
	@echo "make lint    check style, types, imports and migrations"
	@echo "make screenshots  the README's pictures again; PAGES=folder takes every page of the service"
	@echo "make train   train the small network on; DATA=folder OUT=folder STEPS=n, see docs/TRAINING.md"
	@echo "make bench   measure the pipeline on this machine; FILES=\"a.mp4 b.mp4\" on your own videos"

# An interpreter counts when it runs: a shim may stand in the path and lead nowhere.
.venv/bin/python:
	@found=; other=; for candidate in "$(PYTHON)" python3.12 python3.11 python3; do \
	  [ -n "$$candidate" ] || continue; \
	  version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  case "$$version" in 3.11|3.12) found=$$candidate; break;; *) other="$$other $$version";; esac; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "odproject needs Python 3.11 or 3.12; found$${other:- none}. Set PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	echo "Making .venv with Python $$version"; \
	rm -rf .venv; "$$found" -m venv .venv || { rm -rf .venv; exit 1; }

.venv/.installed: requirements.txt | .venv/bin/python
	@echo "Installing requirements.txt (a few minutes, once)"
	@$(PIP) install --quiet -r requirements.txt
	@touch $@

.venv/.installed-dev: requirements.txt requirements-dev.txt | .venv/bin/python
	@echo "Installing requirements-dev.txt (a few minutes, once)"
	@$(PIP) install --quiet -r requirements-dev.txt
	@touch .venv/.installed $@

install: .venv/.installed
install-dev: .venv/.installed-dev

# exec makes the service a child of make itself, with which it then ends, however make ends.
up: install
	@OD_DIE_WITH_PARENT=$$PPID exec $(BIN)/python manage.py up

demo: install
	@exec $(BIN)/python manage.py demo $(if $(MEDIA),"$(MEDIA)")

bench: install
	@exec $(BIN)/python -m inference.pipeline.bench $(FILES)

train: install
	@[ -n "$(DATA)" ] && [ -n "$(OUT)" ] || { echo "make train DATA=folder OUT=folder [STEPS=n], see docs/TRAINING.md" >&2; exit 1; }
	@exec $(BIN)/python -m inference.training train inference/weights/YOLO8s_FSR.pt "$(OUT)" \
	  --data "$(DATA)" --steps $(or $(STEPS),400) $(ARGS)

test: install-dev
	@exec $(BIN)/python -m pytest -n auto --dist loadscope $(ARGS)

faults: install-dev
	@exec $(BIN)/python -m pytest tests/faults -m "fault or fault_long" $(ARGS)

screenshots: install-dev
	@exec $(BIN)/python -m tests.screenshots $(if $(PAGES),--pages "$(PAGES)")

lint: install-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy .
	@$(BIN)/lint-imports
	@$(BIN)/python manage.py makemigrations --check --dry-run

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
