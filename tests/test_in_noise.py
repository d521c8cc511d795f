"""Networks in recorded noise: the mixture, the areas, both studies by their commands."""

import json

import numpy as np
import pandas as pd
import pytest
import wfdb
from sklearn.metrics import roc_auc_score

import config
import train_mitbih
from pipeline.errors import UserError
from studies import in_noise, network_worth, recipes


@pytest.fixture
def noise(tmp_path):
    """A folder like nstdb, at another rate than the pipeline's: white noise, wandering in its
    second half."""
    rng = np.random.default_rng(0)
    for name in in_noise.NOISES:
        signal = rng.normal(size=(2, 60 * 250))
        signal[1] = signal[1].cumsum() / 20
        wfdb.wrsamp(name, fs=250, units=["mV"], sig_name=["noise"], fmt=["16"],
                    p_signal=signal.reshape(-1, 1), write_dir=str(tmp_path))
    return tmp_path


def test_both_halves_of_the_noise_have_power_one_and_differ(noise):
    first, second = (in_noise.load_noise(noise, half) for half in (0, 1))
    assert first.shape == second.shape == (3, 60 * config.FS_HZ)
    np.testing.assert_allclose([first.std(1), second.std(1)], 1, rtol=1e-3)
    # white noise changes its sign within milliseconds, a wandering line does not
    turns = [np.diff(np.sign(half)).astype(bool).mean() for half in (first, second)]
    assert turns[0] > 3 * turns[1]
    with pytest.raises(UserError, match="none/bw: not a readable noise record.*nstdb"):
        in_noise.load_noise(noise / "none")


@pytest.mark.parametrize("snr_db", [0, 12])
def test_noise_is_added_at_the_asked_ratio(noise, snr_db):
    tracks = in_noise.load_noise(noise)
    signal = np.sin(np.arange(200_000) / 20)
    added = in_noise.mix(signal, tracks, snr_db, 3) - signal
    assert 10 * np.log10(signal.var() / added.var()) == pytest.approx(snr_db, abs=1e-6)
    # all three tracks are in it
    starts = np.random.default_rng(3).integers(tracks.shape[1], size=3)
    for track, start in zip(tracks, starts):
        own = np.resize(np.roll(track, -start), len(signal))
        assert np.corrcoef(own, added)[0, 1] == pytest.approx(3 ** -0.5, abs=0.05)
    assert in_noise.mix(signal, tracks, None, 3) is signal


def test_areas_are_of_a_class_against_the_normal_beats_of_its_record():
    rng = np.random.default_rng(0)
    rows = {"record": np.repeat(["a", "b"], 40), "aami": np.array(list(10 * "NNNS" + 10 * "NNNV"))}
    rows["aami"][:4] = "F"   # too few
    scores = rng.normal(size=80)
    found = in_noise.class_areas(scores, rows)
    assert set(found) == {("S", "a"), ("V", "b")}
    for (name, record), area in found.items():
        here = (rows["record"] == record) & np.isin(rows["aami"], ["N", name])
        assert area == pytest.approx(roc_auc_score(rows["aami"][here] == name, scores[here]))


def found_areas():
    """A made-up measurement: two records, trained in two seeds, components in one."""
    rows = [("trained", 0, "a", 0.9), ("trained", 1, "a", 0.8), ("trained", 0, "b", 0.7),
            ("trained", 1, "b", 0.7), ("components", 0, "a", 0.6), ("components", 0, "b", 0.7)]
    table = pd.DataFrame(rows, columns=["network", "seed", "record", "auroc"])
    return table.assign(data="x", noise="clean", score="self_reference", **{"class": "S"})


def test_table_and_differences_of_made_up_areas():
    trained, components = in_noise.table_of(found_areas())
    assert trained["S"] == pytest.approx(np.median([0.8, 0.75])) and trained["V"] is None
    assert components["S"] == pytest.approx(0.65)
    row, = network_worth.differences_of(found_areas())
    # of each record the mean over the seeds: 0.85 - 0.6 and 0.7 - 0.7
    assert row["network"] == "components" and row["value"] == pytest.approx(0.125)
    assert row["low"] == pytest.approx(0) and row["high"] == pytest.approx(0.25)


def quick(monkeypatch):
    """Networks of one step, each as good as the next: what they cost is not tested here."""
    monkeypatch.setattr(config, "SEEDS", (0,))
    monkeypatch.setattr(config, "MAX_EPOCHS", 1)
    monkeypatch.setattr(config, "EPOCH_SEGMENTS", config.BATCH_SIZE)
    monkeypatch.setattr(in_noise, "LEAST", 2)


def test_worth_of_the_network_by_the_command(small, segments, noise, monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(network_worth, "SNR_DB", (6,))
    train_mitbih.main(["--database", "simulated", "--protocol", "patient", "--threads", "1"])
    other = small.records_dir()
    network_worth.main(["--database", "simulated", "--threads", "1", "--noise", str(noise),
                        "--other", str(other)])
    found = json.loads((small.out / "results" / "network_worth.json").read_text())
    assert found["simulated"]
    assert {row["noise"] for row in found["table"]} == {"clean", "6 dB"}
    assert {row["network"] for row in found["table"]} == set(network_worth.NETWORKS)
    assert len({row["data"] for row in found["table"]}) == 2
    assert all(row["low"] <= row["value"] <= row["high"] for row in found["paired"])
    for name in ("network_worth.png", "denoised.png"):
        assert (small.out / "evaluation_plots" / name).is_file()



def test_recipes_by_the_command(small, segments, noise, monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(recipes, "SNR_DB", ())
    monkeypatch.setattr(recipes, "HELD_OUT", small.validation)
    recipes.main(["--database", "simulated", "--threads", "1", "--noise", str(noise)])
    found = json.loads((small.out / "results" / "recipes.json").read_text())
    titles = [title for title, _, _ in recipes.recipes(noise).values()]
    assert [drawn["network"] for drawn in found["drawings"]] == titles
    # what needs no training has no drawing either
    ways = recipes.ways_of("shipped", "as shipped", second=None)
    assert {row["network"] for row in found["table"]} == {*titles, *ways}
    assert all(drawn["error"] > 0 for drawn in found["drawings"])
