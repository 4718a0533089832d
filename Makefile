# Everything here sets itself up; nothing is needed before but Python 3.11 or newer, and for `make test` a Chromium, which
# root gets installed.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed

# Threads that wait asleep: with spinning ones, a second process on the machine slows torch down many times.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install browser demo notebooks test lint clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet torch -c constraints.txt
	$(VENV)/bin/pip install --quiet --editable '.[dev]' -c constraints.txt
	touch $@

# The studio's page is tested in a real browser.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; \
		else \
			echo "The tests need chromium and chromedriver: sudo apt-get install chromium chromium-driver" >&2; exit 1; \
		fi; \
	}

demo: $(INSTALLED)
	$(VENV)/bin/sard-lora demo --output runs/demo

notebooks: $(INSTALLED)
	$(VENV)/bin/python notebooks/execute.py --output runs/notebooks

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Two tests at a time, one core each: tensors this small gain little from a second core.
test: lint browser
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal

clean:
	rm -rf $(VENV) runs build dist *.egg-info
