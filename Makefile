# Names commands; the scripts decide what is up to date. `make SOURCE=DIR_OR_URL_OR_ZIP` takes
# MIT-BIH from there instead of PhysioNet.
PYTHON ?= python3
VENV   ?= .venv
SOURCE ?=
PROTOCOLS = beat patient
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/installed
TESTS_INSTALLED = $(VENV)/tests-installed
FETCH = $(RUN) dataset.py --download $(if $(SOURCE),--source "$(SOURCE)")

.PHONY: all data real simulated reproduce test clean

# exit status 3 of --download: no source of the real data answers; anything else that is not 0 stops
all: $(INSTALLED)
	@$(FETCH); status=$$?; \
	if [ $$status -eq 0 ]; then $(MAKE) --no-print-directory real; \
	elif [ $$status -eq 3 ]; then \
	  echo; echo "*** MIT-BIH CANNOT BE REACHED: GOING ON WITH SIMULATED DATA. NOT A RESULT. ***"; echo; \
	  $(MAKE) --no-print-directory simulated; \
	else exit $$status; fi

$(INSTALLED): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

data: $(INSTALLED)
	$(FETCH)

real: $(INSTALLED)
	$(RUN) dataset.py
	for p in $(PROTOCOLS); do $(RUN) train_mitbih.py --protocol $$p --resume && \
	  $(RUN) evaluate.py --protocol $$p --baselines || exit 1; done

simulated: $(INSTALLED)
	$(RUN) synthetic.py
	$(RUN) dataset.py --simulated
	for p in $(PROTOCOLS); do $(RUN) train_mitbih.py --protocol $$p --resume --simulated && \
	  $(RUN) evaluate.py --protocol $$p --simulated || exit 1; done

# every seed of config.SEEDS, SEED last, so that its tables hold the spread over the others
reproduce: data
	$(RUN) dataset.py --force
	for p in $(PROTOCOLS); do \
	  for s in $$($(RUN) -c "import config as c; print(*[s for s in c.SEEDS if s != c.SEED], c.SEED)"); do \
	    $(RUN) train_mitbih.py --protocol $$p --seed $$s --force && \
	    $(RUN) evaluate.py --protocol $$p --seed $$s --force || exit 1; done; done
	for p in $(PROTOCOLS); do $(RUN) evaluate.py --protocol $$p --baselines --force || exit 1; done
	$(RUN) select_score.py
	$(RUN) ablation.py
	$(RUN) report.py --write

$(TESTS_INSTALLED): requirements-test.txt requirements-cluster.txt requirements-export.txt requirements-benchmark.txt $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	touch $@

test: $(TESTS_INSTALLED)
	$(RUN) -m pytest -q tests

clean:
	rm -rf simulated data/segments.npz checkpoints/*.resume.pt
	find . -name '.part-*' -not -path './$(VENV)/*' -delete
