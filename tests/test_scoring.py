import dataclasses

import numpy as np
import pytest
import torch

import config
import dataset
import models
from scoring import detector

FS = 360
SETTINGS = {"QRS_SIGMA_S": 0.1, "KNN_NEIGHBOURS": 3, "DENSITY_NEIGHBOURS": 5, "DENSITY_POWER": 0.5,
            "LOCAL_BEATS": 5, "USUAL_PERCENTILE": 80, "PAUSE_WEIGHT": 0.25, "SPREAD_FLOOR": 0.1,
            "SELF_IRREGULARITY": 0.1, "SELF_NEIGHBOURS": 0.2, "SELF_CAUSAL_S": 20}
WEIGHTS = {"nearest": 1.0, "self_reference": 0.5, "rhythm": 0.3, "qrs_error": 0.2, "nearest_centred": 0.1}
BEATS = 80


@pytest.fixture
def segments():
    """Three records of 80 beats of noise around a shape, about 0.8 s apart, one in eight abnormal."""
    rng = np.random.default_rng(0)
    rows, x = {name: [] for name in ("record", "sample", "rr_before_s", "rr_after_s", "y")}, []
    for record in "abc":
        rr = rng.uniform(0.7, 0.9, BEATS)
        abnormal = rng.random(BEATS) < 0.125
        rr[abnormal] = rng.uniform(0.4, 0.6, abnormal.sum())
        sample = 400 + np.cumsum((rr * FS).astype(int))
        before, after = np.append(np.nan, np.diff(sample) / FS), np.append(np.diff(sample) / FS, np.nan)
        for name, values in zip(rows, (np.full(BEATS, record), sample, before, after, abnormal.astype(np.int8))):
            rows[name].append(values)
        x.append(np.sin(np.arange(160) / 9) * (1 + abnormal[:, None]) + rng.normal(0, 0.3, (BEATS, 160)))
    return dataset.Segments(np.concatenate(x).astype(np.float32), {k: np.concatenate(v) for k, v in rows.items()}, {})


@pytest.fixture
def detector(segments):
    """(model, fitted, rows to score): references from normal beats of a and b, scores of the rest."""
    torch.manual_seed(0)
    model = models.ConvAutoencoder(160, 4, 30).eval()
    row, record = np.arange(3 * BEATS), segments.rows["record"]
    train = np.flatnonzero((record != "c") & (row % 4 > 0) & (segments.rows["y"] == 0))
    validation = np.flatnonzero((record != "c") & (row % 4 == 0))
    fitted = detector.fit(model, segments, train, validation, WEIGHTS, SETTINGS, FS, "cpu")
    return model, fitted, np.setdiff1d(row, train)


def score(detector, segments, names, rows=None):
    model, fitted, all_rows = detector
    return detector.score(model, fitted, segments, all_rows if rows is None else rows, names, FS, "cpu")


def distances(queries, references):
    """All distances (n, r) by their definition, in float64."""
    return np.sqrt(((queries[:, None].astype(float) - references[None].astype(float)) ** 2).sum(axis=2))


# --- distances ------------------------------------------------------------------------------------

def test_neighbours_equal_brute_force():
    rng = np.random.default_rng(0)
    queries, references = (rng.normal(size=(n, 8)).astype(np.float32) for n in (30, 200))
    distance, index = detector.neighbours(references, queries, 3)
    every = distances(queries, references)
    np.testing.assert_array_equal(index, np.argsort(every, axis=1)[:, :3])
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :3], rtol=1e-4)
    assert detector.neighbours(references[:2], queries, 3)[1].shape == (30, 2)


def test_density_scale_is_the_mean_distance_to_fellows():
    references = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    expected = np.log(np.sort(distances(references, references), axis=1)[:, 1:6].mean(axis=1))
    np.testing.assert_allclose(detector.density_scale(references, 5), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_relative_distance_equals_a_plain_loop(power):
    rng = np.random.default_rng(2)
    distance, index, scale = rng.uniform(1, 2, (6, 3)), rng.integers(0, 20, (6, 3)), rng.normal(size=20)
    expected = [sum(np.log(distance[k, j]) - power * scale[index[k, j]] for j in range(3)) / 3 for k in range(6)]
    np.testing.assert_allclose(detector.relative_distance(distance, index, scale, power), expected, rtol=1e-6)


def test_density_power_zero_is_the_mean_log_distance_and_copies_stay_finite():
    distance, index = np.array([[1.0, 2, 4], [0, 0, 0]]), np.zeros((2, 3), int)
    values = detector.relative_distance(distance, index, np.array([7.0]), 0.0)
    assert values[0] == pytest.approx(np.log(2)) and np.isfinite(values[1]) and values[1] < -10


def test_a_step_out_of_a_dense_cluster_weighs_more():
    rng = np.random.default_rng(3)
    dense, sparse = rng.normal(0, 0.1, (100, 3)), rng.normal(20, 2, (100, 3))
    references = np.concatenate([dense, sparse]).astype(np.float32)
    queries = np.array([[1, 1, 1], [21, 21, 21]], np.float32)
    distance, index = detector.neighbours(references, queries, 3)
    scale = detector.density_scale(references, 10)
    assert np.diff(detector.relative_distance(distance, index, scale, 1.0)) < -1


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_distance_to_own_equals_a_plain_sort(share):
    vectors = np.random.default_rng(4).normal(size=(700, 6)).astype(np.float32)  # more than one batch
    reference = np.arange(0, 700, 7)
    k = max(3, int(share * len(reference)))
    expected = np.log(np.sort(distances(vectors, vectors[reference]), axis=1)[:, k])
    got = detector.distance_to_own(vectors[reference], vectors, share)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_a_rare_shape_among_the_reference_stays_far():
    vectors = np.random.default_rng(5).normal(0, 0.1, (100, 3)).astype(np.float32)
    vectors[:5] += 10
    distance = detector.distance_to_own(vectors, vectors, 0.1)
    assert distance[:5].min() > distance[5:].max() + 3


def test_distance_to_own_of_fewer_beats_than_neighbours_is_to_the_farthest():
    vectors = np.array([[0.0], [1], [3]], np.float32)
    np.testing.assert_allclose(detector.distance_to_own(vectors, vectors, 0.1), np.log([3, 2, 3]), rtol=1e-5)


# --- a record's own reference ---------------------------------------------------------------------

def test_own_reference_leaves_premature_beats_out_even_where_they_are_most():
    irregular = np.random.default_rng(6).normal(0, 0.3, 200)
    premature = np.arange(200) % 10 < 7
    irregular[premature] += 5
    chosen = detector.own_reference(irregular, np.arange(200), 0.1)
    np.testing.assert_array_equal(chosen, np.flatnonzero(irregular <= 0.1))
    assert 20 < len(chosen) < 60 and not premature[chosen].any()
    some = detector.own_reference(irregular, np.arange(50, 100), 0.1)
    np.testing.assert_array_equal(some, chosen[(chosen >= 50) & (chosen < 100)])


def test_own_reference_is_in_order_has_its_least_and_its_limit():
    irregular = np.random.default_rng(7).normal(size=30000)
    few = detector.own_reference(irregular, np.arange(8), -10)
    assert list(few) == sorted(np.argsort(irregular[:8])[:detector.LEAST_OWN])
    many = detector.own_reference(irregular, np.arange(30000), 0.0)
    assert detector.OWN_LIMIT / 2 < len(many) <= detector.OWN_LIMIT and (np.diff(many) > 0).all()
    assert many[0] < 100 and many[-1] > 29900 and irregular[many].max() <= 0


# --- what the scores are ---------------------------------------------------------------------------

def test_error_scores_equal_their_definition(segments, detector):
    scores, view = score(detector, segments, ("mse", "qrs_error"))
    t = np.arange(160) - 80
    seen = segments.x[detector[2]] * np.exp(-0.5 * (t / 30) ** 2)  # what the tapered network sees
    error = (seen - view.recon) ** 2
    np.testing.assert_allclose(scores["mse"], error.mean(1), rtol=1e-4)
    weights = np.exp(-0.5 * (t / 36) ** 2)
    np.testing.assert_allclose(scores["qrs_error"], np.average(error, axis=1, weights=weights), rtol=1e-4)
    assert view.z.shape == (len(detector[2]), 4) and set(scores) == {"mse", "qrs_error"}


def test_error_far_from_the_beat_moves_mse_and_not_beat(segments, monkeypatch):
    model = models.ConvAutoencoder(160, 4)
    monkeypatch.setattr(detector, "reconstruct", lambda model, x, *a: (torch.zeros(len(x), 160), torch.zeros(len(x), 4)))
    segments.x[:2] = 0
    segments.x[0, 80], segments.x[1, 0] = 3, 3
    view = detector.BeatFeatures.of(model, segments, np.arange(2), SETTINGS | {"QRS_SIGMA_S": 10 / FS}, FS, "cpu")
    assert view.mse[0] == pytest.approx(view.mse[1]) and view.beat[0] > 1000 * view.beat[1]


def test_references_are_latents_in_units_of_their_spread_and_timing(segments, detector):
    model, fitted, rows = detector
    train = np.setdiff1d(np.arange(3 * BEATS), rows)
    _, z = models.reconstruct(model, segments.x[train], 64, "cpu")
    view = detector.BeatFeatures.of(model, segments, train, SETTINGS, FS, "cpu")
    expected = np.concatenate([z.numpy() / z.numpy().std(), view.times], axis=1)
    np.testing.assert_allclose(fitted["references"].float(), expected, rtol=2e-3, atol=1e-3)
    names = np.array(fitted["reference_records"])[fitted["reference_record"].numpy()]
    np.testing.assert_array_equal(names, segments.rows["record"][train])


def test_timing_of_a_beat_comes_from_all_beats_of_its_record(segments, detector):
    """Not from the scored ones alone: rows left out of a split are neighbours in time all the same."""
    view = score(detector, segments, ("mse",))[1]
    alone = score(detector, segments, ("mse",), detector[2][3:4])[1]
    np.testing.assert_array_equal(alone.times[0], view.times[3])
    assert alone.irregular[0] == view.irregular[3] and alone.past_irregular[0] == view.past_irregular[3]


def test_latent_nearest_and_own_equal_brute_force(segments, detector):
    _, fitted, rows = detector
    scores, view = score(detector, segments, ("latent_knn", "nearest", "same_patient"))
    references, vectors = fitted["references"].float().numpy(), view.vectors(fitted["z_scale"])
    density = np.log(np.sort(distances(references, references), axis=1)[:, 1:6].mean(axis=1))
    every = distances(vectors, references)

    def relative(k, columns):
        near = columns[np.argsort(every[k, columns])[:3]]
        return np.mean(np.log(every[k, near]) - 0.5 * density[near])

    nearest = [relative(k, np.arange(len(references))) for k in range(len(rows))]
    np.testing.assert_allclose(scores["nearest"], nearest, rtol=1e-3, atol=1e-3)
    names = np.array(fitted["reference_records"])[fitted["reference_record"].numpy()]
    own = [relative(k, np.flatnonzero((names == name) | (name == "c"))) for k, name in enumerate(view.record)]
    np.testing.assert_allclose(scores["same_patient"], own, rtol=1e-3, atol=1e-3)  # c has no references: all of them
    shape = np.sort(distances(vectors[:, :4], references[:, :4]), axis=1)[:, :3].mean(axis=1)
    np.testing.assert_allclose(scores["latent_knn"], shape, rtol=1e-3)


@pytest.mark.parametrize("name", ["self_reference", "self_causal"])
def test_record_and_causal_equal_brute_force(segments, detector, name):
    _, fitted, rows = detector
    scores, view = score(detector, segments, (name,))
    causal = name == "self_causal"
    vectors = view.vectors(fitted["z_scale"], causal)
    irregular = view.past_irregular if causal else view.irregular
    for record in "abc":
        here = np.flatnonzero(segments.rows["record"][rows] == record)
        early = segments.rows["sample"][rows[here]] < 20 * FS
        known = here[early] if causal else here
        reference = known[np.argsort(irregular[known])][:max(5, (irregular[known] <= 0.1).sum())]
        k = max(3, int(0.2 * len(reference)))
        order = np.sort(distances(vectors[here], vectors[reference]), axis=1)
        expected = np.log(order[:, min(k, len(reference) - 1)])
        np.testing.assert_allclose(scores[name][here], expected, rtol=1e-3, atol=2e-3)


def excess(segments, detector, view, causal):
    """`nearest` less its median over a record's (early) beats that are regular."""
    _, fitted, rows = detector
    references, vectors = fitted["references"].float().numpy(), view.vectors(fitted["z_scale"], causal)
    distance, index = detector.neighbours(references, vectors, 3)
    values = detector.relative_distance(distance, index, fitted["density"].numpy(), 0.5)
    irregular = view.past_irregular if causal else view.irregular
    for record in "abc":
        here = np.flatnonzero(segments.rows["record"][rows] == record)
        known = here[segments.rows["sample"][rows[here]] < 20 * FS] if causal else here
        values[here] -= np.median(values[known[np.argsort(irregular[known])][:max(5, (irregular[known] <= 0.1).sum())]])
    return values


def test_excess_is_what_the_regular_beats_of_the_record_do_not_have(segments, detector):
    scores, view = score(detector, segments, ("nearest_centred", "nearest"))
    np.testing.assert_allclose(scores["nearest_centred"], excess(segments, detector, view, False), rtol=1e-4, atol=1e-5)
    offset = (scores["nearest"] - scores["nearest_centred"])[view.record == "c"]
    np.testing.assert_allclose(offset, offset[0], atol=1e-6)


def test_rhythm_score_is_the_irregularity_and_needs_no_shape(segments, detector):
    scores, view = score(detector, segments, ("rhythm",))
    np.testing.assert_array_equal(scores["rhythm"], view.irregular)
    segments.x[:] = 0
    np.testing.assert_array_equal(score(detector, segments, ("rhythm",))[0]["rhythm"], scores["rhythm"])
    early = segments.rows["y"][detector[2]] == 1
    assert np.median(scores["rhythm"][early]) > np.quantile(scores["rhythm"][~early], 0.95)


# --- combined -------------------------------------------------------------------------------------

def test_combined_is_the_weighted_sum_of_standardised_parts(segments, detector):
    _, fitted, rows = detector
    scores, _ = score(detector, segments, ("combined", "combined_same_patient", *WEIGHTS, "same_patient"))
    parts = scores | {"qrs_error": np.log(scores["qrs_error"] + detector.TINY)}
    standard = {part: (parts[part] - mean) / std for part, (mean, std) in fitted["standard"].items() if part in parts}
    expected = sum(weight * standard[part] for part, weight in WEIGHTS.items())
    np.testing.assert_allclose(scores["combined"], expected, rtol=1e-6, atol=1e-9)
    expected += standard["same_patient"] - standard["nearest"]
    np.testing.assert_allclose(scores["combined_same_patient"], expected, rtol=1e-6, atol=1e-9)
    assert not np.allclose(scores["combined"], scores["combined_same_patient"])


def test_combined_causal_uses_nothing_centred(segments, detector):
    model, fitted, rows = detector
    scores, view = score(detector, segments, ("combined_causal", "self_causal", "qrs_error"))
    references, vectors = fitted["references"].float().numpy(), view.vectors(fitted["z_scale"], causal=True)
    distance, index = detector.neighbours(references, vectors, 3)
    parts = {"nearest": detector.relative_distance(distance, index, fitted["density"].numpy(), 0.5),
             "self_reference": scores["self_causal"], "nearest_centred": excess(segments, detector, view, causal=True),
             "rhythm": view.past_irregular, "qrs_error": np.log(scores["qrs_error"] + detector.TINY)}
    expected = 0
    for part, weight in WEIGHTS.items():
        mean, std = fitted["standard"][part + " causal"]
        expected = expected + weight * (parts[part] - mean) / std
    np.testing.assert_allclose(scores["combined_causal"], expected, rtol=1e-5, atol=1e-6)


def test_standard_is_of_normal_validation_beats_only(segments, detector):
    model, fitted, _ = detector
    record, row = segments.rows["record"], np.arange(3 * BEATS)
    validation = np.flatnonzero((record != "c") & (row % 4 == 0))
    scores, _ = score(detector, segments, ("nearest", "self_reference", "rhythm", "same_patient"), validation)
    normal = segments.rows["y"][validation] == 0
    assert 0 < normal.sum() < len(normal)
    for name, values in scores.items():
        assert fitted["standard"][name] == pytest.approx((values[normal].mean(), values[normal].std()), rel=1e-6)


def test_a_part_of_weight_zero_is_left_out(segments):
    torch.manual_seed(0)
    model, rows = models.ConvAutoencoder(160, 4, 30).eval(), np.arange(3 * BEATS)
    fitted = detector.fit(model, segments, rows[:BEATS], rows[BEATS:2 * BEATS], {"self_reference": 2.0, "rhythm": 0.0}, SETTINGS,
                         FS, "cpu")
    assert set(fitted["standard"]) == {"self_reference", "self_reference causal"}
    scores, _ = detector.score(model, fitted, segments, rows, ("combined", "self_reference"), FS, "cpu")
    mean, std = fitted["standard"]["self_reference"]
    np.testing.assert_allclose(scores["combined"], 2 * (scores["self_reference"] - mean) / std)


# --- what a score may depend on -------------------------------------------------------------------

ALONE = ("mse", "qrs_error", "latent_knn", "rhythm", "nearest", "same_patient")
TOGETHER = ("self_reference", "self_causal", "nearest_centred", "combined", "combined_causal", "combined_same_patient")


def test_scores_against_training_beats_do_not_depend_on_the_other_rows(segments, detector):
    together, _ = score(detector, segments, ALONE)
    one, _ = score(detector, segments, ALONE, detector[2][17:18])
    for name in ALONE:
        assert one[name][0] == pytest.approx(together[name][17], rel=1e-3, abs=1e-4)


def test_rows_in_another_order_have_the_same_scores(segments, detector):
    order = np.random.default_rng(0).permutation(len(detector[2]))
    scores, _ = score(detector, segments, ALONE + TOGETHER)
    again, _ = score(detector, segments, ALONE + TOGETHER, detector[2][order])
    for name in scores:
        np.testing.assert_allclose(again[name], scores[name][order], rtol=1e-4, atol=1e-4, err_msg=name)


def test_causal_scores_know_no_later_beat(segments, detector):
    rows = np.flatnonzero(segments.rows["record"] == "c")
    assert (segments.rows["sample"][rows[50:]] > 20 * FS).all()
    before, _ = score(detector, segments, ("self_causal", "combined_causal", "self_reference"), rows)
    later = dataclasses.replace(segments, x=segments.x.copy(), rows=dict(segments.rows))
    later.x[rows[50:]] = np.random.default_rng(0).normal(0, 5, (30, 160))
    for name in ("rr_before_s", "rr_after_s"):  # the beat 49 knows when beat 50 comes, and no more
        later.rows[name], changed = later.rows[name].copy(), rows[51 if name == "rr_before_s" else 50:]
        later.rows[name][changed] = np.random.default_rng(1).uniform(0.2, 3, len(changed))
    after, _ = score(detector, later, tuple(before), rows)
    for name in ("self_causal", "combined_causal"):
        np.testing.assert_allclose(after[name][:50], before[name][:50], rtol=1e-6, atol=1e-7, err_msg=name)
        assert not np.allclose(after[name][50:], before[name][50:])
    assert not np.allclose(after["self_reference"][:50], before["self_reference"][:50])


def test_labels_of_scored_beats_have_no_say(segments, detector):
    before, _ = score(detector, segments, ALONE + TOGETHER)
    segments.rows["y"] = 1 - segments.rows["y"]
    after, _ = score(detector, segments, ALONE + TOGETHER)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_a_record_without_early_beats_is_scored_all_the_same(segments, detector):
    rows = np.flatnonzero(segments.rows["record"] == "c")[-20:]
    scores, _ = score(detector, segments, ("self_causal", "combined_causal"), rows)
    assert np.isfinite(scores["self_causal"]).all() and np.isfinite(scores["combined_causal"]).all()


def test_every_score_has_a_title():
    assert {name for names in config.SCORES.values() for name in names} <= set(detector.TITLES)
    assert set(detector.PARTS) <= set(detector.TITLES)


# --- threshold ------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, specificity, flagged", [(1000, 0.955, 45), (10, 0.95, 0), (10, 0.9, 1), (1, 0.5, 0)])
def test_threshold_flags_as_many_normals_as_asked(n, specificity, flagged):
    scores = np.random.default_rng(0).normal(size=n)
    t = detector.threshold_at_specificity(scores, specificity)
    assert (scores >= t).sum() == flagged


def test_threshold_never_flags_more_where_scores_are_equal():
    scores = np.array([0.0] * 50 + [1.0] * 50)
    assert (scores >= detector.threshold_at_specificity(scores, 0.9)).sum() == 0
    with pytest.raises(ValueError, match="normal beats"):
        detector.threshold_at_specificity(np.array([]), 0.9)
