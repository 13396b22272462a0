# make quickstart   trains NTK-KARE on real data, prints the comparison, draws it, exports it
# make test         runs every test but the slow ones
# make test-slow    runs those, for minutes
# make lint         ruff and mypy
# make coverage     tests with line coverage
# make test-oldest  tests with the oldest dependencies that are supported
# make experiments  the paper's experiments and ours: hours; goes on where it was stopped
# make benchmark    prints ratios measured in one run
# make benchmark-solvers  solvers from a thousand rows to a million: most of an hour
# make benchmark-ntk  the same against torch.func and neural-tangents, in venvs of their own

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
EXTRAS ?= dev
WORKERS ?= 2

export TF_CPP_MIN_LOG_LEVEL ?= 2
export KERAS_BACKEND = tensorflow

.PHONY: quickstart test test-slow coverage lint test-oldest experiments benchmark benchmark-solvers benchmark-ntk clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $(VENV)/.quickstart $@

$(VENV)/.quickstart: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[quickstart]'
	touch $@

quickstart: $(VENV)/.quickstart
	$(BIN)/python tutorials/quickstart.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

coverage: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term --cov-fail-under=95

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict keras_kare

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q --disable-pip-version-check -c tests/oldest.txt -e '.[test]'
	.venv-oldest/bin/python -m pytest -n $(WORKERS) --dist worksteal

experiments: $(VENV)/.installed
	$(BIN)/python -m keras_kare.experiments simulation
	$(BIN)/python -m keras_kare.experiments mnist
	$(BIN)/python -m keras_kare.experiments higgs
	$(BIN)/python -m keras_kare.experiments drift --seeds 3
	$(BIN)/python -m keras_kare.experiments equivalence --seeds 3
	$(BIN)/python -m keras_kare.experiments convergence
	$(BIN)/python -m keras_kare.experiments regression
	$(BIN)/python -m keras_kare.experiments fooled
	$(BIN)/python -m keras_kare.experiments uci --protocol honest paper
	$(BIN)/python -m keras_kare.experiments guarded
	$(BIN)/python -m keras_kare.experiments uci --protocol repeated --half screen
	$(BIN)/python -m keras_kare.experiments uci --protocol repeated --half confirm
	$(BIN)/python -m keras_kare.experiments report --reference "$(KERAS_KARE_REFERENCE)"

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/kare_step.py
	$(BIN)/python benchmarks/prediction.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/serving.py

benchmark-solvers: $(VENV)/.installed
	for table in ladder wide stream mnist; do $(BIN)/python benchmarks/solvers.py $$table; done

.venv-torch/.installed: benchmarks/peers/torch.txt
.venv-neural-tangents/.installed: benchmarks/peers/neural_tangents.txt
.venv-torch/.installed .venv-neural-tangents/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

benchmark-ntk: $(VENV)/.installed .venv-torch/.installed .venv-neural-tangents/.installed
	$(BIN)/python benchmarks/ntk.py --plot benchmarks/ntk.png

clean:
	rm -rf $(VENV) .venv-oldest .venv-torch .venv-neural-tangents build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache quickstart
