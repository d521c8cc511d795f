"""Detectors without a network, on the same segments and splits: what the autoencoder must beat.

All see the beat through one window, the segment times a Gaussian on the R peak, and all but two
work on its leading principal components. They come from scikit-learn; higher is more abnormal.
None is given a label but "normal" of the training part; those named `record` use the other beats
of the same record, without labels in the patient protocol.

A baseline of one's own is a row in BASELINES, below: docs/extending.md. scikit-learn is imported
where something is fitted: it takes a second to load, and to read earlier results does without.
"""

from dataclasses import dataclass
from typing import Callable

import numpy as np
import scipy

from pipeline.runtime import slices
from preprocess import gaussian
from scoring.distances import neighbours
from scoring.features import rows_by_record

COMPONENTS = 32        # as many as the network has latent dimensions
NEIGHBOURS = 3
RECORD_SHARE = 0.3     # own unlabelled beats: the neighbour that 30 % of them are nearer than
FIT_LIMIT = 20_000     # training beats for the detectors whose cost grows faster than linear
LOCAL_BEATS = 21       # RR intervals in the median that a beat's own is compared with
BATCH = 2048
SETTINGS = {"components": COMPONENTS, "neighbours": NEIGHBOURS, "record_share": RECORD_SHARE,
            "fit_limit": FIT_LIMIT, "local_beats": LOCAL_BEATS}


class Features:
    """Windowed segments, and their principal components, of all beats of segments.npz.

    windowed (n, w) and components (n, 32) float32; `train` the rows the components were fitted on.
    """

    def __init__(self, segments, train, sigma_samples):
        from sklearn.decomposition import PCA

        width = segments.x.shape[1]
        t = np.arange(width) - width // 2
        near = np.abs(t) <= 3 * sigma_samples  # beyond, the window is below 1.2 %
        self.windowed = (segments.x[:, near]
                         * gaussian(width, sigma_samples)[near].astype(np.float32))

        # fewer than 32 only where a small database has fewer beats
        n = min(COMPONENTS, len(train) - 1, self.windowed.shape[1])
        self.pca = PCA(n, random_state=0).fit(self.windowed[train])
        self.components = self.pca.transform(self.windowed).astype(np.float32)


def median_beat(segments, features, train, rows):
    """Root mean square distance to the median of all beats of the record."""
    distance = np.empty(len(segments.x))

    for here in rows_by_record(segments.rows["record"]).values():
        windowed = features.windowed[here]
        # a median: the abnormal beats among them do not bend it while they are the minority
        difference = windowed - np.median(windowed, axis=0)
        distance[here] = np.sqrt((difference ** 2).mean(axis=1))
    return distance[rows]


def pca_error(segments, features, train, rows):
    """Mean squared error of the reconstruction from 32 components (Shyu et al. 2003)."""
    error = np.empty(len(rows))
    # in parts: all beats drawn at once would be a second copy of them
    for part in slices(len(rows), BATCH):
        recon = features.pca.inverse_transform(features.components[rows[part]])
        error[part] = ((features.windowed[rows[part]] - recon) ** 2).mean(axis=1)
    return error


def knn(segments, features, train, rows):
    """Mean distance to the 3 nearest normal training beats (Ramaswamy et al. 2000)."""
    distance, _ = neighbours(features.components[train], features.components[rows], NEIGHBOURS)
    return distance.mean(axis=1)


def knn_record(segments, features, train, rows):
    """The same among the record's own normal training beats.

    A record without any (an unseen patient) refers to its own beats, unlabelled: the distance
    that 30 % of them do not exceed, so that a rare shape is far and a frequent one near.
    """
    record = segments.rows["record"]
    score = np.empty(len(rows))
    for name in np.unique(record[rows]):
        here = record[rows] == name
        own = train[record[train] == name]
        k = NEIGHBOURS
        # record 107, paced throughout, has no normal training beat, an unseen patient none at all
        seen = len(own) >= NEIGHBOURS

        if not seen:
            own = np.flatnonzero(record == name)
            k = max(1, int(RECORD_SHARE * len(own)))

        distance, _ = neighbours(features.components[own], features.components[rows[here]], k)
        score[here] = distance.mean(axis=1) if seen else distance[:, -1]
    return score


def rr(segments, features, train, rows):
    """Prematurity: log of the local median RR interval over the beat's own. No shape at all."""
    score = np.zeros(len(segments.x))

    for here in rows_by_record(segments.rows["record"]).values():
        own = segments.rows["rr_before_s"][here].astype(float)
        # the first beat of a record has no RR interval before it: it counts as usual
        own = np.where(np.isfinite(own) & (own > 0), own, np.nanmedian(own))

        # the sign is kept: a late beat is not abnormal
        score[here] = np.log(scipy.ndimage.median_filter(own, LOCAL_BEATS, mode="nearest") / own)
    return score[rows]


# --- all of them ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Baseline:
    """`values` (segments, features, train, rows) -> (len(rows),).

    Or `detector`, which makes one of scikit-learn: it is fitted on the components of normal beats.
    """

    title: str
    values: Callable | None = None
    detector: Callable | None = None


def make_forest():
    """Liu, Ting & Zhou 2008."""
    from sklearn.ensemble import IsolationForest
    return IsolationForest(n_estimators=200, random_state=0)


def make_lof():
    """Breunig et al. 2000, novelty form."""
    from sklearn.neighbors import LocalOutlierFactor
    return LocalOutlierFactor(n_neighbors=20, novelty=True)


def make_svm():
    """Schoelkopf et al. 2001 in its scalable form: Nystroem features and a linear machine."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import SGDOneClassSVM
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    nystroem = Nystroem(gamma=1 / COMPONENTS, n_components=300, random_state=0)
    return make_pipeline(StandardScaler(), nystroem, SGDOneClassSVM(nu=0.05, random_state=0))


BASELINES = {
    "median_beat": Baseline("distance to the record's median beat", median_beat),
    "pca_error": Baseline("PCA reconstruction error", pca_error),
    "knn": Baseline("kNN on principal components", knn),
    "knn_record": Baseline("kNN on principal components, own record", knn_record),
    "isolation_forest": Baseline("isolation forest", detector=make_forest),
    "one_class_svm": Baseline("one-class SVM (Nystroem, SGD)", detector=make_svm),
    "lof": Baseline("local outlier factor", detector=make_lof),
    "rr": Baseline("RR rule alone", rr)}


def subsample(train):
    """At most FIT_LIMIT of the training rows: these detectors cost more than linearly."""
    if len(train) <= FIT_LIMIT:
        return train
    return np.random.default_rng(0).choice(train, FIT_LIMIT, replace=False)


def score_all(segments, train, rows, sigma_samples, progress):
    """{name: (len(rows),) scores} of BASELINES, fitted on the rows `train` (normal beats).

    sigma_samples is the width of the window; `progress` wraps the list of names (tqdm).
    """
    features = Features(segments, train, sigma_samples)
    scores = {}

    for name in progress(list(BASELINES)):
        baseline = BASELINES[name]
        if baseline.values:
            scores[name] = baseline.values(segments, features, train, rows)
        else:
            # score_samples is higher for what is more normal
            detector = baseline.detector().fit(features.components[subsample(train)])
            scores[name] = -detector.score_samples(features.components[rows])
    return scores
