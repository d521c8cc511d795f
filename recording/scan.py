"""From one lead of a recording to its beats as the network sees them: memory does not grow with the
recording.

The recording is cut into pieces of PIECE_S on a fixed grid, each read with a margin, so that
nothing depends on how much is read at a time. A piece is resampled, filtered, its R peaks are found
and its segments are put into a temporary file, from which the network takes them.
"""

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from models import fused
from preprocess import cut_segments, inside, normalise
from recording import groups, kinds, p_wave, quality, r_peaks
from recording.reader import lead_index
from recording.stretch import read_stretch
from scoring import detector
from scoring.features import BATCH, BeatFeatures, observe, slices
from scoring.scores import self_references

PIECE_S = 1800      # a multiple of VERDICT_S; the QRS detector learns anew in each: in pieces of
                    # 300 s it takes T waves of record 119 for beats
SEAM_S = 0.06       # a beat on a seam is taken from both pieces, of which the first is kept
GIVEN_APART_S = 1e-4  # R peaks that are given: only a beat taken twice is dropped


# --- what is kept ---------------------------------------------------------------------------------

class Spool:
    """float32 rows in a temporary file, by a slice, row numbers or (n,) bool; what is not asked for
    takes no memory.
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

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)

    def __getitem__(self, rows):
        rows = np.arange(len(self))[rows]
        result = np.empty((len(rows), self.shape[1]), np.float32)

        # run by run of rows: of a mapped file two hundred rows of a day were 200 MB
        edges = np.flatnonzero(np.diff(rows, prepend=-2, append=-2) != 1)
        for first, last in zip(edges[:-1], edges[1:]):
            self.file.seek(int(rows[first]) * 4 * self.shape[1])
            self.file.readinto(result[first:last])
        self.file.seek(0, os.SEEK_END)
        return result


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
    segments: Spool            # (k, window_size + 2): x of the network, its offset and scale
    z: Spool                   # (k, latent_dim)
    errors: Callable           # () -> (mse (k,), qrs_error (k,)): the network draws each beat
    duration_s: float

    @property
    def scored(self):
        """(n,) bool"""
        return self.readable & self.whole


def window_index(time_s, n_windows):
    """(n,) which window of VERDICT_S these times (s) lie in; the last for what lies beyond it."""
    return np.clip((time_s / quality.VERDICT_S).astype(int), 0, n_windows - 1)


# --- one recording --------------------------------------------------------------------------------

def read_piece(recording, lead, start_s, signal):
    """The Stretch that begins at start_s, with beats found; `signal`: segment settings of the
    checkpoint.
    """
    fs_hz = signal["FS_HZ"]
    return read_stretch(recording, lead, start_s, start_s + PIECE_S, fs_hz, signal["BAND_HZ"],
                        signal["FILTER_ORDER"], lambda raw, first_s: r_peaks.detect(raw, fs_hz))


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
    refractory_s = r_peaks.REFRACTORY_S if given_s is None else GIVEN_APART_S
    segments = Spool(window + 2)

    columns = []
    last_s = -np.inf
    for start_s in progress(np.arange(0, duration_s, PIECE_S)):
        piece = read_piece(recording, lead, start_s, signal)
        if score_all:
            piece.unreadable[:] = 0

        if given_s is None:
            peaks = r_peaks.find_r_peaks(piece.filtered, piece.found, fs_hz)
        else:
            peaks = np.round((given_s - piece.start_s) * fs_hz).astype(int)
            peaks = peaks[(peaks >= 0) & (peaks < len(piece.filtered))]

        time_s = piece.start_s + peaks / fs_hz
        # of the margins a seam's width: a beat on a seam may be found in either piece
        stop_s = min(start_s + PIECE_S, duration_s)
        here = (time_s >= start_s - SEAM_S) & (time_s < stop_s + SEAM_S)
        here[here] = r_peaks.apart(time_s[here], refractory_s, last_s)
        peaks = peaks[here]
        time_s = time_s[here]
        if len(time_s):
            last_s = time_s[-1]

        readable = piece.unreadable[window_index(time_s - start_s, len(piece.unreadable))] == 0
        whole = inside(peaks, len(piece.filtered), window)
        columns.append((time_s, readable, whole, piece.unreadable, piece.without_qrs,
                        piece.oscillation, piece.swing))
        if (readable & whole).any():
            cut = cut_segments(piece.filtered, peaks[readable & whole], window)
            segments.append(np.column_stack(normalise(cut)))

    found = [np.concatenate(values) for values in zip(*columns)]
    z = encode(model, segments, device, progress)
    errors = functools.partial(errors_of, model, segments, score_settings, fs_hz, device)
    return DetectedBeats(*found, segments, z, errors, duration_s)


@torch.inference_mode()
def encode(model, segments, device, progress):
    """Spool of the latents of a Spool of segments; nothing is drawn."""
    model = fused(model)
    z = Spool(model.model_args["latent_dim"])
    # whole batches, whatever the pieces held: for each new size of a batch torch keeps buffers
    for part in progress(slices(len(segments), BATCH)):
        x = torch.from_numpy(segments[part][:, np.newaxis, :-2])
        z.append(model.encode(x.to(device)).cpu().numpy())
    return z


def errors_of(model, segments, score_settings, fs_hz, device):
    """(mse (k,), qrs_error (k,)) of a Spool of segments: what the network's drawing lacks."""
    errors = [np.empty((2, 0))]
    for part in slices(len(segments), 4 * BATCH):
        x = segments[part][:, :-2]
        errors.append(observe(model, x, score_settings, fs_hz, device)[2:])
    return np.concatenate(errors, axis=1)


# --- scores ---------------------------------------------------------------------------------------

def joined(beats):
    """(n - 1,) bool: nothing is unreadable from a beat's window to that of the next."""
    bad = np.append(0, np.cumsum(beats.unreadable > 0))
    window = window_index(beats.time_s, len(beats.unreadable))
    clear = bad[window[1:] + 1] == bad[window[:-1]]
    return clear & beats.readable[:-1] & beats.readable[1:]


def rhythm_table(beats, fs_hz):
    """Columns for BeatFeatures.set_rhythm of the scored beats: intervals across unreadable
    stretches are NaN.
    """
    gaps = np.where(joined(beats), np.diff(beats.time_s), np.nan)

    # beats that are not scored have intervals, but no row
    n = len(beats.time_s)
    scored = beats.scored
    # one record: a number instead of its name on every beat
    return {"record": np.zeros(int(scored.sum()), np.int8),
            "sample": np.round(beats.time_s[scored] * fs_hz).astype(np.int64),
            "rr_before_s": np.append(np.nan, gaps)[:n][scored],
            "rr_after_s": np.append(gaps, np.nan)[:n][scored]}


class DetectedFeatures(BeatFeatures):
    """Of DetectedBeats: mse and qrs_error are calculated once a score asks for them. To draw the
    beats takes longer than to encode them, and the default score sees latents and rhythm alone.
    """

    def __init__(self, beats, record):
        self.z = beats.z
        self.record = record
        self.recon = None
        self._errors = functools.cache(beats.errors)

    @property
    def mse(self):
        """(k,)"""
        return self._errors()[0]

    @property
    def qrs_error(self):
        """(k,)"""
        return self._errors()[1]


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


def score(beats, fitted, name, causal, fs_hz):
    """Evidence of DetectedBeats by the score `name`, the recording as its own reference."""
    scored = beats.scored
    n = len(scored)
    found = Evidence(*np.full((4, n), np.nan), np.full(n, "", "<U1"), np.zeros(n, int),
                     np.ones(n, bool))
    if not scored.any():
        return found

    table = rhythm_table(beats, fs_hz)
    features = DetectedFeatures(beats, table["record"])
    features.set_rhythm(table, slice(None), fitted["settings"], fs_hz)
    found.score[scored] = detector.scores_of(features, fitted, (name,))[name]
    found.excess[scored] = detector.excess(found.score[scored], features, fitted, causal)

    times = features.past_times if causal else features.times
    usual_by_rr = np.exp(times[:, 0] / fitted["settings"]["TIMING_WEIGHT"])
    found.early[scored] = 1 - 1 / usual_by_rr

    # what it is, if it is abnormal: by its QRS complex alone, and by when it comes
    (here, reference), = self_references(features, fitted, causal)
    distance = kinds.qrs_distance(beats.segments, here[reference], fs_hz)
    found.distance[scored] = distance
    found.without_p[scored] = p_wave.without_p(beats.segments, distance, fs_hz)
    rhythm = features.past_irregular if causal else features.irregular
    rr_s = table["rr_before_s"]
    in_time = kinds.after_interpolated(rr_s, usual_by_rr * rr_s, distance)
    found.kind[scored] = kinds.kinds(np.where(in_time, 0, rhythm), distance)

    # a group is known when all of its beats are
    if not causal:
        vectors = features.vectors(fitted["z_scale"])
        vectors[:, -2:] *= groups.TIMING_WEIGHT / fitted["settings"]["TIMING_WEIGHT"]
        found.group[scored] = groups.groups(vectors, found.excess[scored])
    return found
