"""From one lead of a recording to its beats as the network sees them: memory does not grow with the
recording.

The recording is cut into pieces of PIECE_S on a fixed grid, each read with a margin, so that
nothing depends on how much is read at a time. A piece is resampled, filtered, its R peaks are found
and its segments are put into a temporary file, from which the network takes them.
"""

import tempfile
from dataclasses import dataclass

import numpy as np
import sleepecg
from scipy.ndimage import median_filter

from preprocess import cut_segments, inside, normalise
from recording import quality
from recording.reader import lead_index
from recording.stretch import read_stretch
from scoring import detector
from scoring.features import BATCH, BeatFeatures, observe, slices

PIECE_S = 1800      # a multiple of VERDICT_S; the QRS detector learns anew in each: in pieces of
                    # 300 s it takes T waves of record 119 for beats
SEAM_S = 0.06       # a beat on a seam is taken from both pieces ...
REFRACTORY_S = 0.2  # ... and of two beats nearer than this the first is kept
GIVEN_APART_S = 1e-4  # the same where R peaks are given: only a beat taken twice is dropped
ALIGN_S = 0.07      # the R peak is the largest deviation this near to the detection: on DS1 2.3
                    # samples (median over records 1.5) of scatter about the annotated peaks, 3.4
                    # for the highest value, 2.8 for none
SEARCH_S = 0.36     # a beat the detector passed over is looked for this far from its neighbours
                    # (a T wave comes sooner: Pan and Tompkins 1985) ...
SEARCH_SIZE = 0.5   # ... and has this share of their steepness: on DS1 97.5 % of V beats are then
                    # found instead of 86.3 %, at a positive predictivity of all beats of 98.3
                    # instead of 98.4 %
SLOPE_S = 0.022     # steepness: rise over twice this time, which T waves lack and broad QRS
                    # complexes do not ...
STEEP_S = 0.1       # ... from lowest to highest, this near to the beat ...
STEEP_BEATS = 41    # ... and the usual one is the median of so many beats'


# --- what is kept ---------------------------------------------------------------------------------

class Spool:
    """float32 rows in a temporary file, indexed like an array; what is not asked for takes no
    memory.
    """

    def __init__(self, width):
        self.file = tempfile.TemporaryFile()
        self.shape = (0, width)

    def append(self, rows):
        """Add rows (k, width) at the end."""
        self.file.write(np.asarray(rows, np.float32).tobytes())
        self.file.flush()
        self.shape = (self.shape[0] + len(rows), self.shape[1])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        if not len(self):
            return np.empty(self.shape, np.float32)[rows]
        mapped = np.memmap(self.file, np.float32, "r", shape=self.shape)
        return np.array(mapped[rows])  # a copy: the file is unmapped again


@dataclass
class DetectedBeats:
    """The beats of one lead, a row each, and the verdict on each stretch of VERDICT_S.

    The k beats that are readable and whole have a row in segments, z, mse and qrs_error, in
    order of time.
    """

    time_s: np.ndarray         # (n,) of the R peak
    readable: np.ndarray       # (n,) bool
    whole: np.ndarray          # (n,) bool: its segment lies in the recording
    unreadable: np.ndarray     # (n_windows,) int8, index into quality.REASONS
    segments: Spool            # (k, window_size + 2): x of the network, its offset and scale
    z: Spool                   # (k, latent_dim)
    mse: np.ndarray            # (k,)
    qrs_error: np.ndarray      # (k,)
    duration_s: float

    @property
    def scored(self):
        """(n,) bool"""
        return self.readable & self.whole


def window_index(time_s, n_windows):
    """(n,) which window of VERDICT_S these times (s) lie in; the last for what lies beyond it."""
    return np.clip((time_s / quality.VERDICT_S).astype(int), 0, n_windows - 1)


# --- R peaks --------------------------------------------------------------------------------------

def detections(raw, fs_hz):
    """QRS complexes (k,) in samples: modified Pan and Tompkins 1985 (sleepecg); none in a signal
    without any.
    """
    if len(raw) < 2 * fs_hz or np.ptp(raw) == 0:
        return np.empty(0, int)
    return np.asarray(sleepecg.detect_heartbeats(raw, fs_hz), int)


def steepness(slope, at, fs_hz):
    """(k,) range of the slope near `at` (k,): of its steepest rise to its steepest fall."""
    reach = np.arange(-round(STEEP_S * fs_hz), round(STEEP_S * fs_hz) + 1)
    return np.ptp(slope[np.clip(at[:, None] + reach, 0, len(slope) - 1)], axis=1)


def search_back(filtered, found, fs_hz):
    """Detections (k,) and, where two are far apart, the largest deflection between them if it is
    about as steep.

    The detector squares slopes, and broad ventricular beats among steep normal ones escape it (208:
    323 of 992).
    """
    if len(found) < 2:
        return found

    lag = round(SLOPE_S * fs_hz)
    padded = np.pad(filtered, lag, mode="edge")
    slope = padded[2 * lag:] - padded[:-2 * lag]
    usual = median_filter(steepness(slope, found, fs_hz), STEEP_BEATS, mode="nearest")

    reach = round(SEARCH_S * fs_hz)
    gaps = np.flatnonzero(np.diff(found) > 2 * reach)
    largest = np.empty(len(gaps), int)
    for i, k in enumerate(gaps):
        first = found[k] + reach
        largest[i] = first + np.abs(filtered[first:found[k + 1] - reach + 1]).argmax()

    least = SEARCH_SIZE * np.minimum(usual[gaps], usual[gaps + 1])
    return np.sort(np.append(found, largest[steepness(slope, largest, fs_hz) >= least]))


def align_to_extreme(filtered, found, reach):
    """Each detection (k,) moved to the largest absolute value within `reach` samples."""
    last = len(filtered) - 1
    around = np.clip(found[:, None] + np.arange(-reach, reach + 1), 0, last)
    moved = found - reach + np.abs(filtered[around]).argmax(axis=1)
    return np.unique(moved.clip(0, last))


def apart(time_s, refractory_s, last_s=-np.inf):
    """(n,) bool: which beats come at least refractory_s after the one kept before; time_s (n,)
    ascending.
    """
    kept = np.zeros(len(time_s), bool)
    for k, t in enumerate(time_s):
        if t - last_s >= refractory_s:
            kept[k] = True
            last_s = t
    return kept


# --- one recording --------------------------------------------------------------------------------

def read_piece(recording, lead, start_s, signal):
    """The Stretch that begins at start_s, with beats found; `signal`: segment settings of the
    checkpoint.
    """
    fs_hz = signal["FS_HZ"]
    return read_stretch(recording, lead, start_s, start_s + PIECE_S, fs_hz, signal["BAND_HZ"],
                        signal["FILTER_ORDER"], lambda raw, first_s: detections(raw, fs_hz))


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

    shares = []
    for lead in range(len(names)):
        piece = read_piece(recording, lead, 0, signal)
        shares.append((piece.unreadable == 0).mean() if len(piece.found) else -1)
    return int(np.argmax(shares)), f"most readable of {len(names)}"


def scan(recording, lead, model, signal, score_settings, device, given_s=None, score_all=False,
         progress=iter):
    """DetectedBeats of one lead (index) of a Recording.

    signal, score_settings: settings of the checkpoint. given_s (k,): R peaks known already, in s,
    instead of detection. score_all: nothing is unreadable, noise is scored like the rest.
    progress: wraps what is gone over, tqdm for example.
    """
    fs_hz = signal["FS_HZ"]
    window = signal["WINDOW_SIZE"]
    duration_s = recording.n_samples / recording.fs_hz
    refractory_s = REFRACTORY_S if given_s is None else GIVEN_APART_S
    segments = Spool(window + 2)

    columns = []
    last_s = -np.inf
    for start_s in progress(np.arange(0, duration_s, PIECE_S)):
        piece = read_piece(recording, lead, start_s, signal)
        if score_all:
            piece.unreadable[:] = 0

        if given_s is None:
            peaks = search_back(piece.filtered, piece.found, fs_hz)
            peaks = align_to_extreme(piece.filtered, peaks, round(ALIGN_S * fs_hz))
        else:
            peaks = np.round((given_s - piece.start_s) * fs_hz).astype(int)
            peaks = peaks[(peaks >= 0) & (peaks < len(piece.filtered))]

        time_s = piece.start_s + peaks / fs_hz
        # of the margins a seam's width: a beat on a seam may be found in either piece
        stop_s = min(start_s + PIECE_S, duration_s)
        here = (time_s >= start_s - SEAM_S) & (time_s < stop_s + SEAM_S)
        here[here] = apart(time_s[here], refractory_s, last_s)
        peaks = peaks[here]
        time_s = time_s[here]
        if len(time_s):
            last_s = time_s[-1]

        readable = piece.unreadable[window_index(time_s - start_s, len(piece.unreadable))] == 0
        whole = inside(peaks, len(piece.filtered), window)
        columns.append((time_s, readable, whole, piece.unreadable))
        if (readable & whole).any():
            cut = cut_segments(piece.filtered, peaks[readable & whole], window)
            segments.append(np.column_stack(normalise(cut)))

    found = [np.concatenate(values) for values in zip(*columns)]
    seen = see(model, segments, score_settings, fs_hz, device, progress)
    return DetectedBeats(*found, segments, *seen, duration_s)


def see(model, segments, score_settings, fs_hz, device, progress):
    """(z Spool, mse (k,), qrs_error (k,)) of a Spool of segments: what the network says of each."""
    z = Spool(model.model_args["latent_dim"])
    errors = [np.empty((2, 0))]
    # whole batches, whatever the pieces held: for each new size of a batch torch keeps buffers
    for part in progress(slices(len(segments), 4 * BATCH)):
        _, latents, *both = observe(model, segments[part][:, :-2], score_settings, fs_hz, device)
        z.append(latents)
        errors.append(both)
    return z, *np.concatenate(errors, axis=1)


# --- scores ---------------------------------------------------------------------------------------

def rhythm_table(beats, fs_hz):
    """Columns for BeatFeatures.set_rhythm of the scored beats: intervals across unreadable
    stretches are NaN.
    """
    bad = np.append(0, np.cumsum(beats.unreadable > 0))
    window = window_index(beats.time_s, len(beats.unreadable))
    broken = bad[window[1:] + 1] > bad[window[:-1]]
    broken |= ~beats.readable[:-1] | ~beats.readable[1:]

    gaps = np.where(broken, np.nan, np.diff(beats.time_s))

    # beats that are not scored have intervals, but no row
    n = len(beats.time_s)
    scored = beats.scored
    # one record: a number instead of its name on every beat
    return {"record": np.zeros(int(scored.sum()), np.int8),
            "sample": np.round(beats.time_s[scored] * fs_hz).astype(np.int64),
            "rr_before_s": np.append(np.nan, gaps)[:n][scored],
            "rr_after_s": np.append(gaps, np.nan)[:n][scored]}


def score(beats, fitted, name, causal, fs_hz):
    """(scores, robust_z) (n,) float64 each, NaN where not scored, the recording as its own
    reference.
    """
    scored = beats.scored
    scores = np.full(len(scored), np.nan)
    robust_z = scores.copy()

    if scored.any():
        table = rhythm_table(beats, fs_hz)
        features = BeatFeatures(beats.z, beats.mse, beats.qrs_error, table["record"])
        features.set_rhythm(table, slice(None), fitted["settings"], fs_hz)
        scores[scored] = detector.scores_of(features, fitted, (name,))[name]
        robust_z[scored] = detector.robust_z(scores[scored], features, fitted, causal)
    return scores, robust_z
