"""A recording cut into pieces, from samples to segments: memory does not grow with the recording.

Pieces of PIECE_S lie on a fixed grid, and each is read with a margin, so that nothing depends on
how much is read at a time. A piece is resampled, filtered, its R peaks are found and its segments
cut out. No network: a second process does this ahead of it (ahead.py).
"""

from dataclasses import dataclass, replace

import numpy as np

from preprocess import cut_segments, inside, normalise
from recording import r_peaks
from recording.beats import window_index
from recording.reader import lead_index
from recording.stretch import read_stretch

PIECE_S = 1800      # a multiple of VERDICT_S; the QRS detector learns anew in each: in pieces of
                    # 300 s it takes T waves of record 119 for beats
SEAM_S = 0.06       # a beat on a seam is taken from both pieces, of which the first is kept
GIVEN_APART_S = 1e-4  # R peaks that are given: only a beat taken twice is dropped


@dataclass
class Piece:
    """Beats of one piece, a row each, and its verdicts: columns of beats.DetectedBeats.

    Its n beats reach SEAM_S over its ends. The k readable and whole ones have a row in segments.
    """

    time_s: np.ndarray         # (n,)
    readable: np.ndarray       # (n,) bool
    whole: np.ndarray          # (n,) bool
    unreadable: np.ndarray     # (n_windows,) int8
    without_qrs: np.ndarray    # (n_windows,) bool
    oscillation: np.ndarray    # (n_windows,)
    swing: np.ndarray          # (n_seconds,)
    segments: np.ndarray       # (k, window_size + 2) float32

    def after(self, last_s, refractory_s):
        """The same, less beats that come too soon after each other, or after last_s, of the piece
        before.
        """
        kept = r_peaks.apart(self.time_s, refractory_s, last_s)
        rows = kept[self.readable & self.whole]
        return replace(self, time_s=self.time_s[kept], readable=self.readable[kept],
                       whole=self.whole[kept], segments=self.segments[rows])


def load_libraries():
    """Import what filtering and finding R peaks need: a second, which the process that runs the
    network does without.
    """
    import scipy.ndimage  # noqa: F401
    import scipy.signal  # noqa: F401
    import scipy.stats  # noqa: F401
    import sleepecg  # noqa: F401


def starts_s(recording):
    """Where the pieces of a Recording begin, in s."""
    return np.arange(0, recording.n_samples / recording.fs_hz, PIECE_S)


def refractory_s(given_s):
    """How near two beats may be, where R peaks are given (k,) and where they are not (None)."""
    return r_peaks.REFRACTORY_S if given_s is None else GIVEN_APART_S


def read_piece(recording, start_s, lead, signal):
    """The Stretch of a Recording that begins at start_s, with beats found; lead: its index;
    signal: segment settings of the checkpoint.
    """
    fs_hz = signal["FS_HZ"]
    return read_stretch(recording, lead, start_s, start_s + PIECE_S, fs_hz, signal["BAND_HZ"],
                        signal["FILTER_ORDER"], lambda raw, first_s: r_peaks.detect(raw, fs_hz))


def piece_of(recording, start_s, lead, signal, given_s, score_all):
    """The Piece that begins at start_s; given_s (k,): R peaks known already, in s, instead of
    detection; score_all: nothing is unreadable.
    """
    fs_hz = signal["FS_HZ"]
    window = signal["WINDOW_SIZE"]
    stretch = read_piece(recording, start_s, lead, signal)
    if score_all:
        stretch.unreadable[:] = 0

    if given_s is None:
        peaks = r_peaks.find_r_peaks(stretch.filtered, stretch.found, fs_hz)
    else:
        peaks = np.round((given_s - stretch.start_s) * fs_hz).astype(int)
        peaks = peaks[(peaks >= 0) & (peaks < len(stretch.filtered))]

    # of the margins a seam's width: a beat on a seam may be found in either piece
    stop_s = min(start_s + PIECE_S, recording.n_samples / recording.fs_hz)
    time_s = stretch.start_s + peaks / fs_hz
    here = (time_s >= start_s - SEAM_S) & (time_s < stop_s + SEAM_S)
    peaks, time_s = peaks[here], time_s[here]

    readable = stretch.unreadable[window_index(time_s - start_s, len(stretch.unreadable))] == 0
    whole = inside(peaks, len(stretch.filtered), window)
    segments = np.empty((0, window + 2), np.float32)
    if (readable & whole).any():
        cut = cut_segments(stretch.filtered, peaks[readable & whole], window)
        segments = np.column_stack(normalise(cut))
    return Piece(time_s, readable, whole, stretch.unreadable, stretch.without_qrs,
                 stretch.oscillation, stretch.swing, segments)


# --- which lead -----------------------------------------------------------------------------------

def choose_lead(recording, wanted, signal):
    """(index, why) of the lead to score: asked for; else named as in training; else the most
    readable.

    The most readable has the largest share of readable stretches in the first piece; of equals the
    first. `signal`: segment settings of the checkpoint. Raises UserError for a lead that is not
    there.
    """
    if wanted is not None:
        return lead_index(recording, wanted), "asked for"

    names = [name.upper() for name in recording.leads]
    for name in (*signal["LEADS"], "II"):
        if name.upper() in names:
            return names.index(name.upper()), "named as in training"
    if len(names) == 1:
        return 0, "the only one"

    shares = list(recording.each(readable_share, range(len(names)), signal))
    return int(np.argmax(shares)), f"most readable of {len(names)}"


def readable_share(recording, lead, signal):
    """Share of the first piece of a lead (index) that can be read; -1 where no beat is found."""
    piece = read_piece(recording, 0, lead, signal)
    return float((piece.unreadable == 0).mean()) if len(piece.found) else -1
