"""Groups of like beats, what is decided by them, and what is said of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import adjusted_rand_score

from recording import flags, groups
from recording.beats import Evidence


def shapes(*sizes, apart=20.0, seed=0):
    """(vectors, truth): so many beats about each of some places, mixed."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    places = apart * np.eye(len(sizes), 34)
    return places[truth] + 0.3 * rng.normal(size=(len(truth), 34)), truth


def test_groups_are_the_shapes_largest_first_and_few_beats_stand_alone():
    vectors, truth = shapes(40, 300, groups.LEAST_BEATS, groups.LEAST_BEATS - 1)
    found = groups.groups(vectors, np.zeros(len(vectors)))
    assert_array_equal(found, np.array([2, 1, 3, 0])[truth])


def test_one_shape_is_one_group_whatever_the_noise_within_a_record():
    vectors, _ = shapes(500)
    assert set(groups.groups(vectors, np.zeros(500))) == {1}


def test_a_long_recording_has_the_groups_of_its_parts_and_a_rare_shape():
    """Of 40,000 beats only 3,000 are compared: fifty of high excess are still a group."""
    vectors, truth = shapes(33000, 6950, 50, seed=1)
    excess = np.where(truth == 2, 5.0, np.random.default_rng(0).normal(size=len(truth)))
    found = groups.groups(vectors, excess)
    assert adjusted_rand_score(truth, found) == 1
    assert_array_equal(found[truth == 2], 3)
    assert_array_equal(found, groups.groups(vectors, excess))


def test_what_is_far_from_all_that_were_compared_stands_alone():
    known = np.zeros((5, 34))
    queries = np.zeros((2, 34))
    queries[1, 0] = groups.DISTANCE + 0.1
    assert_array_equal(groups.nearest_label(queries, known, np.full(5, 3)), [3, 0])


def test_a_few_fusions_between_two_shapes_do_not_join_them():
    vectors, truth = shapes(300, 100)
    between = np.linspace(vectors[truth == 0][0], vectors[truth == 1][0], 12)
    found = groups.groups(np.concatenate([vectors, between]), np.zeros(412))[:400]
    assert_array_equal(found, truth + 1)


@pytest.mark.parametrize("n", [0, 1, groups.LEAST_BEATS - 1])
def test_hardly_any_beat_is_no_group(n):
    assert_array_equal(groups.groups(np.zeros((n, 34)), np.zeros(n)), np.zeros(n))


def test_of_group():
    values = np.array([1, 2, 9, 7, np.nan])
    assert_array_equal(groups.of_group(values, np.array([1, 1, 1, 0, 0])), [2, 2, 2, 7, np.nan])


# --- flags ----------------------------------------------------------------------------------------

def evidence(excess, kind, group):
    n = len(excess)
    return Evidence(np.array(excess, float), np.array(excess, float), np.zeros(n), np.zeros(n),
                    np.array(kind), np.array(group), np.ones(n, bool))


def beats_at(time_s):
    n = len(time_s)
    return SimpleNamespace(time_s=np.asarray(time_s), scored=np.ones(n, bool),
                           readable=np.ones(n, bool),
                           unreadable=np.zeros(int(time_s[-1] / 10) + 1, np.int8))


def test_a_group_has_one_answer_and_a_beat_alone_its_own():
    found = evidence([1, 3, 3, 3, 1, 1, 3, 1, 3], list("VVVSSSVVQ"), [1, 1, 1, 2, 2, 2, 0, 0, 0])
    time_s = 0.8 * np.arange(1, 10)
    by_group = flags.flags(beats_at(time_s), found, 2.0, causal=False)
    assert_array_equal(by_group, [1, 1, 1, 0, 0, 0, 1, 0, 0])
    by_beat = flags.flags(beats_at(time_s), found, 2.0, causal=False, by_group=False)
    assert_array_equal(by_beat, [0, 1, 1, 1, 0, 0, 1, 0, 0])


def test_a_foreign_shape_must_deviate_by_more_than_the_noise_around_it():
    """What comes in time deviates by 1.3: 0.75 times the 0.6 above 0.7 are the noise's."""
    kind = np.full(60, "Q")
    kind[[10, 20, 30, 40]] = list("VFSV")
    for usual, expected in ((1.3, "SV"), (0.7, "VFSV")):
        excess = np.full(60, usual)
        excess[[10, 20, 30]] = 2.4
        excess[40] = 2.5
        found = evidence(excess, kind, np.zeros(60, int))
        flagged = flags.flags(beats_at(0.8 * np.arange(1, 61)), found, 2.0, causal=False)
        assert "".join(kind[flagged]) == expected

    # early beats around it say nothing of noise, nor does what is above the line
    assert (flags.of_noise(found, np.full(60, 3.0), 2.0) == 0).all()
    found.early[:] = 0.2
    assert (flags.of_noise(found, excess, 2.0) == 0).all()


def test_a_group_deviates_by_the_noise_around_most_of_it():
    """Five of nine are in noise of 1.3; a beat alone where it is quiet is decided for itself."""
    excess = np.where(np.arange(80) < 40, 1.3, 0.0)
    group = np.zeros(80, int)
    group[[5, 10, 15, 20, 25, 50, 55, 60, 65]] = 1
    kind = np.where(group == 1, "V", "Q")
    excess[group == 1] = 2.4
    excess[70] = 2.4
    kind[70] = "V"
    found = evidence(excess, kind, group)
    flagged = flags.flags(beats_at(0.8 * np.arange(1, 81)), found, 2.0, causal=False)
    assert_array_equal(np.flatnonzero(flagged), [70])


def test_in_a_run_of_foreign_beats_a_little_less_is_enough():
    """Beside two in a row, on either side or between two; not beside one, nor where it is far. Not
    where its group is not flagged.
    """
    excess = np.array([0, 1.8, 3, 3, 1.8, 1.8, 0, 1.8, 3, 1.8, 0, 3, 1.8, 3, 0, 3, 3, 1.6])
    kind = ["V" if value else "Q" for value in excess]
    expected = np.isin(np.arange(18), [1, 2, 3, 4, 5, 8, 11, 12, 13, 15, 16])
    time_s = 0.4 * np.arange(1, 19)
    for group, wanted in ((np.zeros(18, int), expected), (excess == 1.8, excess == 3)):
        found = evidence(excess, kind, group)
        found.early[:] = 0.3
        flagged = flags.flags(beats_at(time_s), found, 2.0, causal=False)
        assert_array_equal(flagged, wanted)


def test_a_run_ends_at_what_is_unreadable():
    known = np.array([1, 1, 0, 0, 1, 0, 1], bool)
    linked = np.ones(6, bool)
    assert_array_equal(flags.in_runs(known, np.ones(7, bool), linked), np.ones(7))
    for first in (0, 1):
        linked = np.ones(6, bool)
        linked[[first, 4]] = False
        assert_array_equal(flags.in_runs(known, np.ones(7, bool), linked), known)
    for n in range(3):
        assert len(flags.in_runs(known[:n], known[:n], linked[:max(n - 1, 0)])) == n


@pytest.mark.parametrize("deviation, expected", [(0.25, "V"), (0.02, "SV")])
def test_an_early_beat_says_nothing_in_atrial_fibrillation_a_foreign_one_does(deviation, expected):
    rng = np.random.default_rng(0)
    time_s = np.cumsum(0.8 * np.exp(deviation * rng.normal(size=400)))
    kind = np.full(400, "Q")
    kind[[100, 200]] = ["S", "V"]
    excess = np.where(kind == "Q", 0, 3)
    found = evidence(excess, kind, np.zeros(400, int))
    flagged = flags.flags(beats_at(time_s), found, 2.0, causal=False)
    assert "".join(kind[flagged]) == expected
    # the rhythm is known from what comes after the beat too
    flagged = flags.flags(beats_at(time_s), found, 2.0, causal=True)
    assert "".join(kind[flagged]) == "SV"


# --- words ----------------------------------------------------------------------------------------

def test_rows_say_how_many_what_and_why():
    found = evidence([0, 0, 4, 4, 6], list("QQSVV"), [1, 1, 2, 2, 2])
    found.early[2:] = [0.3, 0.31, 0.4]
    kind = np.array(list("NNSVV"))
    usual, premature = groups.rows(found, kind, kind != "N", np.arange(5.0))
    assert usual["beats"] == 2 and usual["flagged"] == 0 and usual["kind"] == "N"
    assert usual["why"] == "in time, QRS complex like the regular ones"
    assert premature["group"] == 2 and premature["kind"] == "V" and premature["flagged"] == 3
    assert_allclose([premature[key] for key in ("excess", "early", "first_s")], [4, 0.31, 2])
    assert premature["why"].startswith("early by 31 %")


@pytest.mark.parametrize("early, distance, words", [
    (0.07, 0.01, "in time, QRS complex like the regular ones"),
    (-0.2, 0.03, "late by 20 %, QRS complex somewhat unlike the regular ones"),
    (0.5, 0.5, "early by 50 %, QRS complex foreign to the regular ones")])
def test_in_words(early, distance, words):
    assert groups.in_words(early, distance) == words
