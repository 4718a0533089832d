# `make demo` and `make test` set themselves up; nothing else is needed before them but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed

# Threads that wait asleep: with spinning ones, a second process on the machine slows torch down many times.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo notebooks test lint clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet torch -c constraints.txt
	$(VENV)/bin/pip install --quiet --editable '.[dev]' -c constraints.txt
	touch $@

demo: $(INSTALLED)
	$(VENV)/bin/sard-lora demo --output runs/demo

notebooks: $(INSTALLED)
	$(VENV)/bin/python notebooks/execute.py --output runs/notebooks

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: lint
	$(VENV)/bin/python -m pytest

clean:
	rm -rf $(VENV) runs build dist *.egg-info
