"""From the pieces of a lead to its beats as the network sees them, and from these to their scores.

Segments go into a temporary file, from which the network takes them: memory does not grow with the
recording.
"""

import collections
import functools
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from models import THREAD_BATCH, fused
from pipeline.runtime import give_memory_back, slices
from recording import groups, kinds, p_wave, pieces
from recording.beats import DetectedBeats, Evidence, joined
from scoring import detector
from scoring.features import BATCH, BeatFeatures, observe
from scoring.scores import self_references

LONG = 10_000         # segments: of a recording of more the memory goes back at once
# of a pieces.Piece, in the order of DetectedBeats
COLUMNS = ("time_s", "readable", "whole", "unreadable", "without_qrs", "oscillation", "swing")


# --- what is kept ---------------------------------------------------------------------------------

class Spool:
    """float32 rows in a temporary file, by a slice, row numbers or (n,) bool; what is not asked for
    takes no memory.
    """

    def __init__(self, width):
        self.file = tempfile.TemporaryFile()
        self.place = threading.Lock()    # in the file: rows are read while others are put behind
        self.shape = (0, width)

    def append(self, rows):
        """Add rows (k, width) at the end."""
        with self.place:
            self.file.seek(0, os.SEEK_END)
            self.file.write(np.ascontiguousarray(rows, np.float32))
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
            with self.place:
                self.file.seek(int(rows[first]) * 4 * self.shape[1])
                self.file.readinto(result[first:last])
        return result


# --- one recording --------------------------------------------------------------------------------

def scan(recording, lead, model, signal, score_settings, device, given_s=None, score_all=False,
         progress=iter):
    """DetectedBeats of one lead (index) of a Recording.

    signal, score_settings: settings of the checkpoint. given_s (k,): R peaks known already, in s,
    instead of detection. score_all: nothing is unreadable, noise is scored like the rest.
    progress: wraps what is gone over, tqdm for example.
    """
    found = recording.each(pieces.piece_of, progress(pieces.starts_s(recording)), lead, signal,
                           given_s, score_all)
    load_libraries()    # for the scores; while the first piece is read

    segments = Spool(signal["WINDOW_SIZE"] + 2)
    columns = []
    last_s = -np.inf
    with Encoder(model, segments, device) as encoder:
        for piece in found:
            piece = piece.after(last_s, pieces.refractory_s(given_s))
            if len(piece.time_s):
                last_s = piece.time_s[-1]

            columns.append([getattr(piece, name) for name in COLUMNS])
            segments.append(piece.segments)
            encoder.encode_whole_batches()
        z = encoder.latents()

    columns = [np.concatenate(values) for values in zip(*columns)]
    errors = functools.partial(errors_of, model, segments, score_settings, signal["FS_HZ"], device)
    return DetectedBeats(*columns, segments, z, errors, recording.n_samples / recording.fs_hz)


def load_libraries():
    """Import what scores and groups need."""
    import scipy.cluster  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import scipy.spatial  # noqa: F401


class Encoder:
    """Latents of the rows of a Spool of segments, while more are put into it; nothing is drawn.

    On a CPU each thread of torch's takes a batch for itself: where they share one they wait for
    each other, and for the process that reads ahead, at each of its layers.
    """

    def __init__(self, model, segments, device):
        self.model = fused(model)
        self.segments = segments
        self.device = torch.device(device)
        self.z = Spool(model.model_args["latent_dim"])
        self.begun = 0     # rows that are encoded, or about to be
        self.batches = collections.deque()
        # a GPU does one batch at a time
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1

    def __enter__(self):
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads,
                                       initargs=(1,))
        return self

    def __exit__(self, *error):
        self.pool.shutdown(cancel_futures=True)
        # what one thread sets is the number that later ones begin with
        torch.set_num_threads(self.threads)
        # after a short recording the next one takes it up again
        if self.begun > LONG:
            give_memory_back()

    def encode_whole_batches(self):
        """Begin with what is there: whole batches, whatever the pieces held, since for each new
        size of a batch torch keeps buffers.
        """
        self._begin(len(self.segments) // THREAD_BATCH * THREAD_BATCH)

        # what is done leaves the memory
        while self.batches and self.batches[0].done():
            self.z.append(self.batches.popleft().result())

    def latents(self):
        """Spool of the latents (k, latent_dim) of all."""
        self._begin(len(self.segments))
        while self.batches:
            self.z.append(self.batches.popleft().result())
        return self.z

    def _begin(self, stop):
        for part in slices(stop - self.begun, THREAD_BATCH):
            rows = slice(self.begun + part.start, min(self.begun + part.stop, stop))
            self.batches.append(self.pool.submit(self._encode, rows))
        self.begun = stop

    @torch.inference_mode()
    def _encode(self, rows):
        x = torch.from_numpy(self.segments[rows][:, np.newaxis, :-2])
        return self.model.encode(x.to(self.device)).cpu().numpy()


def errors_of(model, segments, score_settings, fs_hz, device):
    """(mse (k,), qrs_error (k,)) of a Spool of segments: what the network's drawing lacks."""
    errors = [np.empty((2, 0))]
    for part in slices(len(segments), 4 * BATCH):
        x = segments[part][:, :-2]
        errors.append(observe(model, x, score_settings, fs_hz, device)[2:])
    return np.concatenate(errors, axis=1)


# --- scores ---------------------------------------------------------------------------------------

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


class GroupVectors:
    """Vectors (k, d) of the scored beats as groups compare them, by a slice or row numbers."""

    def __init__(self, features, fitted):
        self.features = features
        self.z_scale = fitted["z_scale"]
        self.weight = groups.TIMING_WEIGHT / fitted["settings"]["TIMING_WEIGHT"]

    def __len__(self):
        return len(self.features.z)

    def __getitem__(self, rows):
        vectors = self.features.vectors(self.z_scale, rows=rows)
        vectors[:, -2:] *= self.weight
        return vectors


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
        found.group[scored] = groups.groups(GroupVectors(features, fitted), found.excess[scored])
    return found
