"""The README's commands, table, files and settings are those of the code and the saved results."""

import re

import pytest

from studies import ablation
from studies import benchmark
from studies import benchmark_scaling
from studies import benchmark_training
import config
from pipeline import errors, settings
import dataset
import detect
import evaluate
import models
from studies import noise_stress
from studies import report
from pipeline import tables
from studies import select_score
from pipeline import runtime
from pipeline import simulated_ecg
import train_mitbih
import visualize

TEXT = (settings.ROOT / "README.md").read_text()
PARSERS = {"detect.py": detect, "noise_stress.py": noise_stress, "dataset.py": dataset,
           "train_mitbih.py": train_mitbih, "evaluate.py": evaluate, "visualize.py": visualize,
           "report.py": report, "synthetic.py": simulated_ecg,
           "select_score.py": select_score, "ablation.py": ablation, "benchmark.py": benchmark,
           "benchmark_training.py": benchmark_training, "benchmark_scaling.py": benchmark_scaling,
           "models.py": models}


def test_saved_selection_and_ablation_are_of_these_settings():
    """The weights in config.py are the best of select_score.py, and the ablation is of the same detector."""
    selection = tables.load_result(settings.database("mitdb"), "selection.json", "")
    ablation_result = tables.load_result(settings.database("mitdb"), "ablation.json", "")
    assert settings.differences(selection["training_settings"], settings.TRAINING_SETTINGS) == []
    assert settings.differences(ablation_result["settings"], settings.TRAINING_SETTINGS + settings.SCORE_SETTINGS) == []
    for protocol in config.PROTOCOLS:
        assert selection["protocols"][protocol]["weights"][0]["weights"] == config.WEIGHTS[protocol]


def test_every_python_command_parses():
    commands = set(re.findall(r"`python ([a-z_]+\.py)([^`]*)`", TEXT))
    assert {"dataset.py", "train_mitbih.py", "evaluate.py"} <= {script for script, _ in commands}
    for script, arguments in commands:
        PARSERS[script].parse_args(arguments.split())


def test_the_four_published_commands_are_there():
    for command in ("dataset.py --download", "dataset.py", "train_mitbih.py", "evaluate.py"):
        assert f"`python {command}`" in TEXT


def test_make_targets_exist():
    makefile = (settings.ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)(?:ECG_MITDB=DIR )?make ([a-z]+)", TEXT, re.M):
        assert re.search(rf"(?m)^{target}:", makefile), target


def test_files_and_settings_exist():
    rows = re.findall(r"(?m)^\| ((?:`[a-z_]+(?:\.py|/)`(?:, )?)+) \|", TEXT)
    listed = set(re.findall(r"`([a-z_]+\.py)`", " ".join(rows)))
    assert listed == {p.name for p in settings.ROOT.glob("*.py")}
    settings = TEXT[TEXT.index("## Settings"):TEXT.index("## Method")]
    for name in re.findall(r"`([A-Z_]{4,})`", settings):
        assert hasattr(config, name), name


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (settings.ROOT / target).exists(), target


def test_numbers_of_the_method_are_those_of_the_settings():
    assert "0.5 to 40 Hz" in TEXT and config.BAND_HZ == (0.5, 40.0)
    assert f"{config.MAX_EPOCHS * config.EPOCH_SEGMENTS:,d} segments" in TEXT
    assert f"({config.TAPER_SIGMA_S:.2f} s wide)" in TEXT and config.LEARNING_S == 300
    assert f"bottleneck of {config.LATENT_DIM}" in TEXT
    assert "three nearest" in TEXT and config.NEIGHBOURS == 3
    assert f"{', '.join(settings.database("mitdb").validation[:-1])} and {settings.database("mitdb").validation[-1]}" in TEXT
    assert f"{100 * config.TARGET_SPECIFICITY:g} % of the normal validation beats" in TEXT
    assert f"seeds {min(config.SEEDS)} to {max(config.SEEDS)}" in TEXT and len(config.SEEDS) == 5


@pytest.mark.parametrize("protocol", config.PROTOCOLS)
def test_shipped_checkpoints_are_the_ones_of_the_shipped_results(protocol):
    path = settings.database("mitdb").checkpoint_path(protocol, config.SEED)
    model, stored = runtime.read_checkpoint(path, "", runtime.FINISHED)
    result = report.load_metrics(settings.database("mitdb").results_dir(protocol, config.SEED))
    assert result["origin"] == evaluate.origin_of(stored)
    assert stored["weights"] == models.weights_digest(model) and not stored["simulated"]
    assert settings.differences(stored["training_settings"], settings.TRAINING_SETTINGS) == []
    assert settings.differences(stored["segment_settings"], settings.SEGMENT_SETTINGS) == []
    assert settings.differences(stored["score_settings"], settings.SCORE_SETTINGS) == []
    assert set(report.load_seeds(settings.database("mitdb"), protocol)) == set(config.SEEDS)


def test_headline_of_the_beat_protocol_reaches_the_published_one():
    """Checkpoint and threshold chosen on validation; median over the seeds of the default score."""
    runs = report.load_seeds(settings.database("mitdb"), "beat")
    for key, published in config.PUBLISHED.items():
        values = sorted(run["scores"][run["default_score"]][key]["value"] for run in runs.values())
        assert values[len(values) // 2] >= published, key
