"""--lead all: names of the files, the same bytes as one lead at a time, what is done before."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from conftest import Leads

import detect
from pipeline import simulated_ecg
from pipeline.errors import UserError
from recording import leads


def run(*argv):
    detect.main([str(a) for a in (*argv, "--threads", 2)])


def test_files_of_leads_have_safe_names_of_their_own():
    names = ["ii", "II", "../../etc", "a/b", "a_b", "", "\0é", "x" * 300, "x" * 300, "-aVR", "."]
    made = leads.file_names(names)
    assert len({name.casefold() for name in made}) == len(names)
    assert all(re.fullmatch(r"[\w+-]{1,60}", name, re.ASCII) for name in made)
    assert made[:3] == ["ii", "II_2", "etc"]


def test_every_lead_is_asked_for_by_its_number_or_by_its_name():
    recording = Leads([np.zeros(9)] * 3, names=["2", "1", "2"])
    recording.path = Path("r.hea")
    assert leads.requests(recording) == ["2", "1", "3"]
    recording.leads = ["I", "I", "2"]
    with pytest.raises(UserError, match="r.hea: lead 2 cannot be asked for"):
        leads.requests(recording)


@pytest.fixture(scope="module")
def two_leads(tmp_path_factory):
    """Folder of two records with leads MLII and a/V of their own."""
    folder = tmp_path_factory.mktemp("leads")
    simulated_ecg.write_database(folder / "one", ("s01", "s02"), duration_s=40, seed=5)
    for name in ("s01", "s02"):
        signal = wfdb.rdrecord(str(folder / "one" / name)).p_signal[:, 0]
        both = np.column_stack([signal, -0.7 * np.roll(signal, 300)])
        wfdb.wrsamp(name, 360, ["mV"] * 2, ["MLII", "a/V"], both, fmt=["16"] * 2, write_dir=folder)
    shutil.rmtree(folder / "one")
    return folder


def test_all_leads_give_the_bytes_of_one_lead_at_a_time(two_leads, tmp_path, capsys):
    run(two_leads, "--lead", "all", "--jobs", 2, "--out", tmp_path / "all")
    for number, lead in enumerate(("MLII", "a_V"), 1):
        out = tmp_path / lead
        run(two_leads, "--lead", number, "--out", out)
        for name in ("s01", "s02"):
            for end in ("", ".csv", ".png", ".json"):
                made = tmp_path / "all" / f"{name}.{lead}.ecgad{end}"
                assert made.read_bytes() == (out / f"{name}.ecgad{end}").read_bytes()
    assert len(list((tmp_path / "all").iterdir())) == 2 * (2 * 4 + 1) + 2
    table = pd.read_csv(tmp_path / "all" / "summary.csv")
    assert sorted(zip(table["recording"], table["lead"])) == [
        ("s01", "MLII"), ("s01", "a/V"), ("s02", "MLII"), ("s02", "a/V")]
    notes = wfdb.rdann(str(tmp_path / "all" / "s01.a_V"), "ecgad")
    assert len(notes.sample) > 20 and notes.fs == 360


def test_all_leads_are_done_anew_only_where_something_is_missing(two_leads, tmp_path, capsys):
    def done(*flags):
        capsys.readouterr()
        run(two_leads / "s01.hea", "--lead", "all", "--out", tmp_path, *flags)
        return capsys.readouterr().out.count("done before")

    assert done() == 0 and (tmp_path / "summary.csv").exists()
    before = (tmp_path / "s01.MLII.ecgad.csv").stat().st_mtime_ns
    assert done() == 2 and done("--html") == 0
    (tmp_path / "s01.a_V.ecgad.png").unlink()
    assert done() == 1 and done() == 2 and done("--force") == 0
    # an ordinary run beside it touches none of its files
    run(two_leads / "s01.hea", "--out", tmp_path)
    assert done() == 2 and (tmp_path / "s01.ecgad.csv").exists()
    assert (tmp_path / "s01.MLII.ecgad.csv").stat().st_mtime_ns > before
    os.remove(tmp_path / "s01.ecgad.leads.json")
    assert done() == 2


def test_all_leads_go_to_an_address(two_leads, tmp_path, capsys):
    fsspec = pytest.importorskip("fsspec")
    command = [two_leads / "s01.hea", "--lead", "all", "--out", "memory://leads"]
    run(*command)
    run(two_leads / "s01.hea", "--lead", "all", "--out", tmp_path)
    fs = fsspec.filesystem("memory")
    for path in tmp_path.iterdir():
        assert fs.cat_file(f"/leads/{path.name}") == path.read_bytes()
    assert len(fs.ls("/leads")) == len(list(tmp_path.iterdir()))
    capsys.readouterr()
    run(*command)
    out = capsys.readouterr().out
    assert out.count("done before") == 2 and out.endswith("\nopen memory://leads/summary.html\n")
