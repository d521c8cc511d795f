"""The whole pipeline as a person runs it: `make` in a folder of its own, with no network."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import config
from pipeline import settings
import visualize
from conftest import ON_SIMULATED

OFFLINE = {
    name: "http://127.0.0.1:9"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
}


def make(project, *arguments):
    (project.folder / "installed").touch()
    env = {**os.environ, **OFFLINE, "no_proxy": "", "NO_PROXY": "", "OMP_NUM_THREADS": "2"}
    return subprocess.run(["make", f"RUN={sys.executable}", "INSTALLED=installed", *arguments],
                          cwd=project.folder, env=env, capture_output=True, text=True, timeout=400)


@pytest.fixture
def workshop(project):
    """A project with the Makefile and a simulated database short enough for a test."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(settings.ROOT / name, project.folder)
    path = project.folder / "pipeline" / "simulated_ecg.py"
    text, n = re.subn(r"(?m)^DURATION_S = [0-9.]+", "DURATION_S = 60", path.read_text())
    assert n == 1
    path.write_text(text)
    project.set(DOWNLOAD_RETRIES=0, MAX_EPOCHS=2)
    return project


def test_make_without_network_simulates_says_so_and_learns(workshop):
    done = make(workshop)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CANNOT BE REACHED" in done.stdout and "SIMULATED DATA" in done.stdout
    folder = workshop.folder
    assert not (folder / "results").exists() and not (folder / "evaluation_plots").exists()
    for protocol in config.PROTOCOLS:
        result = json.loads(
            (folder / "simulated" / "results" / protocol / "metrics.json").read_text())
        assert result["simulated"] and "SIMULATED" in result["database"]
        assert result["scores"][result["default_score"]]["auroc"]["value"] > 0.8
        plots = folder / "simulated" / "evaluation_plots" / protocol
        assert sorted(p.name for p in plots.iterdir()) == sorted(visualize.FIGURES)
    checkpoint = folder / "simulated" / "checkpoints" / "beat.pt"
    before = checkpoint.stat().st_mtime_ns
    again = make(workshop, "simulated")
    assert again.returncode == 0 and again.stdout.count("up to date") >= 5, again.stdout
    assert checkpoint.stat().st_mtime_ns == before


def test_full_disk_ends_each_stage_with_one_line_and_whole_files(project, small_database):
    """A limit on file size stands for a full disk: the system refuses the write in the middle."""
    project.use_small_database(small_database)
    stages = (("dataset.py", 500, "data/segments.npz"),
              ("train_mitbih.py", 500, "checkpoints/beat.pt"),
              ("evaluate.py", 8, "results/beat/metrics.json"))
    for script, blocks, artefact in stages:
        command = f"ulimit -f {blocks}; exec {sys.executable} {script} --database simulated"
        limited = subprocess.run(["bash", "-c", command], cwd=project.folder, capture_output=True,
                                 text=True, timeout=120)
        assert limited.returncode == 1 and "Traceback" not in limited.stderr, limited.stderr
        assert "File too large" in limited.stderr and "Free space" in limited.stderr
        assert not (project.folder / "simulated" / artefact).exists()
        assert not list(project.folder.rglob(".part-*"))
        code, _, err = project.run(script, *ON_SIMULATED)
        assert code == 0 and (project.folder / "simulated" / artefact).exists(), err


def test_make_stops_where_a_given_source_is_wrong(workshop):
    done = make(workshop, "SOURCE=/no/such/folder")
    assert done.returncode != 0 and "/no/such/folder: no folder" in done.stderr
    assert "SIMULATED" not in done.stdout
    assert not (workshop.folder / "simulated").exists()


def test_real_records_go_through_the_same_command(workshop, mitdb):
    """Build from the real database by its source, then a checkpoint of other segments is
    refused."""
    code, out, err = workshop.run("dataset.py", "--download", "--source", str(mitdb))
    assert code == 0 and "144 of 144 files verified" in out, err
    code, out, err = workshop.run("dataset.py")
    assert code == 0 and "109,374 segments" in out, err
    assert re.search(r"all records +90,527 +2,780 +7,232 +802 +8,033 +109,374", out)
    assert re.search(r"beat test .* 16,407\n", out) and re.search(r"patient test .* 49,659\n", out)
    with np.load(workshop.folder / "data" / "segments.npz", allow_pickle=False) as stored:
        assert stored["x"].shape == (109_374, 720) and stored["x"].dtype == np.float32
        assert np.isfinite(stored["x"]).all()
