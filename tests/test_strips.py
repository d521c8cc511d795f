"""studies.strips: the rhythm of a strip by hand, and the table of simulated records."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import config
from pipeline import settings, simulated_ecg
from studies import strips


def test_share_of_a_rhythm_is_that_of_the_samples():
    notes = SimpleNamespace(sample=np.array([0, 10, 100, 150, 300]), symbol=list("+N+++"),
                            aux_note=["(N", "", "(AFIB\0", "(N", "(AFL"])
    for start, stop, expected in ((0, 100, 0), (100, 150, 1), (50, 150, 0.5), (140, 160, 0.5),
                                  (250, 350, 0), (0, 500, 0.1)):
        assert strips.in_rhythm(notes, ("(AFIB",), start, stop) == pytest.approx(expected)
    assert strips.in_rhythm(notes, strips.IN_PART, 250, 350) == 0.5


def test_the_table_by_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(strips, "EVERY_S", 60)
    parts = {"train": "s01", "validation": "s02", "test": "s03"}
    entry = config.DATABASES["simulated"] | {"home": str(tmp_path)} | parts
    monkeypatch.setitem(config.DATABASES, "simulated", entry)
    database = settings.database("simulated")
    simulated_ecg.write_database(database.records_dir(), tuple(parts.values()), duration_s=200)
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(settings.ROOT / "checkpoints" / "patient.pt", tmp_path / "checkpoints")

    strips.main(["--database", "simulated", "--threads", "1"])
    table = json.loads((database.out / "results" / "strips.json").read_text())["table"]
    assert [(row["seconds"], row["part"].split()[0]) for row in table] == [
        (30, "training"), (30, "test"), (10, "training"), (10, "test")]
    for row in table:
        # no rhythm is annotated: all of them are without fibrillation
        assert row["others"] == row["strips"] > 0 and row["fibrillating"] == 0
        assert row["n"]["N"] > 5 * row["strips"] and 0 <= row["false_share"] < 0.5
    assert "N flagged (%)" in capsys.readouterr().out
