"""What is known of the beats of one lead of a recording, as arrays with a row a beat.

DetectedBeats    where they are, what could be read, and what the network made of them (scan.py)
Evidence         their scores, and what speaks for each kind (scan.py)
ScoredBeats      both, with flags, groups and episodes (scored.py): what all files are made of

Nothing here needs the network's library: a second process takes these over, too (ahead.py).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np

from recording.quality import VERDICT_S

EXAMPLES = 8           # most abnormal beats kept with their drawing by the network
APART_S = 10           # two of them are at least this far apart


@dataclass
class DetectedBeats:
    """The beats of one lead, a row each, and the verdict on each stretch of VERDICT_S.

    The k beats that are readable and whole have a row in segments and z, in order of time.
    """

    time_s: np.ndarray         # (n,) of the R peak
    readable: np.ndarray       # (n,) bool
    whole: np.ndarray          # (n,) bool: its segment lies in the recording
    unreadable: np.ndarray     # (n_windows,) int8, index into quality.REASONS
    without_qrs: np.ndarray    # (n_windows,) bool: fibrillation, flutter, wide and fast rhythms
    oscillation: np.ndarray    # (n_windows,) fibrillation.score
    swing: np.ndarray          # (n_seconds,) of the filtered lead: stretch.swings
    segments: object           # scan.Spool (k, window_size + 2): x of the network, offset and scale
    z: object                  # scan.Spool (k, latent_dim)
    errors: Callable           # () -> (mse (k,), qrs_error (k,)): the network draws each beat
    duration_s: float

    @property
    def scored(self):
        """(n,) bool"""
        return self.readable & self.whole


def window_index(time_s, n_windows):
    """(n,) which window of VERDICT_S these times (s) lie in; the last for what lies beyond it."""
    return np.clip((time_s / VERDICT_S).astype(int), 0, n_windows - 1)


def joined(beats):
    """(n - 1,) bool: nothing is unreadable from a beat's window to that of the next."""
    bad = np.append(0, np.cumsum(beats.unreadable > 0))
    window = window_index(beats.time_s, len(beats.unreadable))
    clear = bad[window[1:] + 1] == bad[window[:-1]]
    return clear & beats.readable[:-1] & beats.readable[1:]


@dataclass
class Evidence:
    """What is known of each beat (n,): NaN, "" and 0 where it is not scored."""

    score: np.ndarray
    excess: np.ndarray     # over the recording's own regular beats
    early: np.ndarray      # by this share of the usual RR interval; late below 0
    distance: np.ndarray   # of its QRS complex: kinds.qrs_distance
    kind: np.ndarray       # letter of kinds.kinds that it has if it is flagged
    group: np.ndarray      # of groups.groups; 0, alone, from the past alone
    without_p: np.ndarray  # bool: no P wave around (recording/p_wave.py); True where not known


@dataclass
class ScoredBeats:
    """One recording's beats, what is known of each, and flags (n,), False where not scored."""

    name: str
    lead: str
    lead_index: int
    fs_hz: float               # of the recording
    start: object              # datetime or None
    unit: str                  # of the signal
    beats: DetectedBeats
    found: Evidence
    flagged: np.ndarray
    line: float
    kind: np.ndarray           # (n,) N; S, V, F or Q where flagged (recording/kinds.py); "" else
    review_group: np.ndarray   # (n,) of review.review_groups; 0 where not flagged
    episodes: list = field(default_factory=list)   # of episodes.episodes
    examples: list = field(default_factory=list)   # of most_abnormal
    mean_beats: tuple = ()                         # of review.mean_beats

    def for_picture(self):
        """A copy that another process can draw: without network and open file, and without what the
        picture does not show, 60 MB of a week.
        """
        beats = copy.copy(self.beats)
        beats.segments = beats.z = beats.errors = None
        found = Evidence(*[None] * len(fields(Evidence)))
        found.excess = self.excess
        return replace(self, beats=beats, found=found, review_group=None, mean_beats=())

    @property
    def excess(self):
        """(n,) NaN where not scored."""
        return self.found.excess

    @property
    def samples(self):
        """(n,) R peaks in samples of the recording."""
        return np.round(self.beats.time_s * self.fs_hz).astype(np.int64)

    @property
    def rr_before_s(self):
        """(n,) time since the beat before; NaN for the first."""
        return np.diff(self.beats.time_s, prepend=np.nan)

    @property
    def unreadable_s(self):
        """(k, 2) from, to, of the unreadable stretches."""
        edges = np.diff(self.beats.unreadable > 0, prepend=False, append=False)
        last_s = (round(self.beats.duration_s * self.fs_hz) - 1) / self.fs_hz
        return np.minimum(np.flatnonzero(edges) * VERDICT_S, last_s).reshape(-1, 2)
