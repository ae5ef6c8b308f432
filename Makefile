# Every target sets up what it needs in .venv; a second call reuses it.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= demo-out
TORCH  ?= torch==2.13.0
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
# On Linux without an NVIDIA driver the CPU build saves gigabytes. Where the index below cannot be
# reached, pip goes on with the registry alone.
CPU_TORCH := $(shell if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
	echo "--extra-index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 5"; fi)

.PHONY: setup demo test test-slow test-full-size lint format clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@echo "setting up $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(CPU_TORCH) "$(TORCH)"
	@$(PIP) install -e ".[dev]"
	@touch $@

demo: setup
	@$(BIN)/cidl demo --out $(OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-full-size: setup
	$(BIN)/python -m pytest -m full_size

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
