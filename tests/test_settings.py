"""config.py is checked before anything runs, and what it says is stored as plain values."""

import re
import subprocess
import sys

import pytest

import config
from pipeline import settings
from pipeline.errors import UserError

NONSENSE = [  # beside what test_every_number_has_a_range_that_holds_it tries
    ("WINDOW_SIZE", 721), ("WINDOW_SIZE", True), ("BAND_HZ", (40.0, 0.5)),
    ("BAND_HZ", (0.5, 200.0)), ("BAND_HZ", (0, 40.0)), ("VALIDATION_FRACTION", 0.3), ("SEED", 1.5),
    ("SEEDS", (1, 2)),
    ("SEEDS", (0, 0)), ("LEARNING_RATE", float("nan")), ("TAPER_SIGMA_S", 0),
    ("LOWPASS_HZ", 200.0), ("LOWPASS_HZ", 0), ("NOISE_SNR_DB", (30.0, 0.0)), ("NOISE_SNR_DB", 12),
    ("WEIGHTS", {"beat": {"nearest": 1}}),
    ("WEIGHTS", {"beat": {"nearest": 1}, "patient": {"rhythm": 0}}),
    ("WEIGHTS", {"beat": {"nearest": -1}, "patient": {"rhythm": 1}}), ("DEFAULT_SCORE", "best"),
    ("DEFAULT_SCORE", "same_patient"), ("PROTOCOL", "both"), ("DATABASE", "other")]


@pytest.mark.parametrize("name, value", NONSENSE)
def test_each_setting_is_checked_with_the_remedy(name, value, monkeypatch):
    monkeypatch.setattr(config, name, value)
    with pytest.raises(UserError) as caught:
        settings.check()
    message = str(caught.value)
    assert f"{name} = {value!r}" in message and "expected" in message and "Edit" in message


@pytest.mark.parametrize("name", sorted(settings.RANGES))
def test_every_number_has_a_range_that_holds_it(name, monkeypatch):
    low, high = settings.RANGES[name]
    for value in (low - 1, high + 1, "1", None):
        monkeypatch.setattr(config, name, value)
        with pytest.raises(UserError, match=name):
            settings.check()


def test_a_missing_and_a_misspelt_setting_are_named(monkeypatch):
    monkeypatch.delattr(config, "BATCH_SIZE")
    with pytest.raises(UserError, match="BATCH_SIZE is missing"):
        settings.check()
    monkeypatch.undo()
    monkeypatch.setattr(config, "BACH_SIZE", 64, raising=False)
    with pytest.raises(UserError, match="BACH_SIZE is no setting; is it BATCH_SIZE?"):
        settings.check()


@pytest.mark.parametrize("taper_s", [config.TAPER_SIGMA_S, None])
def test_settings_are_sound_as_shipped_and_without_a_taper(monkeypatch, taper_s):
    monkeypatch.setattr(config, "TAPER_SIGMA_S", taper_s)
    settings.check()


def test_a_patient_in_two_parts_is_refused(monkeypatch):
    monkeypatch.setitem(config.DATABASES["mitdb"], "validation", "100")
    with pytest.raises(UserError, match="in two parts: .'100'"):
        settings.check()


def test_a_database_that_is_not_described_whole_is_refused(monkeypatch):
    with pytest.raises(UserError, match="--database other: not described; expected one of mitdb"):
        settings.database("other")
    monkeypatch.setitem(config.DATABASES, "mitdb", {"title": "no records", "home": "."})
    with pytest.raises(UserError, match="DATABASES.'mitdb'.*'records'"):
        settings.check()


def test_a_run_keeps_what_is_made_apart_from_what_is_shipped():
    shipped = settings.database("mitdb")
    own = settings.database("mitdb", "trial-1")
    assert own.segments_path() == shipped.segments_path()
    assert own.records_dir() == shipped.records_dir()
    for path in (own.checkpoint_path("beat", 0), own.results_dir("beat", 1), own.plots_dir("beat")):
        assert path.is_relative_to(settings.ROOT / "runs" / "trial-1")
    command = own.stage_command("evaluate.py", "beat", 1)
    assert command == "python evaluate.py --protocol beat --seed 1 --run trial-1"
    for name in ("", "../x", "a/b"):
        with pytest.raises(UserError, match="--run"):
            settings.database("mitdb", name)


@pytest.mark.parametrize("script, edits, words", [
    ("dataset.py", {"BAND_HZ": (40, 1)}, "BAND_HZ.*rising"),
    ("train_mitbih.py", {}, "segments.npz: missing.*python dataset.py"),
    ("train_mitbih.py", {"SCORES": {"beat": ("combined", "msee"), "patient": ("combined",)}},
     "SCORES.*msee"),
    ("visualize.py", {}, "metrics.json.*python evaluate.py"),
    ("dataset.py", {}, "missing.*python dataset.py --download")])
def test_scripts_end_with_one_line_and_status_1(project, script, edits, words):
    with open(project.folder / "config.py", "a") as file:
        for name, value in edits.items():
            file.write(f"\n{name} = {value!r}")
    code, _, err = project.run(script)
    assert code == 1 and "Traceback" not in err and err.count("\n") == 1
    assert re.search(words, err), err


def test_folder_that_cannot_be_written(project):
    """A file stands where the folder should be: the message names it, and nothing is lost."""
    (project.folder / "simulated").write_text("in the way")
    code, _, err = project.run("dataset.py", "--database", "simulated")
    assert code == 1 and "Traceback" not in err and "simulated" in err
    assert (project.folder / "simulated").read_text() == "in the way"


def test_config_imports_nothing():
    code = ("import sys; before = set(sys.modules); import config; "
            "assert set(sys.modules) - before == {'config'}")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=settings.ROOT)
