# Names commands; the scripts decide what is up to date. `make SOURCE=DIR_OR_URL_OR_ZIP` takes
# MIT-BIH from there instead of PhysioNet.
PYTHON ?= python3
VENV   ?= .venv
SOURCE ?=
PROTOCOLS = beat patient
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/installed
REQUIREMENTS ?= requirements.txt
SECONDS ?= 600
TESTS_INSTALLED = $(VENV)/tests-installed
FETCH = $(RUN) dataset.py --download $(if $(SOURCE),--source "$(SOURCE)")
SIMULATED = --database simulated
# each worker of the tests has one core
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -q

.PHONY: all data real simulated reproduce check test fuzz kill lock clean

# exit status 3 of --download: no source of the real data answers; anything else that is not 0 stops
all: $(INSTALLED)
	@$(FETCH); status=$$?; \
	if [ $$status -eq 0 ]; then $(MAKE) --no-print-directory real; \
	elif [ $$status -eq 3 ]; then \
	  echo; echo "*** MIT-BIH CANNOT BE REACHED: GOING ON WITH SIMULATED DATA. NOT A RESULT. ***"; echo; \
	  $(MAKE) --no-print-directory simulated; \
	else exit $$status; fi

# by versions; `make REQUIREMENTS=requirements.lock` by the hashes of the index. That takes its own build
# of torch, with some GB of CUDA, where a smaller one lies on the disk or in another index
$(INSTALLED): requirements.txt $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $@

# the hashes that the index has of requirements.txt, and of all it needs, for every system
lock: $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
	$(VENV)/bin/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
	  --no-annotate --custom-compile-command "make lock" requirements.txt -o requirements.lock

data: $(INSTALLED)
	$(FETCH)

real: $(INSTALLED)
	$(RUN) dataset.py
	for p in $(PROTOCOLS); do \
	  $(RUN) train_mitbih.py --protocol $$p --resume && \
	  $(RUN) evaluate.py --protocol $$p --baselines && \
	  $(RUN) visualize.py --protocol $$p || exit 1; done

simulated: $(INSTALLED)
	$(RUN) dataset.py $(SIMULATED)
	for p in $(PROTOCOLS); do \
	  $(RUN) train_mitbih.py --protocol $$p --resume $(SIMULATED) && \
	  $(RUN) evaluate.py --protocol $$p $(SIMULATED) && \
	  $(RUN) visualize.py --protocol $$p $(SIMULATED) || exit 1; done

# every seed of config.SEEDS, SEED last, so that its tables hold the spread over the others
reproduce: data
	$(RUN) dataset.py --force
	for p in $(PROTOCOLS); do \
	  for s in $$($(RUN) -c "import config as c; print(*[s for s in c.SEEDS if s != c.SEED], c.SEED)"); do \
	    $(RUN) train_mitbih.py --protocol $$p --seed $$s --force && \
	    $(RUN) evaluate.py --protocol $$p --seed $$s --force || exit 1; done; \
	  $(RUN) evaluate.py --protocol $$p --baselines --force && \
	  $(RUN) visualize.py --protocol $$p || exit 1; done
	$(RUN) -m studies.select_score
	$(RUN) -m studies.ablation
	$(RUN) -m studies.report --write

$(TESTS_INSTALLED): $(wildcard requirements/*.txt) $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements/test.txt
	touch $@

# what needs no training, no cluster and no browser: after every edit
check: $(TESTS_INSTALLED)
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not alone" tests

# everything; what watches the clock or kills processes by itself, afterwards
test: $(TESTS_INSTALLED)
	$(PYTEST) -n 3 --dist loadfile -m "not alone" tests
	$(PYTEST) -m alone tests

# spoilt files for SECONDS, each reader in turn; those that end badly are kept in runs/fuzz
fuzz: $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements/fuzz.txt
	PYTHONPATH=tests:. $(RUN) -m fuzz.run all --seconds $(SECONDS) --found runs/fuzz

# detect.py killed at fifty random moments
kill: $(TESTS_INSTALLED)
	PYTHONPATH=tests:. $(RUN) -m fuzz.kill 50

clean:
	rm -rf simulated data/segments.npz checkpoints/*.resume.pt
	find . -path './$(VENV)' -prune -o -name '.part-*' -prune -exec rm -rf {} +
