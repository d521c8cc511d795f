"""The anomaly scores of a beat: higher is more abnormal, and no abnormal label is ever read.

mse              mean squared error of the segment: the published score
qrs_error        squared error weighted by a narrow Gaussian on the R peak
latent_knn       distance in latent space to the nearest normal training beats
rhythm           prematurity and pause against the record's own rhythm; no shape
nearest          distance in latents and timing together, relative to how far apart the normal
                 training beats are there
self_shape       distance in latents to the record's own regular beats, unlabelled, less how far
                 those are from each other; no timing
self_reference   the same in latents and timing
self_causal      `self_reference` from the past alone: the first minutes, the last beats' rhythm
same_patient     distance to normal training beats of the same record (beat protocol only)
combined         the default: the largest, softly, of weighted scores (studies.select_score)
combined_causal  `combined` from the past alone: a bedside monitor, one beat behind
combined_same_patient  `combined` with `same_patient` for `nearest` (beat protocol only)

A score of one's own is a function (features, fitted, causal) -> (n,) and a row in SCORES, below.
"""

from dataclasses import dataclass
from typing import Callable

import numpy as np

from pipeline.errors import UserError
from pipeline.runtime import slices
from scoring.distances import for_blocks, kth_smallest, neighbours
from scoring.features import rows_by_record

# beats whose neighbours are searched at a time: memory does not grow with the recording
SEARCH = 20000
TINY = 1e-9         # a distance of 0 (a copy of a reference) must keep a logarithm
LEAST_SELF = 5      # beats of its own that a record must have before it is its own reference
# own reference beats kept, evenly in time: a day's search stays linear in its length
SELF_LIMIT = 2000


# --- distances ------------------------------------------------------------------------------------

def density_scale(references, k):
    """(r,) log of each reference's mean distance to its k nearest fellows."""
    distance, _ = neighbours(references, references, k + 1)

    # each reference is its own nearest, at distance 0: it is no fellow
    return np.log(distance[:, 1:].mean(axis=1) + TINY).astype(np.float32)


def relative_distance(distance, index, scale, power):
    """(n,) mean over neighbours: log distance less `power` times the log spacing of references.

    power 0 is the plain nearest-neighbour distance, 1 close to the local outlier factor
    (Breunig et al. 2000): in between, a small step out of a dense cluster and a larger one out
    of a sparse one weigh alike, and sparse clusters still count as less sure.
    """
    return (np.log(distance + TINY) - power * scale[index]).mean(axis=1)


def regular_beats(irregular, candidates, limit):
    """The candidate beats (row numbers) whose irregularity is at most `limit`: this heart's normal.

    Bundle-branch block and pacing come in time and are kept, whatever they look like. Premature
    beats are left out even where they are the majority. At least LEAST_SELF, the least irregular.
    """
    ranked = candidates[np.argsort(irregular[candidates], kind="stable")]

    # a limit, not a share: in record 232 the premature beats are 1,382 of 1,780
    chosen = np.sort(ranked[:max(LEAST_SELF, (irregular[candidates] <= limit).sum())])

    # evenly in time, so that a day's morning and night are both in the reference
    return chosen[::-(-len(chosen) // SELF_LIMIT)]


def self_references(features, fitted, causal):
    """Of each record (its rows, which of them are its own reference)."""
    irregular = features.past_irregular if causal else features.irregular

    for here in rows_by_record(features.record).values():
        candidates = np.arange(len(here))

        # a bedside monitor knows the first minutes, or the first beats of a record cut out of them
        if causal:
            learning = np.flatnonzero(features.learning[here])
            candidates = learning if len(learning) >= LEAST_SELF else candidates[:LEAST_SELF]

        yield here, regular_beats(irregular[here], candidates,
                                  fitted["settings"]["SELF_IRREGULARITY"])


def distance_to_share(known, queries, share):
    """(n,) log distance to the neighbour that `share` of the reference beats are nearer than.

    A rare shape among the reference is far from most of it, and stays far from itself.
    """
    # a beat of the reference is its own neighbour 0: at least the third beside it is asked
    k = min(max(3, int(share * len(known))), len(known) - 1)
    result = np.empty(len(queries))

    def of(part, away):
        square = kth_smallest(away, k) + (queries[part] ** 2).sum(axis=1)
        result[part] = 0.5 * np.log(np.maximum(square, TINY))

    for_blocks(of, known, queries)
    return result


# --- scores ---------------------------------------------------------------------------------------

def mse(features, fitted, causal):
    # kept beside the better ones: it is what the published figures are of
    return features.mse


def qrs_error(features, fitted, causal):
    return features.qrs_error


def rhythm(features, fitted, causal):
    return (features.past_irregular if causal else features.irregular).astype(float)


def latent_knn(features, fitted, causal):
    # the columns behind the latents are timing
    references = fitted["references"].float().numpy()[:, :features.z.shape[1]]
    result = np.empty(len(features.z))

    for part in slices(len(result), SEARCH):
        queries = features.z[part] / fitted["z_scale"]
        distance, _ = neighbours(references, queries, fitted["settings"]["KNN_NEIGHBOURS"])
        result[part] = distance.mean(axis=1)
    return result


def distance_to_training(features, fitted, causal, rows, known):
    """(rows,) relative distance of the rows to the references `known`, in latents and timing."""
    settings = fitted["settings"]
    distance, index = neighbours(fitted["references"][known].float().numpy(),
                                 features.vectors(fitted["z_scale"], causal, rows),
                                 settings["KNN_NEIGHBOURS"])
    return relative_distance(distance, index, fitted["density"].numpy()[known],
                             settings["DENSITY_POWER"])


def nearest(features, fitted, causal):
    result = np.empty(len(features.z))
    for part in slices(len(result), SEARCH):
        result[part] = distance_to_training(features, fitted, causal, part, slice(None))
    return result


def self_shape(features, fitted, causal):
    return distance_to_own(features, fitted, causal, features.z.shape[1])


def self_reference(features, fitted, causal):
    return distance_to_own(features, fitted, causal, None)


def distance_to_own(features, fitted, causal, columns):
    """(n,) distance in the first `columns` of the vectors (None: all) to the record's own
    reference, less its median over the reference itself."""
    result = np.empty(len(features.z))

    for here, reference in self_references(features, fitted, causal):
        known = features.vectors(fitted["z_scale"], causal, here[reference])[:, :columns]
        for part in slices(len(here), SEARCH):
            queries = features.vectors(fitted["z_scale"], causal, here[part])[:, :columns]
            result[here[part]] = distance_to_share(known, queries,
                                                   fitted["settings"]["SELF_NEIGHBOURS"])

        # noise moves all beats of a record apart: how many times farther than the regular ones are
        result[here] -= np.median(result[here[reference]])
    return result


def same_patient(features, fitted, causal):
    """Like `nearest`, among the same record's references; all references where it has too few."""
    names = np.array(fitted["reference_records"])[fitted["reference_record"].numpy()]
    result = np.empty(len(features.z))

    for name, here in rows_by_record(features.record).items():
        own = np.flatnonzero(names == name)

        # record 107 is paced throughout: it has no normal beat to train on
        if len(own) < LEAST_SELF:
            own = slice(None)
        result[here] = distance_to_training(features, fitted, causal, here, own)
    return result


@dataclass(frozen=True)
class Score:
    """`values` (features, fitted, causal) -> (n,); a score without it combines others.

    causal: from the past alone. instead: {part of WEIGHTS: what stands for it} of a combination.
    as_part: how the values enter a combination; errors are skewed, so their logarithm does.
    """

    title: str
    values: Callable | None = None
    causal: bool = False
    instead: dict | None = None
    as_part: Callable = np.asarray


def log(values):
    """Natural logarithm that a value of 0 does not break."""
    return np.log(values + TINY)


SCORES = {
    "mse": Score("plain MSE (published score)", mse, as_part=log),
    "qrs_error": Score("error weighted to the QRS", qrs_error, as_part=log),
    "latent_knn": Score("latent distance to normal beats", latent_knn),
    "rhythm": Score("prematurity and pause", rhythm),
    "nearest": Score("latent and timing, to normal beats", nearest),
    "self_shape": Score("the record's own regular beats, shape alone", self_shape),
    "self_reference": Score("the record's own regular beats, unlabelled", self_reference),
    "self_causal": Score("the same, first 5 minutes as reference", self_reference, causal=True),
    "same_patient": Score("own normal training beats", same_patient),
    "combined": Score("combined"),
    "combined_causal": Score("combined, causal", causal=True),
    "combined_same_patient": Score(
        "combined, own normal training beats", instead={"nearest": "same_patient"})}


def check_names(names, where):
    """Raise UserError for a name that is no score; `where`: the setting it stands in."""
    unknown = sorted(set(names) - set(SCORES))
    if unknown:
        raise UserError(
            f"config.py: {where} names {', '.join(unknown)}; expected some of "
            f"{', '.join(SCORES)}. "
            f"Edit {where}, or add the score to SCORES in scoring/scores.py: docs/extending.md.")
