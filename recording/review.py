"""What a reviewer has to decide: the flagged beats of a recording in a few review groups.

recording/groups.py keeps shapes apart so that a flag is right; a person wants few questions.
Here the flagged beats of each kind are joined into at most MOST review groups of like shape and
prematurity (Ward 1963), single beats among them. Each is accepted, rejected or renamed as one.
"""

import numpy as np
import scipy

from pipeline.runtime import slices
from recording.groups import described
from scoring.features import BATCH

# In 23 records of svdb and 22 of DS1 flagged beats make 5 and 6 review groups (median), 9 and 11 at
# most; 93 and 95 % of the beats are of the most frequent class of theirs. Without a limit (average
# linkage at 5.5, as in groups.py) it is 15 and 21, 37 and 240 at most, and 95 and 99 %.
MOST = 4                  # review groups of one kind
HEIGHT = 20.0             # of Ward's tree: below it beats are one review group anyway
PREMATURITY_WEIGHT = 10.0  # of log(usual RR / RR) beside latents in units of their spread
SAMPLE = 3000             # beats of a kind that are compared; the others go to the nearest mean
AVERAGED = 200            # beats, evenly in time, that a mean is of
SHOWN_S = (0.4, 0.6)      # of a beat, before and after its R peak
BAND = (0.05, 0.95)       # quantiles of the regular beats
PARTS = (("P wave", -0.25, -0.06), ("QRS complex", -0.06, 0.08), ("ST segment", 0.08, 0.18),
         ("T wave", 0.18, 0.45))
OUTSIDE = 0.3             # of a part lies outside the band: it deviates there
LATEST = 0.99             # of the usual RR: a beat earlier than so counts as early by so much, as
                          # the logarithm has no end


def review_groups(latents, early, excess, kind):
    """(k,) number of the review group of each flagged beat, from 1: that of the largest total
    excess, a large and abnormal one, comes first.

    latents (k, d) in units of their spread; early (k,) share of the usual RR interval; excess (k,);
    kind (k,) letters. The same in every run.
    """
    prematurity = -np.log1p(-np.minimum(np.nan_to_num(early), LATEST))
    vectors = np.column_stack([latents, PREMATURITY_WEIGHT * prematurity])

    label = np.zeros(len(kind), int)
    for letter in np.unique(kind):
        here = np.flatnonzero(kind == letter)
        label[here] = 1 + label.max() + ward_labels(vectors[here])

    total = np.bincount(label, excess)[1:]
    number = np.empty(len(total) + 1, int)
    number[1 + np.argsort(-total, kind="stable")] = 1 + np.arange(len(total))
    return number[label]


def ward_labels(vectors):
    """(k,) label from 0 of vectors (k, d), at most MOST of them."""
    if len(vectors) == 1:
        return np.zeros(1, int)

    # evenly in time
    sample = vectors[::-(-len(vectors) // SAMPLE)]
    tree = scipy.cluster.hierarchy.linkage(sample, "ward")
    label = scipy.cluster.hierarchy.fcluster(tree, HEIGHT, "distance")
    if label.max() > MOST:
        label = scipy.cluster.hierarchy.fcluster(tree, MOST, "maxclust")
    if len(sample) == len(vectors):
        return label - 1

    means = np.array([sample[label == number].mean(axis=0) for number in np.unique(label)])
    nearest = [np.square(vectors[part, None] - means).sum(axis=2).argmin(axis=1)
               for part in slices(len(vectors), BATCH)]
    return np.concatenate(nearest)


def rows(number, found, kind, time_s):
    """[{"review_group", "kind", "beats", "excess", "early", "qrs_distance", "first_s", "why"}], a
    row a review group, in their order.

    number (n,) as of review_groups, 0 where not flagged; found: beats.Evidence; kind, time_s (n,).
    """
    return [{"review_group": one} | described(np.flatnonzero(number == one), found, kind, time_s)
            for one in range(1, number.max(initial=0) + 1)]


# --- what a review group looks like ---------------------------------------------------------------

def mean_beats(number, regular, segments, fs_hz):
    """(offset_s (w,), usual, [mean (w,)]): the mean beat of each review group beside the usual one.

    number, regular (k,): review group of each segment, 0 for none, and whether it is a regular beat
    of the recording; segments (k, w + 2): beats as the network sees them, offset and scale behind.
    usual: {"mean", "low", "high"} (w,) of regular beats, of which nine in ten lie between low and
    high, or None where there are none. Signals in the recording's unit.
    """
    middle = (segments.shape[1] - 2) // 2
    before, after = (round(s * fs_hz) for s in SHOWN_S)
    offset_s = np.arange(-before, after) / fs_hz

    def signals(rows):
        rows = rows[::-(-len(rows) // AVERAGED)]
        part = segments[rows]
        x = part[:, middle - before:middle + after]
        return x * part[:, -1:] + part[:, -2:-1]

    means = [signals(np.flatnonzero(number == one)).mean(axis=0)
             for one in range(1, number.max(initial=0) + 1)]
    known = np.flatnonzero(regular)
    if not len(known):
        return offset_s, None, means

    like = signals(known)
    low, high = np.quantile(like, BAND, axis=0)
    return offset_s, {"mean": like.mean(axis=0), "low": low, "high": high}, means


def where_it_deviates(offset_s, usual, mean):
    """Names of the parts of the beat in which its mean (w,) lies outside of what is usual."""
    if usual is None:
        return []
    outside = (mean < usual["low"]) | (mean > usual["high"])
    found = []
    for name, first_s, last_s in PARTS:
        here = (offset_s >= first_s) & (offset_s < last_s)
        if outside[here].mean() > OUTSIDE:
            found.append(name)
    return found
