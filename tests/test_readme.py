"""README.md and docs/: commands parse, what they name exists, figures are the saved ones."""

import argparse
import importlib
import re

import numpy as np
import pytest

import config
import evaluate
import models
from pipeline import settings
from pipeline.artefacts import load_json
from pipeline.settings import ROOT
from pipeline.tables import interval, percent
from studies import select_score

MITDB = settings.database("mitdb")
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text()
         for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def commands_of(text):
    """Each command of Python or torchrun, in a block or between backticks, without that word."""
    quoted = re.findall(r"`(?:python|torchrun --\S+)( [^`]*)`", text)
    return quoted + re.findall(r"(?m)^(?: {4})?python( [^\n]*)", text)


# --- form -----------------------------------------------------------------------------------------

def test_the_readme_is_short_and_begins_with_a_command():
    assert len(README.split()) <= 1800
    assert README.split("\n").index("    make") < 40    # lines


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_narrow_and_links_and_pictures_exist(page):
    assert re.findall(r"(?m)^\|.{120,}", PAGES[page]) == []
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


# --- names ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, monkeypatch):
    """Each by the script's own parser; nothing is run."""
    class Parsed(Exception):
        pass

    def parse_and_stop(parser, argv=None, namespace=None):
        original(parser, argv, namespace)
        raise Parsed

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    # docs/extending.md describes it
    monkeypatch.setitem(config.DATABASES, "ward", config.DATABASES["simulated"])
    for command in commands_of(PAGES[page]):
        script, *flags = command.replace(" -m ", " ").split()
        if script == "studies.NAME":
            continue
        module = importlib.import_module(script.removesuffix(".py"))
        # named in passing, without what it must be given: that it exists is enough
        with pytest.raises(Parsed if flags else (Parsed, SystemExit)):
            module.main(flags)


def test_the_readme_names_every_script_and_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall("`make ([a-z]+)", README):
        assert f"\n{target}:" in makefile
    for path in ROOT.glob("*.py"):
        assert path.name in README


@pytest.mark.parametrize("page", PAGES)
def test_settings_scores_and_files_exist(page):
    scores = {name for names in config.SCORES.values() for name in names}
    for name in re.findall(r"`([A-Z_]{4,})(?: = [^`]*)?`", PAGES[page].replace("`LICENSE`", "")):
        assert hasattr(config, name), name
    rooms = "pipeline|scoring|recording|scaling|studies"
    for name in re.findall(rf"`((?:{rooms})/[^`]*|[a-z_]+\.py)`", PAGES[page]):
        assert (ROOT / name).exists(), name
    if page == "README.md":
        table = README.split("| score | what it measures")[1].split("More: ")[0]
        assert set(re.findall(r"`([a-z_]+)`", table)) == scores


# --- figures --------------------------------------------------------------------------------------

def test_figures_of_the_readme_are_those_of_the_results():
    """Beside the two tables that studies.report prints."""
    for protocol in config.PROTOCOLS:
        folder = MITDB.results_dir(protocol, config.SEED)
        history = np.genfromtxt(folder / "history.csv", delimiter=",", names=True)
        assert f"{history['validation_loss'].min():.4f}" in README
        default = evaluate.load_metrics(folder, "")["scores"][config.DEFAULT_SCORE]
        assert percent(default["auroc"]["value"]) in README

    patient = [run["scores"]["combined"] for run in evaluate.load_seeds(MITDB, "patient").values()]
    specificity = np.median([run["specificity"]["value"] for run in patient])
    assert f"98.5 % asked on validation became {percent(specificity)} % on the test" in README
    assert f"a wide interval: {interval(patient[0]['auroc'])}" in README


def test_figures_of_the_method_are_those_of_the_settings():
    method = PAGES["docs/method.md"]
    low, high = config.BAND_HZ
    assert f"{config.MAX_EPOCHS * config.EPOCH_SEGMENTS:,d} segments" in method
    assert f"Gaussian of {config.TAPER_SIGMA_S:.2f} s" in method
    usual = f"{config.USUAL_PERCENTILE}th percentile of the {config.LOCAL_BEATS} neighbouring"
    assert usual in method
    assert f"{', '.join(MITDB.validation[:-1])} and {MITDB.validation[-1]}" in method
    for page in (method, README):
        assert f"{low:g} to {high:g} Hz" in page and f"{config.LATENT_DIM} latents" in page
        assert f"{100 * config.TARGET_SPECIFICITY:g} % of the normal validation beats" in page
        share = f"{100 * config.EXCESS_SPECIFICITY:g} % of the normal beats"
        assert f"{share} of the validation patients" in page
    for protocol in config.PROTOCOLS:
        parts = [f"{weight:g} `{name}`" for name, weight in config.WEIGHTS[protocol].items()]
        assert f"| {protocol} | {', '.join(parts)} |" in method
    assert f"{models.n_parameters(models.new_network()):,d} parameters" in method


# --- what is shipped ------------------------------------------------------------------------------

@pytest.mark.parametrize("protocol", config.PROTOCOLS)
def test_shipped_checkpoints_belong_to_the_shipped_results(protocol):
    model, stored = models.load_checkpoint(MITDB.checkpoint_path(protocol, config.SEED), "")
    result = evaluate.load_metrics(MITDB.results_dir(protocol, config.SEED), "")

    assert result["origin"] == evaluate.origin_of(stored)
    assert stored["weights"] == models.weights_digest(model) and not stored["simulated"]
    today = settings.snapshot(settings.TRAINING_SETTINGS + settings.SCORE_SETTINGS)
    today |= settings.segment_settings(MITDB)
    made_with = stored["training_settings"] | stored["score_settings"] | stored["segment_settings"]
    assert settings.differences(made_with, today) == []
    assert set(evaluate.load_seeds(MITDB, protocol)) == set(config.SEEDS)


@pytest.mark.parametrize("protocol", config.PROTOCOLS)
def test_nothing_of_the_saved_selection_gains_half_a_point(protocol):
    selection = load_json(MITDB.out / "results/selection.json", "")["protocols"][protocol]
    best, *_ = merits = [row["merit"] for row in selection["weights"]]
    used = [row["weights"] for row in selection["weights"]].index(config.WEIGHTS[protocol])
    assert best - merits[used] < select_score.LEAST_GAIN
    for row in selection["settings"]:
        assert row["merit"] - merits[used] < select_score.LEAST_GAIN, (row["setting"], row["value"])


@pytest.mark.parametrize("key", config.PUBLISHED)
def test_the_default_score_reaches_the_published_figures(key):
    """Median over the seeds; the threshold is from validation."""
    runs = evaluate.load_seeds(MITDB, "beat").values()
    values = [run["scores"][config.DEFAULT_SCORE][key]["value"] for run in runs]
    assert np.median(values) >= config.PUBLISHED[key]
