"""What the network and the rhythm say of each beat: the numbers that all scores are made of.

Of the rhythm the sign matters: a premature beat and its compensatory pause are abnormal, a late
beat is not. The usual interval is a high percentile of the neighbouring ones, not their median:
where premature beats are the majority, the median is theirs. A premature beat's interval and the
pause after it, which together are two usual ones, count as their mean: else the pauses are what is
usual where one beat in ten is premature. No label is read: only when beats are.
"""

from dataclasses import dataclass

import numpy as np
import scipy

from models import reconstruct
from preprocess import gaussian
from pipeline.runtime import slices

BATCH = 512      # segments a forward pass: larger ones leave the cache and are slower on a CPU
SAME_RR_S = 0.001    # the RR after a beat and the RR before the next one are one interval
HALF_OF_QUARTER = 2.117   # half of a normal distribution reaches so many times as far as a quarter


@dataclass
class BeatFeatures:
    """The scored beats as the scores see them, record by record.

    `set_rhythm` adds times (n, 2), weighted, and irregular (n,), these two also from the past alone
    (`past_times`, `past_irregular`), and `learning` (n,) bool: in the first minutes, SELF_CAUSAL_S.
    """

    z: np.ndarray                     # (n, latent_dim)
    mse: np.ndarray                   # (n,)
    qrs_error: np.ndarray             # (n,)
    record: np.ndarray                # (n,)
    recon: np.ndarray | None = None   # (n, w), only where somebody draws it

    @classmethod
    def of(cls, model, segments, rows, settings, fs_hz, device, keep_recon=True):
        """Of the row numbers `rows` of the Segments, by one pass of the network.

        keep_recon: with recon; without it the pass takes less memory.
        """
        if keep_recon:
            recon, *seen = observe(model, segments.x[rows], settings, fs_hz, device)
        else:
            recon = None
            parts = []
            # the 63,000 training beats of MIT-BIH would be 180 MB of drawings that nobody sees
            for part in slices(len(rows), 16 * BATCH):
                parts.append(observe(model, segments.x[rows[part]], settings, fs_hz, device)[1:])
            seen = [np.concatenate(values) for values in zip(*parts)]

        features = cls(*seen, segments.rows["record"][rows], recon)
        features.set_rhythm(segments.rows, rows, settings, fs_hz)
        return features

    def set_rhythm(self, table, rows, settings, fs_hz):
        """Timing of the rows from the RR intervals of all beats of their records in `table`."""
        n = len(table["record"])
        early = table["sample"] < settings["SELF_CAUSAL_S"] * fs_hz
        self.learning = early[rows]

        for prefix, causal in (("", False), ("past_", True)):
            times = np.zeros((n, 2), np.float32)
            irregular = np.zeros(n, np.float32)

            # timing is of all beats of a record, whichever of them are scored
            for here in rows_by_record(table["record"]).values():
                times[here] = timing(table["rr_before_s"][here], table["rr_after_s"][here],
                                     settings["LOCAL_BEATS"], settings["USUAL_PERCENTILE"],
                                     settings["PAUSE_RATIO"], causal)
                # from the past alone the spread is known of the first minutes
                learning = early[here] if causal else slice(None)
                irregular[here] = irregularity(times[here], settings["PAUSE_WEIGHT"],
                                               settings["SPREAD_FLOOR"], learning)

            setattr(self, prefix + "times", settings["TIMING_WEIGHT"] * times[rows])
            setattr(self, prefix + "irregular", irregular[rows])

    def vectors(self, z_scale, causal=False, rows=slice(None)):
        """(n, latent_dim + 2) float32: shape in units of the spread within a training record,
        timing in weighted log RR."""
        times = self.past_times if causal else self.times
        return np.concatenate([self.z[rows] / z_scale, times[rows]], axis=1)


def observe(model, x, settings, fs_hz, device):
    """(recon (n, w), z (n, latent_dim), mse (n,), qrs_error (n,)) of segments x (n, w).

    Both errors are against the tapered beat, which is what the network draws.
    """
    recon, z = reconstruct(model, x, BATCH, device)
    recon = recon.numpy()
    taper = model.taper.cpu().numpy()
    weights = gaussian(x.shape[1], settings["QRS_SIGMA_S"] * fs_hz).astype(np.float32)
    mse = np.empty(len(x))
    qrs_error = np.empty(len(x))

    # in parts: the squared error of all segments would be a third copy of them
    for part in slices(len(x), BATCH):
        error = np.square(x[part] * taper - recon[part])
        mse[part] = error.mean(axis=1)
        qrs_error[part] = error @ weights / weights.sum()
    return recon, z.numpy(), mse, qrs_error


def rows_by_record(record):
    """{name: row numbers, rising} of the records, by name."""
    # stable: within a record the beats stay in time, which the causal scores count on
    order = np.argsort(record, kind="stable")
    names, starts = np.unique(record[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:])))


# --- rhythm ---------------------------------------------------------------------------------------

def fill_missing_rr(rr_s, causal):
    """RR intervals (n,) in s with missing ones (ends of a record) replaced by the median, or 1 s.

    causal: a missing first one by the next, which is the RR after that beat.
    """
    rr_s = np.asarray(rr_s, float)
    known = np.isfinite(rr_s) & (rr_s > 0)

    # from the past alone the median of all is not known: the first interval stands for it
    usual = rr_s[known][:1] if causal and not known[:1].all() else rr_s[known]
    return np.where(known, rr_s, np.median(usual) if known.any() else 1.0)


def local_percentile(values, beats, percentile, causal):
    """Percentile of `beats` neighbouring values (n,): around each, or the last ones up to it.

    Near the ends the window keeps its size and moves inward; the first causal ones have what
    there is.
    """
    n = len(values)
    beats = min(beats, n)
    half = beats // 2
    centred = scipy.ndimage.percentile_filter(values, percentile, beats)

    # a window that is cut would take its percentile of fewer beats near the ends than elsewhere
    if not causal:
        return centred[np.clip(np.arange(n), half, n - beats + half)]

    first = []
    for m in range(1, beats):  # the first beats have fewer before them
        rank = min(int(m * percentile / 100), m - 1)
        first.append(np.partition(values[:m], rank)[rank])
    return np.append(first, centred[half:n - beats + half + 1])


def without_pauses(before_s, after_s, pause_ratio):
    """RR intervals before_s (n,) with a short one and the pause after it replaced by their mean.

    A pause is `pause_ratio` times the interval before it. A compensatory one makes up for what the
    premature beat came early, so their mean is the usual interval, in bigeminy too.
    """
    premature = after_s > pause_ratio * before_s
    mean = (before_s + after_s) / 2
    result = np.where(premature, mean, before_s)

    # the beat after the pause; where beats are left out between the two, it is another interval
    follows = np.isclose(before_s[1:], after_s[:-1], atol=SAME_RR_S)
    ends_pause = 1 + np.flatnonzero(premature[:-1] & follows & ~premature[1:])
    result[ends_pause] = mean[ends_pause - 1]
    return result


def timing(rr_before_s, rr_after_s, beats, percentile, pause_ratio, causal=False):
    """(n, 2) float32: prematurity log(usual RR / RR before), pause log(RR after / RR before)."""
    before = fill_missing_rr(rr_before_s, causal)
    after = fill_missing_rr(rr_after_s, causal)

    # logarithms: half and double the usual interval are as far from it
    usual = local_percentile(without_pauses(before, after, pause_ratio), beats, percentile, causal)
    return np.stack([np.log(usual / before), np.log(after / before)], axis=1).astype(np.float32)


def irregularity(times, pause_weight, spread_floor, learning=slice(None)):
    """(n,) prematurity and weighted pause in units of the record's usual spread of prematurity.

    times (n, 2) from `timing`; `learning` selects the beats the spread is taken from. In atrial
    fibrillation it is wide, and an early beat says little; the floor keeps a metronome's rhythm
    from making every beat irregular.
    """
    spread = tightest_quarter(times[learning, 0])
    return (times[:, 0] + pause_weight * times[:, 1]) / (spread_floor + spread)


def tightest_quarter(values):
    """Median absolute deviation of values (n,) as the tightest quarter of them tells it, were they
    normally distributed; 0 where there is none.

    A shorth (Rousseeuw and Leroy 1987) of a quarter: it holds in bigeminy and trigeminy and where
    premature beats are the majority, where the deviation of all is that between the groups.
    """
    share = -(-len(values) // 4)
    if share == len(values):
        return 0.0
    ranked = np.sort(values)
    return HALF_OF_QUARTER * (ranked[share:] - ranked[:-share]).min() / 2
