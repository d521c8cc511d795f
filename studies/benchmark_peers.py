"""What a user would take instead: detectors of scikit-learn and PyOD, and wfdb's QRS detector. Part of benchmark.py.

Each detector gets what the baselines get (baselines.py): 32 principal components of the windowed beat, fitted on
normal training beats. Fit and score are timed in turn, a round of all of them after the other; quality is that of the
validation beats, so that nothing of the test split is looked at for a comparison of speed.
"""

import time

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm
from wfdb.processing import XQRS, compare_annotations

from scoring import baselines
from recording import scan
import config
from scoring import detector
from dataset import read_beats, read_lead
from evaluate import load_detector

INSTALL = "pip install -r requirements/benchmark.txt"
MATCH_S = 0.15    # a detection so near an annotated beat is that beat (EC57)


class Neighbours:
    """Mean distance to the nearest training beats, as baselines.knn."""

    def fit(self, x):
        self.index = NearestNeighbors(n_neighbors=baselines.NEIGHBOURS, algorithm="brute").fit(x)
        return self

    def score_samples(self, x):
        """x (n, 32) -> (n,), lower is more abnormal"""
        return -self.index.kneighbors(x)[0].mean(axis=1)


class Reconstruction:
    """Squared error of the windowed beat drawn from its principal components, as baselines.pca_error."""

    def fit(self, x):
        self.pca = PCA(baselines.COMPONENTS, random_state=0).fit(x)
        return self

    def score_samples(self, x):
        """x (n, w) -> (n,), lower is more abnormal"""
        return -((x - self.pca.inverse_transform(self.pca.transform(x))) ** 2).mean(axis=1)


def of_sklearn():
    """{title: (what makes the detector, whether it sees the windowed beat itself, whether it sees every training beat)}"""
    found = {"PCA reconstruction error": (Reconstruction, True, True), "kNN": (Neighbours, False, True)}
    return found | {baselines.BASELINES[name]: (make, False, False) for name, make in baselines.DETECTORS.items()}


def of_pyod():
    """The same of PyOD with its own settings; {} where it is not installed."""
    try:
        from pyod.models import cblof, copod, ecod, gmm, hbos, iforest, inne, knn, loda, lof, pca
    except ImportError:
        return {}
    made = {"ECOD": ecod.ECOD, "COPOD": copod.COPOD, "HBOS": hbos.HBOS, "LODA": loda.LODA, "PCA": pca.PCA,
            "KNN": knn.KNN, "LOF": lof.LOF}  # OCSVM: minutes, as its cost is quadratic; baselines has its linear form
    made |= {name: lambda kind=kind: kind(random_state=0) for name, kind in
             {"IForest": iforest.IForest, "GMM": gmm.GMM, "CBLOF": cblof.CBLOF, "INNE": inne.INNE}.items()}
    return {name: (make, False, False) for name, make in made.items()}


def scores_of(detector, x):
    """(n,) scores, higher is more abnormal, of either library's detector."""
    return detector.decision_function(x) if hasattr(detector, "decision_scores_") else -detector.score_samples(x)


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def quality(scores, y):
    """{"auroc", "auprc"}"""
    return {"auroc": roc_auc_score(y, scores), "auprc": average_precision_score(y, scores)}


def detectors(database, protocol, segments, repeats):
    """[{"library", "name", "fit_s": [...], "score_s": [...], "auroc", "auprc", "n_fit", "n"}] on validation beats.

    The first row is this project's default score of the shipped network, without the time of its training.
    """
    train, rows = segments.part(protocol, "train"), segments.part(protocol, "validation")
    y = segments.rows["y"][rows]
    features = baselines.Features(segments, train, config.QRS_SIGMA_S * config.FS_HZ)
    model, stored = load_detector(database, protocol, config.SEED, segments)
    score = lambda: detector.score(model, stored["fitted"], segments, rows, (config.DEFAULT_SCORE,), config.FS_HZ, "cpu")
    peers = [("scikit-learn", *item) for item in of_sklearn().items()] + [("PyOD", *item) for item in of_pyod().items()]
    found = {}
    for _ in tqdm(range(repeats), desc=f"detectors, {protocol} protocol", disable=None):
        seconds, (scores, _) = timed(score)
        row = found.setdefault("ours", {"library": "this project", "name": config.DEFAULT_SCORE, "fit_s": [],
                                        "score_s": [], **quality(scores[config.DEFAULT_SCORE], y)})
        row["score_s"].append(seconds)
        for library, name, (make, whole, every) in peers:
            x, fitted_on = features.windowed if whole else features.components, train if every else baselines.thinned(train)
            fit_s, detector = timed(lambda: _fitted(make(), x[fitted_on]))
            score_s, scores = timed(lambda: scores_of(detector, x[rows]))
            row = found.setdefault((library, name), {"library": library, "name": name, "fit_s": [], "score_s": [],
                                                     "n_fit": len(fitted_on), **quality(scores, y)})
            row["fit_s"].append(fit_s)
            row["score_s"].append(score_s)
    return [row | {"protocol": protocol, "n": len(y)} for row in found.values()]


def _fitted(detector, x):
    detector.fit(x)
    return detector


# --- QRS detectors --------------------------------------------------------------------------------

def by_xqrs(signal, fs_hz):
    detector = XQRS(signal, fs_hz)
    detector.detect(verbose=False)
    return detector.qrs_inds


QRS = {"sleepecg (used)": scan.detections, "wfdb XQRS": by_xqrs}


def qrs_detectors(database, repeats):
    """[{"name", "seconds": [...], "hours", "sensitivity", "ppv"}] over the validation patients, in turn."""
    found = {name: {"name": name, "seconds": [0.0] * repeats, "hours": 0.0} for name in QRS}
    hits = {name: np.zeros(3, int) for name in QRS}
    for record in tqdm(database.validation, desc="QRS detectors", disable=None):
        path = database.records_dir() / record
        (signal, fs_hz, _), (annotated, _) = read_lead(path, config.LEADS), read_beats(path)
        for k in range(repeats):
            for name, detect in QRS.items():
                seconds, peaks = timed(lambda: detect(signal, fs_hz))
                found[name]["seconds"][k] += seconds
                if k == 0:
                    pairs = compare_annotations(annotated, np.asarray(peaks), round(MATCH_S * fs_hz))
                    hits[name] += pairs.tp, pairs.fn, pairs.fp
                    found[name]["hours"] += len(signal) / fs_hz / 3600
    return [row | {"sensitivity": float(tp / (tp + fn)), "ppv": float(tp / (tp + fp))}
            for row, (tp, fn, fp) in zip(found.values(), hits.values())]
