# `make demo` and `make test` set up everything they need in .venv, from PyPI alone.
.DEFAULT_GOAL := demo
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# faiss-cpu and faiss-gpu are the same module: exactly one of them, by whether an NVIDIA driver is there.
FAISS  := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
DEMO   := demo
JOBS   ?= 2
MARK   ?= not long

.PHONY: help demo test check docs bench clean

help:
	@sed -n 's/^\([a-z]*\): .*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/demo-installed ## embed, train and evaluate on 1,797 digits
	$(BIN)/temi embed digits --out $(DEMO)/cache --config configs/demo.toml
	$(BIN)/temi train-heads $(DEMO)/cache --out $(DEMO)/run --config configs/demo.toml
	$(BIN)/temi evaluate $(DEMO)/run
	@echo "temi is in $(BIN): \". $(BIN)/activate\" lets this shell find it"

# One thread a process: the tests' matrices are tiny, and threads that wait for each other cost more than they bring.
# A file stays in one process, so that what its tests share is made once.
test: $(VENV)/installed ## run the tests in JOBS processes; MARK= runs the long ones, too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "$(MARK)"

check: $(VENV)/installed ## format, lint, types, and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed ## write docs/commands.md anew
	$(BIN)/typer temi.cli utils docs --name temi --title Commands --output docs/commands.md
	$(BIN)/python -c "import html, pathlib; p = pathlib.Path('docs/commands.md'); p.write_text(html.unescape(p.read_text()))"

bench: $(VENV)/installed ## accuracy on three sets that need no download
	$(BIN)/python benchmarks/quality.py --results quality.jsonl --sets digits,balanced,imbalanced
	$(BIN)/python benchmarks/quality.py --results quality.jsonl --table

clean:
	rm -rf $(DEMO)

$(VENV)/demo-installed: pyproject.toml
	@echo "installing into $(VENV): 7 GB on the disk, 5.6 of them torch, which brings CUDA also where no GPU is"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --editable '.[$(FAISS),demo]'
	touch $@

$(VENV)/installed: $(VENV)/demo-installed
	@echo "installing what tests and checks need into $(VENV): 1 GB more"
	$(BIN)/pip install --quiet --editable '.[$(FAISS),demo,dev]'
	mkdir -p $(VENV)/src && ln -sfn $(CURDIR) $(VENV)/src/temi  # mypy finds the package there
	touch $@
