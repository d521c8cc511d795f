"""docs/extending.md as it is written: its blocks in a copy of the project, its commands run."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wfdb

from pipeline import simulated_ecg
from pipeline.settings import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
SECTIONS = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE))


def blocks(section, language):
    """The fenced blocks of a section, without their fences."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", SECTIONS[section])


def name_of(node):
    """What a statement of a module defines, or assigns; None if neither."""
    targets = getattr(node, "targets", [node])
    return getattr(targets[0], "id", None) or getattr(node, "name", None)


def put_in(project, section):
    """Put each block of Python where its first line says."""
    for block in blocks(section, "python"):
        file, place, anchor = re.match(r"# (\S+): (below|instead of) (\w+)\n", block).groups()
        path = project.folder / file
        text = path.read_text()
        node = next(node for node in ast.parse(text).body if name_of(node) == anchor)
        lines = text.splitlines(keepends=True)
        start = node.end_lineno if place == "below" else node.lineno - 1
        lines[start:node.end_lineno] = [block]
        path.write_text("".join(lines))


def run_commands(project, section):
    """Run the section's shell lines in the copy; they must succeed. Returns what they print."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(["sh", "-e"], input="".join(blocks(section, "sh")), cwd=project.folder,
                          env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("section", list(SECTIONS))
def test_a_part_of_ones_own_is_a_few_lines(section):
    assert blocks(section, "python")
    for block in blocks(section, "python"):
        assert block.count("\n") - 1 <= 25


def test_network_score_and_baseline(project, small_database):
    project.use_small_database(small_database)
    project.set(DATABASE="simulated")
    put_in(project, "Network")
    put_in(project, "Score")
    assert project.run("dataset.py")[0] == 0

    run_commands(project, "Network")
    run_commands(project, "Baseline")
    put_in(project, "Baseline")                   # results that lack it are not up to date
    shown = run_commands(project, "Baseline")

    assert "mahalanobis" in shown and "no network: mixture" in shown
    out = project.folder / "runs/mine"
    result = json.loads((out / "results/beat/metrics.json").read_text())
    assert result["baselines"]["mixture"]["title"] == "mixture of Gaussians"
    assert result["baselines"]["mixture"]["auroc"]["value"] > 0.8
    assert result["scores"]["mahalanobis"]["auroc"]["value"] > 0.8
    assert b"DenseAutoencoder" in (out / "checkpoints/beat.pt").read_bytes()


def test_database(project):
    put_in(project, "Database")
    names = "s1 s2 s3 s4 s5 s6".split()
    simulated_ecg.write_database(project.folder / "my_records", names, 60, seed=1)

    shown = run_commands(project, "Database")

    assert "Holter recordings of our ward: 18 files verified" in shown
    with np.load(project.folder / "databases/ward/data/segments.npz") as segments:
        assert set(segments["record"][segments["split_patient"] == "test"]) == {"s5", "s6"}


def test_format(project, tmp_path):
    simulated_ecg.write_database(tmp_path / "made", ["s01"], 120, seed=1)
    record = wfdb.rdrecord(str(tmp_path / "made/s01"))
    header = np.zeros(261, "<i2")                       # index: half the byte of the standard
    header[:4] = np.frombuffer(b"ISHNE1.0", "<i2")
    header[11:13] = np.array([522], "<i4").view("<i2")  # where the samples begin
    header[78:81] = 2, 6, 15                            # two leads: II and V5
    header[103:105] = 5000                              # nV a step: 5 µV, MIT-BIH's gain
    header[136] = record.fs
    samples = np.rint(record.p_signal * 200).astype("<i2")
    (project.folder / "my_recording.ecg").write_bytes(header.tobytes() + samples.tobytes())
    put_in(project, "File format")
    (project.folder / "checkpoints").symlink_to(ROOT / "checkpoints")

    run_commands(project, "File format")

    summary = json.loads((project.folder / "found/my_recording.ecgad.json").read_text())
    assert summary["leads"] == ["II", "V5"]
    assert summary["duration_s"] == 120 and summary["calibrated"]
    assert summary["beats"] > 100

    read = ("import numpy as np; from recording.reader import open_recording; "
            "np.save('read.npy', open_recording('my_recording.ecg').read(1, 100, 5000))")
    assert project.run("-c", read) == (0, "", "")
    samples = np.load(project.folder / "read.npy")
    np.testing.assert_allclose(samples, record.p_signal[100:5000, 1], atol=1e-9)

