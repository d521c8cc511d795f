"""What detect.py finds, from Python: an array or a file in, a pandas table of its beats out.

    import detect
    beats = detect.score(signal_mv, fs=360)
    beats[beats["flag"]]

The same beats and flags as detect.py writes of a file; nothing is printed, no file is written.
Columns, units and attrs: docs/python.md.
"""

import contextlib
import numbers
import os
from pathlib import Path

import numpy as np

import config
from models import fused, load_checkpoint
from pipeline import settings
from pipeline.artefacts import without_nan
from pipeline.errors import UserError
from pipeline.runtime import device_of
from recording import groups, places, reader
from recording.output import beat_table
from recording.reader_array import MAX_LEADS, Array
from recording.reader_files import check_rate
from recording.scored import score_recording

COLUMN_SAMPLES = 5000     # of each column, that it is looked at
ARRAY = Path("signal")    # what an array is called in messages and in attrs["recording"]


def score(signal, fs=None, *, lead=None, lead_names=None, r_peaks=None, r_peaks_s=None, beats=None,
          causal=False, score_all=False, excess=None, alarms_per_hour=None, sensitivity=None,
          checkpoint=None, device="cpu"):
    """DataFrame, a row a beat; its `attrs` are the summary: docs/python.md describes both.

    signal: (n,) or (n, leads) numbers in mV, NaN where missing, or a recording's file or address.
    fs: in Hz; a file may know its own. lead: name, or number from 1; else as detect.py chooses.
    lead_names: of an array's columns; a DataFrame has them. r_peaks (k,) in samples, r_peaks_s (k,)
    in s, or beats, the suffix of an annotation file beside the recording: R peaks known already.
    checkpoint: a file, else the shipped one. The others are the flags of detect.py.

    Raises UserError, which names the value and the remedy, for what cannot be scored.
    """
    check_options(excess, alarms_per_hour, sensitivity)
    if sum(given is not None for given in (r_peaks, r_peaks_s, beats)) > 1:
        raise UserError("r_peaks, r_peaks_s, beats: more than one is given; they say the same. "
                        "Give R peaks once.")

    database = settings.database()
    command = database.stage_command("train_mitbih.py", "patient", config.SEED)
    model, stored = load_detector(
        checkpoint or database.checkpoint_path("patient", config.SEED), command)

    with opened(signal, fs, lead_names, beats) as recording:
        check_length(recording, stored["segment_settings"])
        if beats is None:
            given_s = checked_peaks(recording, r_peaks, r_peaks_s)
        else:
            given_s, _ = reader.annotated_beats(recording.path, beats, recording.fs_hz,
                                                settings.AAMI_OF, "Leave beats out.")

        summary, scored = score_recording(
            recording, model, stored, lead=lead, given_s=given_s, causal=causal,
            score_all=score_all, excess=excess, alarms_per_hour=alarms_per_hour,
            sensitivity=sensitivity, device=device_of(device))

    table = beat_table(scored)
    table["why"] = reasons(scored)
    table.attrs = without_nan(summary)
    return table


def reasons(scored):
    """[sentence] of each beat, "" where it is not scored."""
    found = scored.found
    return [groups.in_words(early, distance) if known else ""
            for early, distance, known in zip(found.early, found.distance, scored.beats.scored)]


def load_detector(path, command, name=None):
    """(model, stored) of a checkpoint that fits today's scores, the model as it is fastest; name:
    what messages call it.

    Raises UserError, which names the `command` that makes it, where it does not.
    """
    model, stored = load_checkpoint(path, command)

    # fitted before a score setting was there: its scores would mean something else today
    lacking = [name for name in settings.SCORE_SETTINGS if name not in stored["score_settings"]]
    if lacking:
        raise UserError(f"{name or path}: its scores were fitted without {', '.join(lacking)}, by "
                        f"an earlier version. Fit them anew with: {command}")
    return fused(model), stored


# --- what is given --------------------------------------------------------------------------------

@contextlib.contextmanager
def opened(signal, fs, lead_names, beats):
    """The open Recording of an array, or of the one recording that a path or an address means."""
    if fs is not None:
        check_fs(fs)

    if not isinstance(signal, (str, os.PathLike)):
        if beats is not None:
            raise UserError(f"beats {beats!r}: an array has no annotation file beside it. Give "
                            "r_peaks in samples, or r_peaks_s in s.")
        yield array_recording(signal, fs, lead_names)
        return

    if lead_names is not None:
        raise UserError("lead_names: a file has its own. Leave lead_names out.")
    found = places.find_places([signal], None, absolute=False)
    if len(found) != 1:
        raise UserError(f"{signal}: means {len(found)} recordings; expected one. Call score for "
                        "each, or python detect.py for all.")

    try:
        with (places.fetched(found[0], places.files_of(found[0], beats)) as path,
              reader.open_recording(path, fs) as recording):
            yield recording
    except UserError as error:
        # the reader speaks of the flag
        raise UserError(str(error).replace(" --fs", " fs")) from error


def array_recording(signal, fs, lead_names=None):
    """The Recording of an array (n,) or (n, leads) in mV; it is not copied."""
    if fs is None:
        raise UserError("fs: missing; an array does not say its sampling rate. Give it in Hz, for "
                        "example detect.score(signal, fs=360).")
    if lead_names is None:
        lead_names = getattr(signal, "columns", None)

    # what a mask hides is missing; as an array it would be back
    if isinstance(signal, np.ma.MaskedArray) and signal.dtype.kind in "iuf":
        signal = signal.astype(float).filled(np.nan)

    try:
        array = np.asarray(signal)
    except (ValueError, TypeError, RuntimeError) as error:
        # a ragged list, a tensor that keeps gradients
        raise UserError(f"signal: no array ({error}). Give numbers in mV, (n,) or (n, leads).") \
            from error

    if array.dtype.kind not in "iuf":
        raise UserError(f"signal: {array.dtype} values; expected real numbers in mV, NaN where "
                        "missing. Convert it, for example with numpy.asarray(signal, float).")
    if array.ndim not in (1, 2):
        raise UserError(f"signal: shape {array.shape}; expected (n,) or (n, leads). Take one "
                        "recording out of it.")
    if array.ndim == 1:
        array = array[:, None]  # (n, 1)

    n_samples, n_leads = array.shape
    if not array.size:
        raise UserError(f"signal: empty, of shape {array.shape}. Give the samples of a recording.")
    if n_leads > min(n_samples, MAX_LEADS):
        raise UserError(f"signal: shape {array.shape}; expected (n,) or (n, leads). Transpose it: "
                        "signal.T.")

    check_columns(array[:COLUMN_SAMPLES], lead_names)
    names = [""] * n_leads if lead_names is None else [str(name) for name in lead_names]
    if len(names) != n_leads:
        raise UserError(f"lead_names: {len(names)} names for {n_leads} leads. Give one a column.")
    return reader.Recording(ARRAY, Array(ARRAY, array, float(fs), names, [1.0] * n_leads))


def check_columns(array, names):
    """Raise UserError where a column of (n, leads) numbers is one of times, or marks alone."""
    for k, column in enumerate(array.T):
        name = k + 1 if names is None else list(names)[k]
        if len(column) > 2 and (np.diff(column) > 0).all():
            raise UserError(f"signal: column {name} rises all along, as times do, and is no lead. "
                            "Give the leads alone, for example signal[[\"ECG\"]].")
        if np.isin(column, (0, 1)).all() and array.shape[1] > 1 and column.any():
            raise UserError(f"signal: column {name} is of 0 and 1, as marks of R peaks are, and no "
                            "lead. Give the leads alone, and the places of the marks as r_peaks.")


def check_fs(fs):
    """Raise UserError for what is no sampling rate of an ECG."""
    if isinstance(fs, bool) or not isinstance(fs, numbers.Real):
        raise UserError(f"fs: {fs!r}; expected a number in Hz, for example 360.")
    check_rate("fs", fs, "Give the rate of the recording in Hz, or resample it.")


def check_length(recording, signal):
    """Raise UserError for a recording in which no segment fits; signal: segment settings."""
    least_s = signal["WINDOW_SIZE"] / signal["FS_HZ"]
    length_s = recording.n_samples / recording.fs_hz
    if length_s < least_s:
        raise UserError(f"{recording.path}: {recording.n_samples:,} samples, {length_s:.2f} s; "
                        f"expected at least {least_s:g} s, and half a minute to know the usual "
                        "beat from. Give a longer stretch, or correct fs.")


def check_options(excess, alarms_per_hour, sensitivity):
    """Raise UserError where more than one line is asked for, or one that there cannot be."""
    asked = {"excess": (excess, -np.inf, np.inf), "alarms_per_hour": (alarms_per_hour, 0, np.inf),
             "sensitivity": (sensitivity, 0, 1)}
    asked = {name: row for name, row in asked.items() if row[0] is not None}
    if len(asked) > 1:
        raise UserError(f"{', '.join(asked)}: each is a line to flag from. Give one of them.")

    for name, (value, low, high) in asked.items():
        if (isinstance(value, bool) or not isinstance(value, numbers.Real)
                or not low <= value <= high or name == "sensitivity" and value in (0, 1)):
            raise UserError(f"{name}: {value!r}; expected a number between {low:g} and {high:g}. "
                            "Leave it out for the default line.")


def checked_peaks(recording, r_peaks, r_peaks_s):
    """R peaks (k,) in s, from those in samples or in s; None where neither is given."""
    if r_peaks is None and r_peaks_s is None:
        return None
    name, unit = ("r_peaks", "samples") if r_peaks_s is None else ("r_peaks_s", "s")
    remedy = f"Give R peaks in {unit}, (k,), each once, in order of time."

    try:
        peaks = np.asarray(r_peaks if r_peaks_s is None else r_peaks_s)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{name}: no array ({error}). {remedy}") from error
    if peaks.ndim != 1 or not len(peaks) or peaks.dtype.kind not in "iuf":
        raise UserError(f"{name}: {peaks.dtype} of shape {peaks.shape}; expected numbers, at least "
                        f"one. {remedy}")

    peaks = peaks.astype(float)
    if not np.isfinite(peaks).all():
        raise UserError(f"{name}: {int((~np.isfinite(peaks)).sum())} values are no number. "
                        f"Leave them out. {remedy}")
    if r_peaks_s is None and (peaks != np.round(peaks)).any():
        first = peaks[peaks != np.round(peaks)][0]
        raise UserError(f"r_peaks: {first:g} is no whole number of samples. {remedy} Those in s "
                        "are r_peaks_s.")

    behind = np.flatnonzero(np.diff(peaks) <= 0)
    if len(behind):
        k = int(behind[0])
        raise UserError(f"{name}: out of order, {peaks[k]:.15g} comes before {peaks[k + 1]:.15g}. "
                        f"{remedy}")

    end = recording.n_samples / (1 if r_peaks_s is None else recording.fs_hz)
    if peaks[0] < 0 or peaks[-1] >= end:
        outside = peaks[0] if peaks[0] < 0 else peaks[-1]
        raise UserError(f"{name}: {outside:.15g} lies outside of the recording, 0 to {end:.15g} "
                        f"{unit}. {remedy}")
    return peaks / recording.fs_hz if r_peaks_s is None else peaks
