"""Step 2: what is trained on, what may influence it, stopping and going on."""

import csv
import json
import sys
import time

import numpy as np
import pytest
import torch

import config
import dataset
import models
import train_mitbih
from conftest import ON_SIMULATED
from pipeline.artefacts import write_npz
from pipeline.corruption import Corruption
from pipeline.errors import UserError
from preprocess import gaussian
from scoring import detector, fit


# parts that compare a beat with the unlabelled beats of its record
OWN_BEATS = ("self_reference",)


def checkpoint(database, protocol="beat", seed=config.SEED):
    return models.load_checkpoint(database.checkpoint_path(protocol, seed), "")


def test_checkpoint_is_that_of_the_epoch_with_the_lowest_validation_loss(evaluated, capsys):
    model, stored = checkpoint(evaluated)
    assert models.n_parameters(model) == 583_361 and stored["protocol"] == "beat"
    assert stored["simulated"] and "SIMULATED" in stored["database"]

    with open(evaluated.results_dir("beat", config.SEED) / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == config.MAX_EPOCHS and rows[0].keys() == set(train_mitbih.HISTORY)
    losses = [float(row["validation_loss"]) for row in rows]
    kept = [loss for loss, row in zip(losses, rows) if row["kept"] == "1"]
    assert kept[-1] == min(losses) < losses[0]

    segments = dataset.load_segments(evaluated)
    x = segments.x[segments.normal_validation("beat")]
    expected = x * gaussian(720, config.TAPER_SIGMA_S * config.FS_HZ)
    recon, _ = models.reconstruct(model, x, 64, "cpu")
    assert ((recon.numpy() - expected) ** 2).mean() == pytest.approx(min(losses), rel=1e-4)

    train_mitbih.main(ON_SIMULATED)
    assert "up to date" in capsys.readouterr().out


def retrained_on_noise(database, segments, protocol, hidden):
    """The checkpoint after signals of `hidden` (n,) became noise, test labels their opposite."""
    x, rows = segments.x.copy(), segments.rows
    x[hidden] = np.random.default_rng(0).normal(0, 50, x[hidden].shape)
    test = np.isin(rows[f"split_{protocol}"], ("test", "unused"))
    # under the same identity, as if the data had always been so
    write_npz(database.segments_path(), {
        **rows, "x": x, "symbol": np.where(hidden, "?", rows["symbol"]),
        "y": np.where(test, 1 - rows["y"], rows["y"]), "meta": np.array(json.dumps(segments.meta))})
    train_mitbih.main([*ON_SIMULATED, "--protocol", protocol, "--force"])
    return checkpoint(database, protocol)


def assert_same(a, b):
    """Bit for bit, tensors among nested dicts and lists."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("protocol", config.PROTOCOLS)
def test_no_test_or_abnormal_beat_can_influence_training_or_threshold(small, segments, protocol):
    train_mitbih.main([*ON_SIMULATED, "--protocol", protocol])
    _, stored = checkpoint(small, protocol)
    split, y = segments.rows[f"split_{protocol}"], segments.rows["y"]
    unseen, ill = np.isin(split, ("test", "unused")), (split == "validation") & (y == 1)
    assert ill.any() and ((split == "test") & (y == 0)).sum() > 50
    assert ((split == "unused") & (y == 1)).any()

    _, other = retrained_on_noise(small, segments, protocol, unseen)
    for key in ("weights", "fitted", "thresholds", "calibration", "part_limits"):
        assert_same(other[key], stored[key])

    # abnormal validation beats too: unlabelled, they may be among a record's own, nothing else
    _, other = retrained_on_noise(small, segments, protocol, unseen | ill)
    assert other["weights"] == stored["weights"]
    for key in stored["fitted"].keys() - {"standard"}:
        assert_same(other["fitted"][key], stored["fitted"][key])
    for part, values in stored["fitted"]["standard"].items():
        assert part.startswith(OWN_BEATS) or other["fitted"]["standard"][part] == values
    own = {*OWN_BEATS, "self_causal"}
    if any(config.WEIGHTS[protocol].get(part) for part in OWN_BEATS):
        own |= {name for name in stored["thresholds"] if name.startswith("combined")}
    shared = stored["thresholds"].keys() - own
    assert {"mse", "qrs_error", "latent_knn", "rhythm", "nearest"} <= shared
    for name in shared:
        assert other["thresholds"][name] == stored["thresholds"][name], name


def test_an_epoch_goes_on_where_the_last_one_stopped():
    n, size = 103, 25
    rows = np.concatenate([train_mitbih.epoch_order(0, epoch, n, size) for epoch in range(20)])
    assert len(rows) == 20 * size
    for start in range(0, len(rows) - n, n):
        np.testing.assert_array_equal(np.sort(rows[start:start + n]), np.arange(n))
    assert not np.array_equal(rows[:n], rows[n:2 * n])


def test_an_epoch_trains_on_so_many_segments_and_no_more(small, segments, monkeypatch):
    monkeypatch.setattr(config, "EPOCH_SEGMENTS", 130)
    monkeypatch.setattr(config, "MAX_EPOCHS", 1)
    seen = []
    monkeypatch.setattr(Corruption, "__call__", lambda self, x, step: seen.append(len(x)) or x)
    train_mitbih.main(ON_SIMULATED)
    assert seen == [config.BATCH_SIZE] * (130 // config.BATCH_SIZE)


def test_the_network_sees_corrupted_beats_and_must_draw_clean_ones(small, segments, tmp_path):
    seen, clean = [], []

    def loss(model, head, *batch):
        seen.append(batch[0].clone())
        clean.append(batch[1].clone())
        return train_mitbih.batch_loss(model, head, *batch)

    rows = segments.part("beat", "train")
    beats = train_mitbih.BeatsInMemory(segments, rows, torch.device("cpu"))
    paths = train_mitbih.paths_of(tmp_path / "x.pt", tmp_path)
    stamp = models.stamp_of(segments, "beat", 0)
    train_mitbih.train(beats, beats.x[:20], 0, torch.device("cpu"), paths, stamp,
                       loss_of_batch=loss)

    seen, clean = torch.cat(seen), torch.cat(clean)
    known = {row.tobytes() for row in segments.x[rows]}
    assert all(row.tobytes() in known for row in clean.numpy())
    share = (seen != clean).any(1).float().mean()
    assert share == pytest.approx(config.CORRUPTED_SHARE, abs=0.05)


def test_weight_of_the_record_loss_changes_the_weights(small, segments, monkeypatch):
    monkeypatch.setattr(config, "MAX_EPOCHS", 1)
    digests = []
    for weight in (0.0, 0.01):
        monkeypatch.setattr(config, "RECORD_LOSS", weight)
        train_mitbih.main([*ON_SIMULATED, "--force"])
        model, stored = checkpoint(small)
        digests.append(models.weights_digest(model))
        assert models.n_parameters(model) == 583_361 and "head" not in stored
    assert digests[0] != digests[1]


def test_threshold_flags_the_asked_share_of_normal_validation_beats(evaluated):
    segments, (model, stored) = dataset.load_segments(evaluated), checkpoint(evaluated)
    rows = segments.part("beat", "validation")
    scores, _ = detector.score(model, stored["fitted"], segments, rows, config.SCORES["beat"],
                               config.FS_HZ, "cpu")
    normal = segments.rows["y"][rows] == 0
    allowed = int((1 - config.TARGET_SPECIFICITY) * normal.sum())
    for name, threshold in stored["thresholds"].items():
        assert (scores[name][normal] >= threshold).sum() <= allowed
        assert threshold == pytest.approx(np.sort(scores[name][normal])[-allowed - 1], rel=1e-6)
    assert tuple(stored["calibration"]) == fit.CALIBRATION
    for asked, threshold in stored["calibration"].items():
        flagged = scores[config.DEFAULT_SCORE][normal] >= threshold
        assert flagged.mean() == pytest.approx(1 - asked, abs=1 / normal.sum())


def test_resume_refuses_other_settings(small, segments, monkeypatch):
    monkeypatch.setattr(fit, "fit_scores", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_mitbih.main(ON_SIMULATED)
    monkeypatch.setattr(config, "LEARNING_RATE", 1e-3)
    with pytest.raises(UserError, match="LEARNING_RATE: 0.002 then, 0.001 now"):
        train_mitbih.main([*ON_SIMULATED, "--resume"])


def test_early_stopping_after_patience(small, segments, monkeypatch):
    monkeypatch.setattr(config, "MAX_EPOCHS", 9)
    monkeypatch.setattr(config, "PATIENCE", 2)
    losses = iter([3.0, 1.0, 2.0, 1.5, 0.1])
    monkeypatch.setattr(train_mitbih, "validation_loss", lambda *a: next(losses))
    train_mitbih.main(ON_SIMULATED)
    history = checkpoint(small)[1]["history"]
    assert [r["kept"] for r in history] == [1, 1, 0, 0]


def test_one_bar_a_training_with_the_validation_loss_and_none_where_nobody_looks(
        small, segments, monkeypatch, capsys):
    monkeypatch.setattr(config, "MAX_EPOCHS", 3)
    train_mitbih.main(ON_SIMULATED)
    assert capsys.readouterr().err == ""

    shown = []
    monkeypatch.setattr(train_mitbih.tqdm, "status_printer", lambda bar, file: shown.append)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train_mitbih.main([*ON_SIMULATED, "--force"])
    loss = checkpoint(small)[1]["history"][-1]["validation_loss"]
    shown = [bar for bar in shown if bar]
    assert all(bar.startswith("at most 3 epochs") for bar in shown)
    assert f"epoch 2, validation loss {loss:.5f}" in shown[-1] and "100%" in shown[-1]
    assert capsys.readouterr().out.endswith("next: python evaluate.py --protocol beat "
                                            "--database simulated\n")

    train_mitbih.main(ON_SIMULATED)   # up to date
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: python evaluate.py")


def test_non_finite_loss_stops_with_epoch_and_learning_rate(small, segments, monkeypatch):
    monkeypatch.setattr(config, "LEARNING_RATE", 1.0)
    monkeypatch.setattr(torch.nn.functional, "mse_loss", lambda recon, x: recon.sum() * np.nan)
    with pytest.raises(UserError, match=r"nan in epoch 0, at learning rate 0\.04.*LEARNING_RATE"):
        train_mitbih.main(ON_SIMULATED)
    assert not small.checkpoint_path("beat", config.SEED).exists()


def test_unknown_device_is_named(small, segments):
    with pytest.raises(UserError, match="--device nonsense"):
        train_mitbih.main([*ON_SIMULATED, "--device", "nonsense"])


def test_killed_process_resumes_to_the_same_weights(project, small_database):
    """The real thing: SIGKILL in the middle, then --resume, against a run left alone."""
    project.use_small_database(small_database)
    project.set(MAX_EPOCHS=20, PATIENCE=20)
    assert project.run("dataset.py", *ON_SIMULATED)[0] == 0
    path = project.folder / "simulated" / "checkpoints" / "beat.pt"
    resume = path.with_suffix(".resume.pt")
    process = project.start("train_mitbih.py", *ON_SIMULATED)
    deadline = time.time() + 60
    while not resume.exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert resume.exists() and not path.exists()

    found = []
    for flag, said in (("--resume", "going on after epoch"), ("--force", "epoch 0")):
        code, out, err = project.run("train_mitbih.py", *ON_SIMULATED, flag)
        assert code == 0 and said in out, err
        found.append(models.load_checkpoint(path, "")[1])
    resumed, whole = found
    assert resumed["weights"] == whole["weights"] and len(whole["history"]) == 20
