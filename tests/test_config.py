import subprocess
import sys

import pytest

import config
from pipeline import errors, settings

NONSENSE = [("FS_HZ", 0), ("FS_HZ", "360"), ("WINDOW_SIZE", 721), ("WINDOW_SIZE", True), ("LEADS", "MLII"),
            ("LEADS", ()), ("BAND_HZ", (40.0, 0.5)), ("BAND_HZ", (0.5, 200.0)), ("BAND_HZ", (0, 40.0)),
            ("FILTER_ORDER", 0), ("FLAT_MAX_S", -1), ("SPLIT_SEED", -1), ("TRAIN_FRACTION", 1.2),
            ("VALIDATION_FRACTION", 0.3), ("SEED", 1.5), ("SEEDS", (1, 2)), ("SEEDS", (0, 0)), ("LATENT_DIM", 0),
            ("BATCH_SIZE", 1), ("MAX_EPOCHS", 0), ("PATIENCE", 0), ("LEARNING_RATE", 0),
            ("LEARNING_RATE", float("nan")), ("WARMUP_FRACTION", 1), ("WEIGHT_DECAY", -1), ("TAPER_SIGMA_S", 0),
            ("RECORD_LOSS", -0.1), ("EPOCH_SEGMENTS", 1), ("QRS_SIGMA_S", 0), ("NEIGHBOURS", 0),
            ("DENSITY_NEIGHBOURS", 0), ("DENSITY_POWER", 1.5), ("LOCAL_BEATS", 2), ("USUAL_PERCENTILE", 101),
            ("PAUSE_WEIGHT", -1), ("SPREAD_FLOOR", 0), ("SELF_IRREGULARITY", -1),
            ("SELF_NEIGHBOURS", 1), ("LEARNING_S", 5), ("WEIGHTS", {"beat": {"nearest": 1}}),
            ("WEIGHTS", {"beat": {"nearest": 1}, "patient": {"rhythm": 0}}),
            ("WEIGHTS", {"beat": {"nearest": 1}, "patient": {"own": 1}}),
            ("WEIGHTS", {"beat": {"nearest": -1}, "patient": {"record": 1}}), ("TARGET_SPECIFICITY", 95.5),
            ("DEFAULT_SCORE", "best"), ("DEFAULT_SCORE", "own"), ("BOOTSTRAP_RESAMPLES", 10),
            ("BOOTSTRAP_SEED", None), ("PROTOCOL", "both"), ("THREADS", -1), ("RANK_TIMEOUT_S", 0),
            ("ARCHIVE_BUFFER", 10), ("ARCHIVE_VALIDATION", 0), ("ARCHIVE_REFERENCES", 1e5), ("DOWNLOAD_CONNECTIONS", 50),
            ("DOWNLOAD_TIMEOUT_S", 0), ("DOWNLOAD_RETRIES", -1)]


def test_shipped_settings_are_sound():
    settings.check()


@pytest.mark.parametrize("name, value", NONSENSE)
def test_each_setting_is_checked_with_the_remedy(name, value, monkeypatch):
    monkeypatch.setattr(config, name, value)
    with pytest.raises(errors.UserError) as caught:
        settings.check()
    message = str(caught.value)
    assert f"{name} = {value!r}" in message and "expected" in message and "Edit" in message


def test_a_network_without_taper_is_sound(monkeypatch):
    monkeypatch.setattr(config, "TAPER_SIGMA_S", None)
    settings.check()


def test_every_editable_setting_has_a_rule():
    rules = {name for name, _, _ in config._rules()}
    constants = {n for n in vars(config) if n.isupper()}
    fixed = {"ROOT", "PROTOCOLS", "AAMI", "NORMAL_CLASS", "PUBLISHED", "SCORES", "MITDB", "SIMULATED", "DATABASES",
             "SEGMENT_SETTINGS", "TRAINING_SETTINGS", "ARCHIVE_SETTINGS", "SCORE_SETTINGS", "EVALUATION_SETTINGS"}
    assert constants - fixed == rules


def test_a_patient_in_two_parts_is_refused(monkeypatch):
    import dataclasses
    spoilt = dataclasses.replace(settings.database("mitdb"), validation=("100",))
    monkeypatch.setitem(config.DATABASES, "mitdb", spoilt)
    with pytest.raises(errors.UserError, match="in two parts: .'100'"):
        settings.check()


def test_changed_names_both_values():
    stored = settings.snapshot(("BATCH_SIZE", "BAND_HZ"))
    assert settings.differences(stored, ("BATCH_SIZE", "BAND_HZ")) == []
    stored["BATCH_SIZE"] = 100
    assert settings.differences(stored, ("BATCH_SIZE",)) == [f"BATCH_SIZE: 100 then, {config.BATCH_SIZE} now"]


@pytest.mark.parametrize("script, settings, words", [
    ("dataset.py", {"BAND_HZ": (40, 1)}, ["BAND_HZ", "rising"]),
    ("train_mitbih.py", {}, ["segments.npz: missing", "python dataset.py"]),
    ("visualize.py", {}, ["metrics.json", "python evaluate.py"]),
    ("dataset.py", {}, ["missing", "python dataset.py --download"])])
def test_scripts_end_with_one_line_and_status_1(project, script, settings, words):
    project.set(**settings)
    code, _, err = project.run(script)
    assert code == 1 and "Traceback" not in err
    for word in words:
        assert word in err


def test_folder_that_cannot_be_written(project, small_database):
    """A file stands where the folder should be: the message names it, and nothing is lost."""
    (project.folder / "simulated").mkdir()
    (project.folder / "simulated" / "data").write_text("in the way")
    code, _, err = project.run("synthetic.py", "--duration-s", "30")
    assert code == 1 and "Traceback" not in err and "data" in err
    assert (project.folder / "simulated" / "data").read_text() == "in the way"


def test_config_imports_nothing_heavy():
    code = "import sys, config; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=settings.ROOT)
