"""From the network's view of a beat to one anomaly score, and from scores to a threshold.

Higher is more abnormal. Nothing that is fitted here sees an abnormal label. The scores:

    mse        mean squared error of the segment: the published one
    beat       squared error weighted by a narrow Gaussian on the R peak: the QRS
    latent     distance in latent space to the nearest normal training beats
    rhythm     prematurity and pause against the record's own rhythm; no shape
    nearest    distance in latent space and timing together, relative to how far apart the normal
               training beats are there (a density, as in the local outlier factor)
    record     the same distance to the record's own most regular beats: unlabelled, any patient
    causal     `record` from the past alone: beats of the first minutes, rhythm of the last beats
    excess     `nearest` less its median over those regular beats: what is unlike any normal beat
    own        the same distance to normal training beats of the same record (beat protocol only)
    combined   the default: a weighted sum of standardised parts, weights from select_score.py
    combined_causal   `combined` with `causal` parts: a bedside monitor, one beat behind
    combined_own      `combined` with `own` (beat protocol only)
"""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from scoring import rhythm
from models import reconstruct
from preprocess import gaussian
from pipeline import settings

BATCH = 512      # segments a forward pass: larger ones leave the cache and are slower on a CPU
SEARCH = 20000   # beats whose neighbours are searched at a time: memory does not grow with the recording
TINY = 1e-9      # a distance of 0 (a copy of a reference) must keep a logarithm
LEVEL_SPREAD = 0.5  # of a standardised score
LEAST_OWN = 5    # beats of its own that a record must have before it is its own reference
OWN_LIMIT = 2000  # own reference beats kept, evenly in time: a day's search stays linear in its length
TITLES = {"mse": "plain MSE (published score)", "beat": "error weighted to the QRS",
          "latent": "latent distance to normal beats", "rhythm": "prematurity and pause",
          "nearest": "latent and timing, to normal beats", "record": "the record's own regular beats, unlabelled",
          "causal": "the same, first 5 minutes as reference", "own": "own normal training beats",
          "excess": "latent and timing, to normal beats, less the record's median",
          "combined": "combined", "combined_causal": "combined, causal",
          "combined_own": "combined, own normal training beats"}


# --- what the network and the rhythm say of each beat ---------------------------------------------

class View:
    """The scored beats as the scores see them, record by record.

    z (n, latent_dim), mse and beat (n,), record (n,), times (n, 2) and irregular (n,), the last two
    also from the past alone (`past_times`, `past_irregular`); `learning` (n,) bool: in the first
    minutes. recon (n, w) only where somebody draws it.
    """

    def __init__(self, z, mse, beat, record, recon=None):
        self.z, self.mse, self.beat, self.record, self.recon = z, mse, beat, record, recon

    @classmethod
    def of(cls, model, segments, rows, settings, fs_hz, device, drawn=True):
        """Of the row numbers `rows` of the Segments, by one pass of the network; drawn: with recon, else in less memory."""
        if drawn:
            recon, *seen = network_view(model, segments.x[rows], settings, fs_hz, device)
        else:
            parts = [network_view(model, segments.x[rows[part]], settings, fs_hz, device)[1:]
                     for part in batches(len(rows), 16 * BATCH)]
            recon, seen = None, [np.concatenate(values) for values in zip(*parts)]
        view = cls(*seen, segments.rows["record"][rows], recon)
        view.set_rhythm(segments.rows, rows, settings, fs_hz)
        return view

    def set_rhythm(self, table, rows, settings, fs_hz):
        """Timing of the rows from the RR intervals of all beats of their records in `table`."""
        n = len(table["record"])
        made = {name: np.zeros((n, 2) if "times" in name else n, np.float32)
                for name in ("times", "past_times", "irregular", "past_irregular")}
        early = table["sample"] < settings["LEARNING_S"] * fs_hz
        for here in by_record(table["record"]).values():
            before, after = (table[name][here] for name in ("rr_before_s", "rr_after_s"))
            for name, causal, learning in (("", False, slice(None)), ("past_", True, early[here])):
                times = rhythm.timing(before, after, settings["LOCAL_BEATS"], settings["USUAL_PERCENTILE"], causal)
                made[name + "times"][here] = times
                made[name + "irregular"][here] = rhythm.irregularity(
                    times, settings["PAUSE_WEIGHT"], settings["SPREAD_FLOOR"], learning)
        for name, values in made.items():
            setattr(self, name, values[rows])
        self.learning = early[rows]

    def vectors(self, z_scale, causal=False, rows=slice(None)):
        """(n, latent_dim + 2) float32: shape in units of the training beats' spread, and timing in log RR."""
        times = self.past_times if causal else self.times
        return np.concatenate([self.z[rows] / z_scale, times[rows]], axis=1)


def network_view(model, x, settings, fs_hz, device):
    """(recon (n, w), z (n, latent_dim), mse (n,), beat (n,)) of segments x (n, w)."""
    recon, z = reconstruct(model, x, BATCH, device)
    recon, z = recon.numpy(), z.numpy()
    weights = gaussian(x.shape[1], settings["QRS_SIGMA_S"] * fs_hz).astype(np.float32)
    mse, beat, taper = np.empty(len(x)), np.empty(len(x)), model.taper.cpu().numpy()
    for part in batches(len(x), BATCH):  # in parts: the squared error of all would be a third copy
        error = np.square(x[part] * taper - recon[part])
        mse[part], beat[part] = error.mean(axis=1), error @ weights / weights.sum()
    return recon, z, mse, beat


def batches(n, size):
    """Slices of `size` that cover n rows."""
    return [slice(start, start + size) for start in range(0, n, size)]


def by_record(record):
    """{name: row numbers} in order of appearance."""
    order = np.argsort(record, kind="stable")
    names, starts = np.unique(record[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:])))


# --- distances ------------------------------------------------------------------------------------

def neighbours(references, queries, k):
    """(distances (n, k), indices (n, k)) of the k nearest references, Euclidean."""
    return NearestNeighbors(n_neighbors=min(k, len(references)), algorithm="brute").fit(references).kneighbors(queries)


def density_scale(references, k):
    """(r,) log of each reference's mean distance to its k nearest fellows."""
    distance, _ = neighbours(references, references, k + 1)
    return np.log(distance[:, 1:].mean(axis=1) + TINY).astype(np.float32)


def relative_distance(distance, index, scale, power):
    """(n,) mean over neighbours of log distance less `power` times the log spacing of the references there.

    power 0 is the plain nearest-neighbour distance, 1 close to the local outlier factor
    (Breunig et al. 2000): in between, a small step out of a dense cluster and a larger one out
    of a sparse one weigh alike, and sparse clusters still count as less sure.
    """
    return (np.log(distance + TINY) - power * scale[index]).mean(axis=1)


def own_reference(irregular, candidates, limit):
    """The candidate beats (row numbers) whose irregularity is at most `limit`: this heart's normal.

    Bundle-branch block and pacing come in time and are kept, whatever they look like. Premature
    beats are left out even where they are the majority. At least LEAST_OWN, the least irregular.
    """
    ranked = candidates[np.argsort(irregular[candidates], kind="stable")]
    chosen = np.sort(ranked[:max(LEAST_OWN, int((irregular[candidates] <= limit).sum()))])
    step = -(-len(chosen) // OWN_LIMIT)
    return chosen[::max(step, 1)]


def distance_to_own(known, queries, share):
    """(n,) log distance of the queries to the neighbour that `share` of the reference beats `known` are nearer than.

    A rare shape among the reference is far from most of it, and stays far from itself.
    """
    k = min(max(3, int(share * len(known))), len(known) - 1)
    squares, result = (known ** 2).sum(axis=1), np.empty(len(queries))
    for part in batches(len(queries), BATCH):
        kth = np.partition(squares - 2 * queries[part] @ known.T, k, axis=1)[:, k]
        result[part] = 0.5 * np.log(np.maximum(kth + (queries[part] ** 2).sum(axis=1), TINY))
    return result


# --- the parts ------------------------------------------------------------------------------------

def _nearest(view, fitted, causal):
    references, density = fitted["references"].float().numpy(), fitted["density"].numpy()
    result = np.empty(len(view.z))
    for part in batches(len(result), SEARCH):
        distance, index = neighbours(references, view.vectors(fitted["z_scale"], causal, part),
                                     fitted["settings"]["NEIGHBOURS"])
        result[part] = relative_distance(distance, index, density, fitted["settings"]["DENSITY_POWER"])
    return result


def _latent(view, fitted, causal):
    references, result = fitted["references"].float().numpy()[:, :view.z.shape[1]], np.empty(len(view.z))
    for part in batches(len(result), SEARCH):
        distance, _ = neighbours(references, view.z[part] / fitted["z_scale"], fitted["settings"]["NEIGHBOURS"])
        result[part] = distance.mean(axis=1)
    return result


def _excess(view, fitted, causal):
    """`nearest` less its median over the record's own regular beats: another lead or database moves all its beats."""
    values = _nearest(view, fitted, causal)
    for here, reference in own_references(view, fitted, causal):
        values[here] -= np.median(values[here[reference]])
    return values


def _own(view, fitted, causal):
    """Like `nearest`, among the same record's references; all references where it has too few."""
    references, density = fitted["references"].float().numpy(), fitted["density"].numpy()
    names = np.array(fitted["reference_records"])[fitted["reference_record"].numpy()]
    result, vectors = np.empty(len(view.z)), view.vectors(fitted["z_scale"], causal)
    for name, here in by_record(view.record).items():
        own = np.flatnonzero(names == name)
        own = own if len(own) >= LEAST_OWN else np.arange(len(references))
        distance, index = neighbours(references[own], vectors[here], fitted["settings"]["NEIGHBOURS"])
        result[here] = relative_distance(distance, own[index], density, fitted["settings"]["DENSITY_POWER"])
    return result


def own_references(view, fitted, causal):
    """Of each record (its rows, which of them are its own reference)."""
    irregular = view.past_irregular if causal else view.irregular
    for here in by_record(view.record).values():
        known = np.flatnonzero(view.learning[here]) if causal else np.arange(len(here))
        known = known if len(known) >= LEAST_OWN else np.arange(len(here))[:LEAST_OWN]
        yield here, own_reference(irregular[here], known, fitted["settings"]["SELF_IRREGULARITY"])


def _record(view, fitted, causal):
    result = np.empty(len(view.z))
    for here, reference in own_references(view, fitted, causal):
        known = view.vectors(fitted["z_scale"], causal, here[reference])
        for part in batches(len(here), SEARCH):
            queries = view.vectors(fitted["z_scale"], causal, here[part])
            result[here[part]] = distance_to_own(known, queries, fitted["settings"]["SELF_NEIGHBOURS"])
    return result


def _rhythm(view, fitted, causal):
    return (view.past_irregular if causal else view.irregular).astype(float)


def _beat(view, fitted, causal):
    return np.log(view.beat + TINY)


PARTS = {"beat": _beat, "rhythm": _rhythm, "nearest": _nearest, "excess": _excess, "record": _record, "own": _own}
STAND_IN = {"combined": {}, "combined_causal": {}, "combined_own": {"nearest": "own"}}


def _weighted(name, protocol_weights):
    """[(part, causal, weight)] of a combined score."""
    causal = name == "combined_causal"
    return [(STAND_IN[name].get(part, part), causal, w) for part, w in protocol_weights.items() if w]


def _key(part, causal):
    return part + " causal" * causal


# --- fit and score --------------------------------------------------------------------------------

def fit(model, segments, train, validation, weights, settings, fs_hz, device):
    """What the scores need, as a dict that a checkpoint can hold.

    `train`: row numbers of normal training beats, the references. `validation`: rows of the
    validation part, unlabelled as a record is when it is scored; those that are normal set the
    scale of the parts of `combined`. `weights` {part: weight}; `settings` holds settings.SCORE_SETTINGS.
    """
    view = View.of(model, segments, train, settings, fs_hz, device, drawn=False)
    z_scale = float(max(view.z.std(), 1e-6))
    references = torch.from_numpy(view.vectors(z_scale)).half()
    names, index = np.unique(view.record, return_inverse=True)
    fitted = {"settings": settings, "z_scale": z_scale, "references": references, "weights": dict(weights),
              "reference_records": names.tolist(), "reference_record": torch.from_numpy(index.astype(np.int16)),
              "density": torch.from_numpy(density_scale(references.float().numpy(), settings["DENSITY_NEIGHBOURS"]))}
    del view
    view = View.of(model, segments, validation, settings, fs_hz, device)
    normal = segments.rows["y"][validation] == 0
    fitted["standard"] = {}
    for name in STAND_IN:
        for part, causal, _ in _weighted(name, weights):
            if _key(part, causal) not in fitted["standard"]:
                values = PARTS[part](view, fitted, causal)[normal]
                fitted["standard"][_key(part, causal)] = (float(values.mean()), float(max(values.std(), 1e-6)))
    return fitted


def score(model, fitted, segments, rows, names, fs_hz, device):
    """({name: (n,) float64 scores} of the asked names, View) for the row numbers `rows`.

    Rows of the same record are each other's unlabelled reference in `record` and `causal`.
    """
    view = View.of(model, segments, rows, fitted["settings"], fs_hz, device)
    return scores_of(view, fitted, names), view


def scores_of(view, fitted, names):
    """{name: (n,) float64 scores} of the beats of a View."""
    cache = {}

    def part(name, causal):
        if (name, causal) not in cache:
            cache[name, causal] = PARTS[name](view, fitted, causal)
        return cache[name, causal]

    plain = {"mse": lambda: view.mse, "beat": lambda: view.beat, "latent": lambda: _latent(view, fitted, False),
             "causal": lambda: part("record", True)}
    scores = {}
    for name in names:
        if name in STAND_IN:
            scores[name] = 0.0
            for p, causal, weight in _weighted(name, fitted["weights"]):
                mean, std = fitted["standard"][_key(p, causal)]
                scores[name] = scores[name] + weight * (part(p, causal) - mean) / std
        else:
            scores[name] = plain[name]() if name in plain else part(name, False)
    return {name: np.asarray(values, np.float64) for name, values in scores.items()}


def levels(scores, view, fitted, causal=False):
    """(n,) scores less their median over the record's own regular beats, in units of the spread of those.

    A threshold on the score itself does not carry over to another electrode or database: at equal
    mean specificity (97 %) over the patients of DS1 it finds 93.9 % of their abnormal beats, a level
    96.6 %. The added spread keeps a very even record from having a level of its own.
    """
    result = np.empty(len(scores))
    for here, reference in own_references(view, fitted, causal):
        known = scores[here[reference]]
        middle = np.median(known)
        spread = 1.4826 * np.median(np.abs(known - middle))  # of a normal distribution: its deviation
        result[here] = (scores[here] - middle) / (spread + LEVEL_SPREAD)
    return result


def threshold_at_specificity(normal_scores, specificity):
    """The lowest score that flags at most 1 - specificity of these beats; flagged is score >= threshold.

    normal_scores (n,) of normal validation beats: no abnormal beat has a say in the threshold.
    Raises ValueError where there are none.
    """
    if not len(normal_scores):
        raise ValueError("a threshold needs normal beats in the validation part")
    allowed = int(np.floor((1 - specificity) * len(normal_scores) + 1e-9))
    ranked = np.sort(normal_scores)[::-1]
    return float(np.nextafter(ranked[min(allowed, len(ranked) - 1)], np.inf))
