# Every target sets up what it needs in .venv; a second call reuses it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= demo-out
TORCH  ?= torch==2.13.0
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: setup demo test test-slow test-full-size test-browser fuzz lint format clean

setup: $(VENV)/.ready

# On Linux without an NVIDIA driver a CPU build of torch saves gigabytes. If the registry's own build would
# bring CUDA along (the dry run says so), PyTorch's CPU index is asked as well; its builds sort as newer.
$(VENV)/.ready: pyproject.toml
	@echo "setting up $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@index=""; \
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 && \
	   $(PIP) install --dry-run --no-deps --ignore-installed --report - "$(TORCH)" | grep -q '"nvidia-'; then \
		index="--extra-index-url https://download.pytorch.org/whl/cpu"; \
	fi; \
	$(PIP) install $$index "$(TORCH)"
	@$(PIP) install -e ".[dev]"
	@touch $@

demo: setup
	@$(BIN)/cidl demo --out $(OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# As many processes as cores, four at most: each imports everything. A file's tests stay together and share its fixtures.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Then the properties of the default tests again, with a dozen times as many examples each.
test-slow: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist loadfile -m slow
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "hypothesis and not full_size and not slow" --hypothesis-profile thorough

test-full-size: setup
	$(BIN)/python -m pytest -m full_size

# A hundred thousand broken inputs.
fuzz: setup
	$(BIN)/python -m tests.fuzz --inputs 100000

test-browser: setup
	$(BIN)/python -m pytest -m browser

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
