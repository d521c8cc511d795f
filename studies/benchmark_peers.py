"""What a user would take instead: detectors of scikit-learn and PyOD, wfdb's QRS detector.

A part of studies/benchmark.py. Each detector gets what the baselines get (scoring/baselines.py): 32
principal components of the windowed beat, fitted on normal training beats. Fit and score are timed
in turn, a round of all of them after the other. Quality is that of the validation beats: nothing of
the test split is looked at for a comparison of speed.
"""

import time
from functools import partial

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm
from wfdb.processing import XQRS, compare_annotations

import config
from dataset import read_beats, read_lead
from evaluate import load_detector
from recording import r_peaks
from scoring import baselines, detector

INSTALL = "pip install -r requirements/benchmark.txt"
MATCH_S = 0.15    # a detection so near an annotated beat is that beat (EC57)


class Neighbours:
    """Mean distance to the nearest training beats, as baselines.knn."""

    def fit(self, x):
        self.index = NearestNeighbors(n_neighbors=baselines.NEIGHBOURS, algorithm="brute").fit(x)

    def score_samples(self, x):
        """x (n, 32) -> (n,), lower is more abnormal"""
        return -self.index.kneighbors(x)[0].mean(axis=1)


class Reconstruction:
    """Squared error of the windowed beat drawn from its components, as baselines.pca_error."""

    def fit(self, x):
        self.pca = PCA(baselines.COMPONENTS, random_state=0).fit(x)

    def score_samples(self, x):
        """x (n, w) -> (n,), lower is more abnormal"""
        return -((x - self.pca.inverse_transform(self.pca.transform(x))) ** 2).mean(axis=1)


def of_sklearn():
    """{title: function that makes the detector}"""
    # baselines that are functions there are written here with a fit and a score, to time both
    made = {"PCA reconstruction error": Reconstruction, "kNN": Neighbours}
    return made | {baseline.title: baseline.detector for baseline in baselines.BASELINES.values()
                   if baseline.detector}


def of_pyod():
    """The same of PyOD with its own settings; {} where it is not installed.

    Without OCSVM: its cost is quadratic, and the baselines have its linear form.
    """
    try:
        from pyod.models import cblof, copod, ecod, gmm, hbos, iforest, inne, knn, loda, lof, pca
    except ImportError:
        return {}

    made = {"ECOD": ecod.ECOD, "COPOD": copod.COPOD, "HBOS": hbos.HBOS, "LODA": loda.LODA,
            "PCA": pca.PCA, "KNN": knn.KNN, "LOF": lof.LOF}
    random = {"IForest": iforest.IForest, "GMM": gmm.GMM, "CBLOF": cblof.CBLOF, "INNE": inne.INNE}
    # each with one seed: another draw is another detector
    return made | {name: partial(kind, random_state=0) for name, kind in random.items()}


def scores_of(fitted, x):
    """(n,) scores, higher is more abnormal, of either library's detector."""
    if hasattr(fitted, "decision_scores_"):  # PyOD's, where higher is more abnormal
        return fitted.decision_function(x)

    # scikit-learn's, where lower is
    return -fitted.score_samples(x)


def time_work(work):
    """(seconds, what the work returns)"""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def time_detectors(database, protocol, segments, repeats):
    """A row a detector: library, name, fit_s and score_s [s of each turn], auroc, auprc, n_fit, n.

    Of validation beats. The first row is this project's default score of the shipped network,
    without the time of its training.
    """
    train = segments.part(protocol, "train")
    rows = segments.part(protocol, "validation")
    y = segments.rows["y"][rows]
    features = baselines.Features(segments, train, config.QRS_SIGMA_S * config.FS_HZ)
    model, stored = load_detector(database, protocol, config.SEED, segments)

    # each round makes its own: nothing that was fitted before may help
    peers = [("scikit-learn", *peer) for peer in of_sklearn().items()]
    peers += [("PyOD", *peer) for peer in of_pyod().items()]
    found = {}

    def note(library, name, fit_s, score_s, scores, **more):
        quality = {"auroc": roc_auc_score(y, scores), "auprc": average_precision_score(y, scores)}
        # scores are the same in every round; the seconds of all of them are kept
        row = found.setdefault((library, name), {
            "library": library, "name": name, "fit_s": [], "score_s": [], "protocol": protocol,
            "n": len(y), **quality, **more})
        row["fit_s"] += fit_s
        row["score_s"] += score_s

    for _ in tqdm(range(repeats), desc=f"detectors, {protocol} protocol", disable=None):
        # the whole way from segments to scores, the network included
        name = config.DEFAULT_SCORE
        seconds, (scores, _) = time_work(lambda: detector.score(
            model, stored["fitted"], segments, rows, (name,), config.FS_HZ, "cpu"))
        note("this project", name, [], [seconds], scores[name])

        for library, name, make in peers:
            # the error is of the beat that is drawn again, the others are of its components
            x = features.windowed if make is Reconstruction else features.components
            # those whose cost grows no faster than linear see every training beat
            fitted_on = (train if make in (Reconstruction, Neighbours)
                         else baselines.subsample(train))

            peer = make()
            fit_s, _ = time_work(lambda: peer.fit(x[fitted_on]))
            score_s, scores = time_work(lambda: scores_of(peer, x[rows]))
            note(library, name, [fit_s], [score_s], scores, n_fit=len(fitted_on))
    return list(found.values())


# --- QRS detectors --------------------------------------------------------------------------------

def find_by_xqrs(signal, fs_hz):
    """(k,) R peaks as wfdb's XQRS finds them."""
    xqrs = XQRS(signal, fs_hz)
    xqrs.detect(verbose=False)
    return xqrs.qrs_inds


QRS = {"sleepecg (used)": r_peaks.detect, "wfdb XQRS": find_by_xqrs}


def time_qrs_detectors(database, repeats):
    """A row a QRS detector on the validation patients: name, seconds, hours, sensitivity, ppv."""
    seconds = {name: np.zeros(repeats) for name in QRS}
    counts = {name: np.zeros(3, int) for name in QRS}   # detected, missed, extra
    hours = 0.0
    for record in tqdm(database.validation, desc="QRS detectors", disable=None):
        path = database.records_dir() / record
        signal, fs_hz, _ = read_lead(path, database.leads, "")
        annotated, _ = read_beats(path, "")

        hours += len(signal) / fs_hz / 3600

        for k in range(repeats):
            for name, find in QRS.items():
                taken_s, peaks = time_work(lambda: find(signal, fs_hz))
                seconds[name][k] += taken_s
                if k == 0:  # they find the same peaks every time
                    pairs = compare_annotations(annotated, np.asarray(peaks),
                                                round(MATCH_S * fs_hz))
                    counts[name] += pairs.tp, pairs.fn, pairs.fp

    rows = []
    for name, (tp, fn, fp) in counts.items():
        rows.append({"name": name, "seconds": seconds[name].tolist(), "hours": hours,
                     "sensitivity": float(tp / (tp + fn)), "ppv": float(tp / (tp + fp))})
    return rows
