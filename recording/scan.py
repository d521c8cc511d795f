"""From one lead of a recording to scored beats, piece by piece: memory does not grow with the recording.

The recording is cut into pieces of PIECE_S on a fixed grid, each read with a margin, so that nothing
depends on how much is read at a time. A piece is resampled, filtered, its R peaks are found and
its beats go through the network; of each beat only the latents, two errors and its time are kept.
"""

import tempfile
from dataclasses import dataclass

import numpy as np
import sleepecg
from scipy.ndimage import median_filter

from recording import quality
from scoring import detector
from preprocess import cut_segments, inside, normalise
from recording.stretch import read_stretch

PIECE_S = 1800     # a multiple of quality.WINDOW_S; the QRS detector learns anew in each: in pieces of 300 s it
                   # takes T waves of record 119 for beats
SEAM_S = 0.06      # a beat on a seam is taken from both pieces ...
REFRACTORY_S = 0.2  # ... and of two beats nearer than this the first is kept
ALIGN_S = 0.07     # the R peak is the largest deviation this near to the detection: on DS1 2.3 samples (median over
                   # records 1.5) of scatter about the annotated peaks, 3.4 for the highest value, 2.8 for none
SEARCH_S = 0.36    # a beat the detector passed over is looked for this far from its neighbours (a T wave comes sooner:
                   # Pan and Tompkins 1985) ...
SEARCH_SIZE = 0.5  # ... and has this share of their steepness: on DS1 97.5 % of V beats are then found instead of
                   # 86.3 %, at a positive predictivity of all beats of 98.3 instead of 98.4 %
SLOPE_S = 0.022    # steepness: rise over twice this time, which T waves lack and broad QRS complexes do not ...
STEEP_S = 0.1      # ... from lowest to highest, this near to the beat ...
STEEP_BEATS = 41   # ... and the usual one is the median of so many beats'


@dataclass
class Beats:
    """What is kept of a recording: a row a beat, and the verdict on each stretch of quality.WINDOW_S.

    time_s (n,) of the R peak; readable (n,) bool, and whole (n,): its segment lies in the recording;
    z (k, latent_dim) float32, an array or Spooled, mse, beat (k,) of the k beats that are both, in order.
    """

    time_s: np.ndarray
    readable: np.ndarray
    whole: np.ndarray
    z: object
    mse: np.ndarray
    beat: np.ndarray
    unreadable: np.ndarray     # (n_windows,) int8, index into quality.REASONS
    duration_s: float

    @property
    def scored(self):
        """(n,) bool"""
        return self.readable & self.whole


@dataclass
class Piece:
    """One piece with its margin, at the network's rate."""

    start_s: float             # of the first sample
    own_s: tuple               # from, to: what is not margin
    raw: np.ndarray            # resampled, NaN filled
    filtered: np.ndarray
    unreadable: np.ndarray     # of its own windows
    peaks: np.ndarray          # samples of `filtered`


def detections(raw, fs_hz):
    """QRS complexes (k,) in samples: modified Pan and Tompkins 1985 (sleepecg); none in a signal without any."""
    if len(raw) < 2 * fs_hz or np.ptp(raw) == 0:
        return np.empty(0, int)
    return np.asarray(sleepecg.detect_heartbeats(raw, fs_hz), int)


def steepness(slope, at, fs_hz):
    """(k,) range of the slope near `at` (k,): of its steepest rise to its steepest fall."""
    reach = np.arange(-round(STEEP_S * fs_hz), round(STEEP_S * fs_hz) + 1)
    return np.ptp(slope[np.clip(at[:, None] + reach, 0, len(slope) - 1)], axis=1)


def searched_back(filtered, found, fs_hz):
    """Detections (k,) and, where two are far apart, the largest deflection between them if it is about as steep.

    The detector squares slopes, and broad ventricular beats among steep normal ones escape it (208: 323 of 992).
    """
    if len(found) < 2:
        return found
    apart, lag = round(SEARCH_S * fs_hz), round(SLOPE_S * fs_hz)
    padded = np.pad(filtered, lag, mode="edge")
    slope = padded[2 * lag:] - padded[:-2 * lag]
    usual = median_filter(steepness(slope, found, fs_hz), STEEP_BEATS, mode="nearest")
    gaps = np.flatnonzero(np.diff(found) > 2 * apart)
    largest = np.array([found[k] + apart + np.abs(filtered[found[k] + apart:found[k + 1] - apart + 1]).argmax()
                        for k in gaps], int)
    kept = steepness(slope, largest, fs_hz) >= SEARCH_SIZE * np.minimum(usual[gaps], usual[gaps + 1])
    return np.sort(np.append(found, largest[kept]))


def aligned(filtered, found, reach):
    """Each detection (k,) moved to the largest absolute value within `reach` samples."""
    if not len(found):
        return found
    offsets = np.arange(-reach, reach + 1)
    near = np.abs(filtered[np.clip(found[:, None] + offsets, 0, len(filtered) - 1)])
    return np.unique(np.clip(found + offsets[near.argmax(axis=1)], 0, len(filtered) - 1))


def read_piece(recording, lead, start_s, fs_hz, band_hz, order):
    """The Piece that begins at start_s of one lead (index)."""
    own = start_s, min(start_s + PIECE_S, recording.n_samples / recording.fs_hz)
    stretch = read_stretch(recording, lead, *own, fs_hz, band_hz, order, lambda raw, _: detections(raw, fs_hz))
    found = searched_back(stretch.filtered, stretch.found, fs_hz)
    peaks = aligned(stretch.filtered, found, round(ALIGN_S * fs_hz))
    return Piece(stretch.start_s, own, stretch.raw, stretch.filtered, stretch.unreadable, peaks)


def segments_of(piece, peaks, fs_hz, window_size):
    """x (k, w) of the R peaks of a piece, whose windows lie inside it."""
    x, offset_mv, scale_mv = normalise(cut_segments(piece.filtered, peaks, window_size))
    return x, offset_mv, scale_mv


class Network:
    """The network over segments as they come, in batches of one size: what it says of each is kept in order.

    Batches of many sizes would make its library keep buffers for each of them.
    """

    def __init__(self, model, fitted, fs_hz, device):
        self.model, self.settings, self.fs_hz, self.device = model, fitted["settings"], fs_hz, device
        self.waiting, self.mse, self.beat, self.n = [], [], [], 0
        self.spool = tempfile.TemporaryFile()

    def add(self, x):
        """Segments x (k, w)."""
        self.waiting.append(x)
        if sum(map(len, self.waiting)) >= detector.BATCH:
            x = np.concatenate(self.waiting)
            whole = len(x) // detector.BATCH * detector.BATCH
            self._run(x[:whole])
            self.waiting = [x[whole:]]

    def _run(self, x):
        _, z, mse, beat = detector.network_view(self.model, x, self.settings, self.fs_hz, self.device)
        self.spool.write(z.tobytes())
        self.mse.append(mse)
        self.beat.append(beat)
        self.n += len(x)

    def finish(self):
        """(z (n, latent_dim), read from a file where it is asked for, mse (n,), beat (n,))"""
        if any(map(len, self.waiting)):
            self._run(np.concatenate(self.waiting))
        z = Spooled(self.spool, (self.n, self.model.model_args["latent_dim"]))
        return z, np.concatenate([np.empty(0), *self.mse]), np.concatenate([np.empty(0), *self.beat])


class Spooled:
    """float32 rows in a temporary file, indexed like an array; what is not asked for takes no memory."""

    def __init__(self, file, shape):
        file.flush()
        self.file, self.shape = file, shape

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        if not len(self):
            return np.empty(self.shape, np.float32)[rows]
        return np.array(np.memmap(self.file, np.float32, "r", shape=self.shape)[rows])  # and unmapped again


def scan(recording, lead, model, fitted, fs_hz, band_hz, order, device, given_s=None, progress=lambda pieces: pieces,
         all_readable=False):
    """Beats of one lead (index) of a Recording; given_s (k,): R peaks known already, in s, instead of detection.

    all_readable: nothing is unreadable, noise is scored like the rest.
    """
    window, network = model.model_args["window_size"], Network(model, fitted, fs_hz, device)
    end_s, columns, verdict, last_s = recording.n_samples / recording.fs_hz, [], [], -np.inf
    for start_s in progress(np.arange(0, end_s, PIECE_S)):
        piece = read_piece(recording, lead, start_s, fs_hz, band_hz, order)
        piece.unreadable[:] *= not all_readable
        verdict.append(piece.unreadable)
        peaks = piece.peaks if given_s is None else given_peaks(piece, given_s, fs_hz)
        time_s = piece.start_s + peaks / fs_hz
        here = (time_s >= piece.own_s[0] - SEAM_S) & (time_s < piece.own_s[1] + SEAM_S)
        here[here] = separate(time_s[here], REFRACTORY_S if given_s is None else 1e-4, last_s)
        peaks, time_s = peaks[here], time_s[here]
        last_s = time_s[-1] if len(time_s) else last_s
        window_of = np.clip(((time_s - start_s) / quality.WINDOW_S).astype(int), 0, len(piece.unreadable) - 1)
        readable, whole = piece.unreadable[window_of] == 0, inside(peaks, len(piece.filtered), window)
        if (readable & whole).any():
            network.add(segments_of(piece, peaks[readable & whole], fs_hz, window)[0])
        columns.append((time_s, readable, whole))
    found = (np.concatenate(column) for column in zip(*columns))
    return Beats(*found, *network.finish(), np.concatenate(verdict), end_s)


def given_peaks(piece, given_s, fs_hz):
    """R peaks given in seconds, as samples of a piece."""
    at = np.round((given_s - piece.start_s) * fs_hz).astype(int)
    return at[(at >= 0) & (at < len(piece.filtered))]


def separate(time_s, refractory_s, last_s=-np.inf):
    """(n,) bool: which beats come at least refractory_s after the one kept before; time_s (n,) ascending."""
    kept = np.zeros(len(time_s), bool)
    for k, t in enumerate(time_s):
        if t - last_s >= refractory_s:
            kept[k], last_s = True, t
    return kept


def rhythm_table(beats, fs_hz):
    """Columns for View.set_rhythm of the scored beats: intervals across unreadable stretches are unknown (NaN)."""
    gaps = np.diff(beats.time_s)
    bad = np.concatenate([[0], np.cumsum(beats.unreadable > 0)])
    window = np.clip((beats.time_s / quality.WINDOW_S).astype(int), 0, len(beats.unreadable) - 1)
    broken = ~beats.readable[:-1] | ~beats.readable[1:] | (bad[window[1:] + 1] > bad[window[:-1]])
    gaps = np.where(broken, np.nan, gaps)
    scored = beats.scored
    return {"record": np.zeros(int(scored.sum()), np.int8),  # one record: its name on every beat would be memory
            "sample": np.round(beats.time_s[scored] * fs_hz).astype(np.int64),
            "rr_before_s": np.append(np.nan, gaps)[:len(scored)][scored],
            "rr_after_s": np.append(gaps, np.nan)[:len(scored)][scored]}


def score(beats, fitted, name, fs_hz):
    """(scores, levels, table): (n,) float64 each, NaN where not scored, the recording as its own reference.

    A level is the score less its median over the recording's own regular beats, in units of their
    spread: hearts and electrodes differ in both.
    """
    scored, table = beats.scored, rhythm_table(beats, fs_hz)
    scores, levels = np.full(len(scored), np.nan), np.full(len(scored), np.nan)
    if scored.any():
        view = detector.BeatFeatures(beats.z, beats.mse, beats.beat, table["record"])
        view.set_rhythm(table, slice(None), fitted["settings"], fs_hz)
        scores[scored] = detector.scores_of(view, fitted, (name,))[name]
        levels[scored] = detector.robust_z(scores[scored], view, fitted, name == "combined_causal")
    return scores, levels, table
