"""The network's latents as an outlier detector of scikit-learn, on segments of one's own.

    from scoring.estimator import SegmentDetector
    detector = SegmentDetector().fit(normal_segments)    # (n, n_samples), R peak in the middle
    detector.predict(segments)                           # 1 normal, -1 abnormal

It knows the shape of a beat and nothing else: when a beat comes, what detect.score has besides, is
no part of a segment.
"""

import numbers

import numpy as np
import torch
from scipy.signal import resample_poly
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

import config
from models import fused, load_checkpoint
from pipeline import settings
from pipeline.runtime import slices
from preprocess import normalise
from scoring.distances import neighbours
from scoring.features import BATCH
from scoring.scores import SEARCH

# The line of "auto": 98.5 % (mean over records) of the normal beats of DS1 after the first five
# minutes are nearer to those before: studies.segment_detector. On 23 records of svdb it flags 1.7 %
# of N and 95 % of V beats. Where 1.5 % of the fitted ones lie beyond is no such line: a heart's
# beats change in half an hour, and it flags 20 % of N.
USUAL_DISTANCE = 7.5
FAR = 10       # times the median distance of the fitted ones is far enough: where they are nearly
               # copies of each other, as a simulator's are, all else is near
SAME = 1e-6    # nearer, in spreads of a record's latents, is the same segment: rounding is 1e-7


class SegmentDetector(OutlierMixin, BaseEstimator):
    """Distance in latents to the nearest of the segments that it was fitted on.

    X (n_segments, n_samples): a row is one lead over two seconds (the length of the checkpoint's
    window), the R peak on sample n_samples // 2, within 0.5 to 40 Hz (preprocess.bandpass). Any
    number of samples, any unit: a row is resampled to the network's and brought to mean 0 and
    deviation 1.

    checkpoint: file of a trained network, None for the shipped one. contamination: "auto", the line
    is USUAL_DISTANCE, or FAR; or the share of the fitted segments beyond it, in (0, 0.5].
    n_neighbors: nearest fitted segments whose mean distance is the score.

    After fit: offset_, the line of score_samples; references_ (n, latent_dim), latents in units of
    their spread within a record; network_. The same data give the same numbers; nothing is random.
    """

    def __init__(self, checkpoint=None, contamination="auto", n_neighbors=10):
        self.checkpoint = checkpoint
        self.contamination = contamination
        self.n_neighbors = n_neighbors

    def fit(self, X, y=None):
        """Take the latents of X, the user's own normal segments; y is not looked at.

        Raises ValueError for a wrong X or parameter, UserError for a wrong checkpoint.
        """
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2, ensure_min_features=2)
        share = self.contamination
        if not (share == "auto" or isinstance(share, numbers.Real) and 0 < share <= 0.5):
            raise ValueError(f"contamination={share!r}: expected \"auto\" or a share in (0, 0.5]")
        if not (isinstance(self.n_neighbors, numbers.Integral) and self.n_neighbors >= 1):
            raise ValueError(f"n_neighbors={self.n_neighbors!r}: expected a whole number from 1")

        database = settings.database()
        self.network_, stored = load_checkpoint(
            self.checkpoint or database.checkpoint_path("patient", config.SEED),
            database.stage_command("train_mitbih.py", "patient", config.SEED))
        self.z_scale_ = stored["fitted"]["z_scale"]
        self.references_ = self._latents(X)

        scores = self._score(self.references_)
        if share == "auto":
            self.offset_ = max(-USUAL_DISTANCE, FAR * float(np.median(scores)))
        else:
            self.offset_ = float(np.percentile(scores, 100 * share))
        return self

    def score_samples(self, X):
        """(n,) the negative of the mean distance to the nearest fitted segments: lower is more
        abnormal.

        A segment that is among the fitted ones is no neighbour of itself, so that they have the
        scores that new ones like them have.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._score(self._latents(X))

    def decision_function(self, X):
        """(n,) score_samples less offset_: below 0 is an outlier."""
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """(n,) 1 for normal segments, -1 for abnormal ones."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    @torch.inference_mode()
    def _latents(self, X):
        """(n, latent_dim) float64 of the segments X (n, n_samples)."""
        # in double precision: in single a score would depend on which others are beside it
        network = fused(self.network_).double()
        window = network.model_args["window_size"]

        parts = []
        for part in slices(len(X), BATCH):
            x = torch.from_numpy(prepare(X[part], window)).double().unsqueeze(1)   # (b, 1, w)
            parts.append(network.encode(x).numpy())
        return np.concatenate(parts) / self.z_scale_

    def _score(self, z):
        """(n,) score of latents z (n, latent_dim)."""
        # one neighbour more: the nearest may be the segment itself
        k = min(self.n_neighbors, len(self.references_) - 1)
        result = np.empty(len(z))
        for part in slices(len(z), SEARCH):
            distance, _ = neighbours(self.references_, z[part], k + 1)
            distance[distance < SAME] = 0
            fitted = distance[:, 0] == 0
            result[part] = -np.where(fitted, distance[:, 1:].mean(axis=1),
                                     distance[:, :-1].mean(axis=1))
        return result


def prepare(segments, window_size):
    """(k, window_size) float32 as the network sees them, of segments (k, w) of the same length in
    s."""
    width = segments.shape[1]
    if width != window_size:
        # lines, not zeros, beyond the ends: a segment seldom ends at 0
        segments = resample_poly(segments, window_size, width, axis=1, padtype="line")
    return normalise(np.ascontiguousarray(segments))[0]
