"""What the pictures show of the test beats, chosen by rule: nobody picks an example."""

import numpy as np
from sklearn.decomposition import PCA

STRIP_S = 30
EXAMPLE_SYMBOLS = "NLRAV/Ff"  # the most common of each kind; the median-score beat of each is drawn


def examples(scores, rows, x, recon, taper):
    """One beat a symbol, the one of median score. Tapered, as the network sees it, in mV."""
    chosen = []
    for symbol in EXAMPLE_SYMBOLS:
        here = np.flatnonzero(rows["symbol"] == symbol)
        if len(here):
            chosen.append(here[np.argsort(scores[here])[len(here) // 2]])
    chosen = np.array(chosen, int)

    scale = rows["scale_mv"][chosen, None]
    offset = rows["offset_mv"][chosen, None]
    return {"example_row": chosen, "example_signal": x[chosen] * taper * scale + offset,
            "example_recon": recon[chosen] * scale + offset}


def part_examples(part, strength, flagged, rows, x, typical, classes):
    """A flagged beat of each class: of those led by the class's most frequent part, the one of median strength.

    Signals in mV, with the record's regular beats that it was compared with.
    """
    chosen = []
    for name in classes:
        here = np.flatnonzero((rows["aami"] == name) & flagged)
        if len(here):
            here = here[part[here] == np.bincount(part[here]).argmax()]
            chosen.append(here[np.argsort(strength[here], kind="stable")[len(here) // 2]])
    chosen = np.array(chosen, int)

    scale = rows["scale_mv"][chosen, None]
    offset = rows["offset_mv"][chosen, None]
    return {"part_row": chosen, "part_signal": x[chosen] * scale + offset,
            "part_usual": typical[chosen] * scale + offset}


def choose_strip(rows, fs_hz):
    """(record, first sample) of the 30 s with most different symbols, then most beats of both classes."""
    best = (0, 0, "", 0)
    length = STRIP_S * fs_hz
    for name in dict.fromkeys(rows["record"].tolist()):
        here = rows["record"] == name
        window = rows["sample"][here] // length
        for k in np.unique(window):
            y = rows["y"][here][window == k]
            symbols = rows["symbol"][here][window == k]
            fewer = int(min(y.sum(), (1 - y).sum()))
            best = max(best, (len(set(symbols.tolist())), fewer, name, int(k)))
    return best[2], best[3] * length


def strip(segments, test, scores, fs_hz):
    """30 seconds of a record, stitched from its segments, with all its beats; scores of test beats."""
    rows = segments.rows
    record, start = choose_strip({k: v[test] for k, v in rows.items()}, fs_hz)
    half = segments.x.shape[1] // 2
    length = STRIP_S * fs_hz
    near = rows["sample"] - start
    of_record = rows["record"] == record

    signal = np.full(length + 4 * half, np.nan, np.float32)  # two half windows of margin a side
    for k in np.flatnonzero(of_record & (near >= -half) & (near < length + half)):
        at = near[k] + half
        signal[at:at + 2 * half] = segments.x[k] * rows["scale_mv"][k] + rows["offset_mv"][k]

    shown = np.flatnonzero(of_record & (near >= 0) & (near < length))
    score_of = np.full(len(near), np.nan, np.float32)
    score_of[test] = scores
    return {"strip_signal": signal[2 * half:2 * half + length], "strip_start": np.array(start),
            "strip_record": np.array(record), "strip_sample": rows["sample"][shown],
            "strip_symbol": rows["symbol"][shown], "strip_score": score_of[shown],
            "strip_in_test": np.isin(shown, test)}


def latent_plane(z):
    """First two principal components of z (n, d), and their share of the variance."""
    pca = PCA(2, random_state=0).fit(z)
    return {"latent_2d": pca.transform(z).astype(np.float32), "latent_explained": pca.explained_variance_ratio_}
