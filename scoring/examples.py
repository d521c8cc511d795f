"""What the pictures show of the test beats, chosen by rule: nobody picks an example."""

import numpy as np

from scoring.features import rows_by_record

STRIP_S = 30
EXAMPLE_SYMBOLS = "NLRAV/Ff"  # the most common of each kind; the median-score beat of each is drawn


def median_beat(values, here):
    """The row of `here` with the median value."""
    # an upper median: half of two beats would be a beat that is not there
    return here[np.argsort(values[here], kind="stable")[len(here) // 2]]


def in_mv(x, rows, chosen):
    """Segments x (k, w) of the k chosen beats in mV; rows: columns of segments.npz."""
    # each segment has mean 0 and deviation 1: what was taken off is in these columns
    return x * rows["scale_mv"][chosen][..., None] + rows["offset_mv"][chosen][..., None]


def examples(scores, rows, x, recon, taper):
    """One beat a symbol, the one of median score. Tapered, as the network sees it, in mV."""
    chosen = []
    for symbol in EXAMPLE_SYMBOLS:
        here = np.flatnonzero(rows["symbol"] == symbol)
        if len(here):
            chosen.append(median_beat(scores, here))
    chosen = np.array(chosen, int)

    return {"example_row": chosen, "example_signal": in_mv(x[chosen] * taper, rows, chosen),
            "example_recon": in_mv(recon[chosen], rows, chosen)}


def part_examples(part, strength, flagged, rows, x, usual, classes):
    """A flagged beat of each class: led by the class's most frequent part, of median strength.

    Signals in mV, with the record's regular beats that it was compared with.
    """
    chosen = []

    for name in classes:
        here = np.flatnonzero((rows["aami"] == name) & flagged)
        if len(here):
            most_frequent = np.bincount(part[here]).argmax()
            chosen.append(median_beat(strength, here[part[here] == most_frequent]))
    chosen = np.array(chosen, int)

    return {"part_row": chosen, "part_signal": in_mv(x[chosen], rows, chosen),
            "part_usual": in_mv(usual[chosen], rows, chosen)}


def choose_strip(rows, fs_hz):
    """(record, first sample) of the 30 s of most symbols, then most beats of both classes."""
    best = (0, 0, "", 0)
    for name, here in rows_by_record(rows["record"]).items():
        # windows of 30 s from the start of the record, side by side
        window = rows["sample"][here] // (STRIP_S * fs_hz)
        # many symbols alone could be one beat of each: the rarer class must be seen often, too
        for k in np.unique(window):
            inside = here[window == k]
            n_abnormal = int(rows["y"][inside].sum())
            fewer = min(n_abnormal, len(inside) - n_abnormal)
            best = max(best, (len(np.unique(rows["symbol"][inside])), fewer, name, int(k)))
    return best[2], best[3] * STRIP_S * fs_hz


def strip(segments, test, scores, fs_hz):
    """30 s of a record, stitched from its segments, with all its beats; scores of test beats."""
    rows = segments.rows
    record, start = choose_strip({name: values[test] for name, values in rows.items()}, fs_hz)
    half = segments.x.shape[1] // 2
    length = STRIP_S * fs_hz

    near = rows["sample"] - start
    of_record = rows["record"] == record

    # two half windows of margin to each side: a beat just outside reaches into the strip
    signal = np.full(length + 4 * half, np.nan, np.float32)
    for k in np.flatnonzero(of_record & (near >= -half) & (near < length + half)):
        at = near[k] + half
        signal[at:at + 2 * half] = in_mv(segments.x[k], rows, k)

    # beats of other parts of the split are shown too, without a score
    shown = np.flatnonzero(of_record & (near >= 0) & (near < length))
    score_of = np.full(len(near), np.nan, np.float32)
    score_of[test] = scores
    return {"strip_signal": signal[2 * half:2 * half + length], "strip_start": np.array(start),
            "strip_record": np.array(record), "strip_sample": rows["sample"][shown],
            "strip_symbol": rows["symbol"][shown], "strip_score": score_of[shown],
            "strip_in_test": np.isin(shown, test)}


def latent_plane(z):
    """First two principal components of z (n, d), and their share of the variance."""
    # no t-SNE or UMAP: their distances say little, and their pictures change with the seed
    # by numpy: scikit-learn's takes a second to load
    variance, axes = np.linalg.eigh(np.cov(z.T))    # rising
    first_two = axes[:, [-1, -2]]
    # an axis has no direction: its largest part is positive, as scikit-learn's is
    largest = np.abs(first_two).argmax(axis=0)
    first_two *= np.sign(first_two[largest, [0, 1]])

    plane = (z - z.mean(axis=0)) @ first_two
    return {"latent_2d": plane.astype(np.float32),
            "latent_explained": variance[[-1, -2]] / variance.sum()}
