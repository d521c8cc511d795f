"""Recipes: pairs of beats, the losses, networks adapted to a record, both leads."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import wfdb

import config
import train_mitbih
from dataset import Segments
from models import latents, new_network
from pipeline import settings
from scoring.scores import self_references
from studies import in_noise, recipes

CPU = torch.device("cpu")
FITTED = {"settings": settings.snapshot(settings.SCORE_SETTINGS), "z_scale": 1.0}


@pytest.fixture
def network():
    """A network with statistics of its own, as training leaves one."""
    torch.manual_seed(0)
    model = new_network()
    model.train()(torch.randn(8, 1, config.WINDOW_SIZE))
    return model.eval()


def made_up(records, seed=0):
    """Segments of noise; records {name: labels y}."""
    rng = np.random.default_rng(seed)
    y = np.concatenate(list(records.values())).astype(np.int8)
    record = np.repeat(list(records), [len(labels) for labels in records.values()])
    rr_s = rng.uniform(0.78, 0.82, len(y) + 1).astype(np.float32)
    rr_s[::7] *= 0.6                                     # early beats: no reference
    rows = {"y": y, "record": record, "sample": np.arange(len(y)) * config.FS_HZ,
            "rr_before_s": rr_s[:-1], "rr_after_s": rr_s[1:]}
    x = rng.normal(size=(len(y), config.WINDOW_SIZE)).astype(np.float32)
    return Segments(x, rows, {})


# --- the next beat --------------------------------------------------------------------------------

def test_pairs_are_neighbours_of_one_record_without_an_abnormal_beat_between(monkeypatch):
    monkeypatch.setattr(config, "BATCH_SIZE", 4)
    segments = made_up({"a": [0, 0, 1, 0, 0, 0], "b": [0, 0, 0, 1]})
    segments.x[:, 0] = np.arange(10)
    beats = recipes.PairsInMemory(segments, np.flatnonzero(segments.rows["y"] == 0), CPU)

    # five pairs: an epoch of ten beats is two whole batches of two pairs
    seen = []
    for x, record in itertools.islice(beats.batches(0, 0, 2, 10), 2 * 50):
        assert x.shape == (4, config.WINDOW_SIZE)
        assert (segments.rows["record"][x[:, 0].long()] == beats.names[record]).all()
        before, after = x[:, 0].chunk(2)
        seen += zip(before.tolist(), after.tolist())
    assert set(seen) == {(0, 1), (3, 4), (4, 5), (6, 7), (7, 8)}

    # the order is the epoch's: a run that goes on in epoch 3 sees what it would have seen
    first = list(itertools.islice(beats.batches(0, 0, 2, 10), 8))
    later = list(itertools.islice(beats.batches(0, 3, 2, 10), 2))
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(first[6:], later))


def test_the_next_beat_is_told_by_the_loss_of_contrastive_predictive_coding(network):
    head = torch.nn.Linear(config.LATENT_DIM, 3)
    seen = torch.randn(6, config.WINDOW_SIZE)
    record = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        found = recipes.next_beat(network, head, seen, seen, record)
        known = train_mitbih.batch_loss(network, head, seen, seen, record)
        z = network.encode(seen.unsqueeze(1)).double().numpy()

    # InfoNCE by its definition, a pair at a time
    losses = []
    for k in range(3):
        cosine = [z[k] @ z[3 + other] / np.linalg.norm(z[k]) / np.linalg.norm(z[3 + other])
                  for other in range(3)]
        size = np.exp(np.array(cosine) / recipes.TEMPERATURE)
        losses.append(-np.log(size[k] / size.sum()))
    assert float(found - known) == pytest.approx(recipes.OTHER_LOSS * np.mean(losses), rel=1e-4)


# --- adapted to each record -----------------------------------------------------------------------

def test_an_adapted_network_has_the_statistics_of_the_beats_in_every_layer(network):
    x = 3 + 2 * np.random.default_rng(1).normal(size=(40, config.WINDOW_SIZE)).astype(np.float32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    own = recipes.adapted(network, x, CPU)

    # layer by layer: what leaves a batch norm has its shift as mean, its gain as deviation
    h = torch.from_numpy(x).unsqueeze(1) * own.taper
    with torch.no_grad():
        for layer in own.encoder:
            h = F.relu(h) if isinstance(layer, torch.nn.ReLU) else layer(h)
            if isinstance(layer, torch.nn.BatchNorm1d):
                channels = h.transpose(0, 1).flatten(1)
                torch.testing.assert_close(channels.mean(1), layer.bias, atol=1e-3, rtol=0)
                torch.testing.assert_close(channels.std(1), layer.weight, atol=0, rtol=1e-3)

    # the network itself stays, and so do all weights
    assert not own.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in own.named_parameters())


def test_a_record_is_adapted_by_its_own_regular_beats_and_no_label(network, monkeypatch):
    segments = made_up({"a": np.zeros(40), "b": np.zeros(30)})
    used = []
    monkeypatch.setattr(recipes, "adapted", lambda model, x, device: used.append(x) or model)
    monkeypatch.setattr(in_noise, "SCORES", ("self_reference",))
    scores = recipes.scores_adapted(network, FITTED, segments, CPU)

    features = in_noise.features_of(network, FITTED, segments, CPU)
    references = list(self_references(features, FITTED, False))
    for x, (here, regular) in zip(used, references, strict=True):
        assert len(regular) < len(here)
        np.testing.assert_array_equal(x, segments.x[here[regular]])

    # a network that stays as it is gives the usual scores: the scale of its latents stays too
    usual = in_noise.scores_of(network, FITTED, segments, CPU)
    np.testing.assert_allclose(scores["self_reference"], usual["self_reference"], rtol=1e-5)
    segments.rows["y"][:] = 1
    again = recipes.scores_adapted(network, FITTED, segments, CPU)
    np.testing.assert_array_equal(again["self_reference"], scores["self_reference"])


def test_adapted_latents_spread_as_those_before(network, monkeypatch):
    segments = made_up({"a": np.zeros(40), "b": np.zeros(30)})
    seen = []
    monkeypatch.setattr(recipes.detector, "scores_of", lambda features, *_: seen.append(features))
    recipes.scores_adapted(network, FITTED, segments, CPU)

    def spread(z):
        return np.concatenate([z[:40] - np.median(z[:40], 0), z[40:] - np.median(z[40:], 0)]).std()

    plain = latents(network, segments.x, 512, CPU)
    assert not np.allclose(seen[0].z, plain, rtol=0.01)
    assert spread(seen[0].z) == pytest.approx(spread(plain), rel=1e-4)


# --- both leads -----------------------------------------------------------------------------------

@pytest.fixture
def two_leads(tmp_path):
    """Paths of two records whose leads stand in either order, with a beat a second."""
    rng = np.random.default_rng(0)
    for name, leads in (("r1", ["MLII", "V1"]), ("r2", ["V2", "MLII"])):
        signal = rng.normal(size=(20 * config.FS_HZ, 2))
        wfdb.wrsamp(name, fs=config.FS_HZ, units=["mV"] * 2, sig_name=leads, fmt=["16"] * 2,
                    p_signal=signal, write_dir=str(tmp_path))
        peaks = config.FS_HZ * np.arange(1, 19)
        wfdb.wrann(name, "atr", peaks, symbol=["N"] * len(peaks), write_dir=str(tmp_path))
    return [tmp_path / "r1", tmp_path / "r2"]


def test_the_second_lead_is_the_one_that_was_not_the_first(two_leads):
    assert [in_noise.other_leads(path, ("MLII", "V5")) for path in two_leads] == [["V1"], ["V2"]]
    first, second = (in_noise.segments_of(two_leads, ("MLII", "V5"), second=second)
                     for second in (False, True))
    np.testing.assert_array_equal(first.rows["sample"], second.rows["sample"])
    expected = in_noise.segments_of(two_leads, ("V1", "V2"))
    np.testing.assert_array_equal(second.x, expected.x)
    assert not np.allclose(first.x, second.x)


def test_each_lead_of_each_record_has_noise_of_its_own(two_leads, monkeypatch):
    seeds = []
    monkeypatch.setattr(in_noise, "mix",
                        lambda signal, tracks, snr_db, seed: seeds.append(seed) or signal)
    for second in (False, True):
        in_noise.segments_of(two_leads, ("MLII", "V5"), second=second)
    assert len(set(seeds)) == 4


def test_scores_of_both_leads_are_joined_beat_by_beat(network, monkeypatch):
    first, second = made_up({"a": np.zeros(30)}), made_up({"a": np.zeros(30)}, seed=1)
    second.rows.update(first.rows)
    monkeypatch.setattr(in_noise, "SCORES", ("self_reference",))
    one, other = (in_noise.scores_of(network, FITTED, segments, CPU)["self_reference"]
                  for segments in (first, second))
    ways = recipes.ways_of("shipped", "as shipped", second)
    scores = [score(network, FITTED, first, CPU)["self_reference"] for score in ways.values()]
    usual, _, smaller, mean = scores
    np.testing.assert_array_equal(usual, one)
    np.testing.assert_array_equal(smaller, [min(pair) for pair in zip(one, other)])
    np.testing.assert_allclose(mean, (one + other) / 2)
    assert list(recipes.ways_of("clean", "clean", second)) == ["clean"]
