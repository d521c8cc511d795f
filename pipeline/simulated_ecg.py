"""A small SIMULATED database in the format of MIT-BIH, for tests and machines without network.

    python dataset.py --database simulated      writes it where it is missing

writes  simulated/data/simulated/sNN.{hea,dat,atr}, RECORDS, SHA256SUMS.txt
        16 records of 10 minutes, some seconds of work

No record is of a patient: no number computed on this database says how well anything works on
an ECG. Each beat is a sum of Gaussian waves P, Q, R, S, T around its R peak, whose times and
widths grow with the square root of the RR interval. RR(t) has a spectrum with two peaks, at
0.1 Hz (Mayer waves) and 0.25 Hz (breathing), after

    P. E. McSharry, G. D. Clifford, L. Tarassenko, L. A. Smith: A dynamical model for generating
    synthetic electrocardiogram signals. IEEE Trans. Biomed. Eng. 50(3):289-294, 2003.

Ectopic, bundle-branch-block and paced beats are not in that paper; they are made from the same
waves by hand, after textbook descriptions.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pooch
import wfdb
from tqdm import tqdm

import config
from pipeline.errors import UserError

VERSION = 1                   # raise it with every change below that changes a record
SEED = 0
DURATION_S = 600.0            # of a record: some 4000 normal beats in the six of the train split
SNR_DB = 12.0                 # see add_noise: some 0.03 mV of muscle noise and 0.06 mV of wander

# The format of MIT-BIH's files, whatever rate the pipeline works at.
FS_HZ = 360
LEADS = ["MLII", "V5"]
GAIN = 200                    # adu / mV
BASELINE = 1024               # adu at 0 mV
ADC_BITS = 11
RR_GRID_HZ = 4                # rate at which the RR interval is drawn

# Patient k (record s0k) is character k - 1, then again from the start. Every second one whose heart
# is not paced has fusion beats, too: each part of the splits gets some.
CONDUCTION = "NNLNRNNRNNNLRN//"
CONDITION = {"N": "normal conduction", "L": "left bundle branch block",
             "R": "right bundle branch block", "/": "paced"}

# The seven waves of a beat at RR = 1 s, one a row:
# time from the R peak [s], standard deviation [s], peak in MLII [mV], peak in V5 [mV].
# Row 0 is the P wave (in a paced beat the spike), 1 to 4 the QRS and ST, 5 and 6 the T wave.
P = 0
QRS = slice(1, 5)
T = slice(5, 7)
WAVES = {
    "N": [[-0.165, 0.024, 0.13, 0.08], [-0.032, 0.009, -0.10, -0.12], [0, 0.012, 1.20, 1.35],
          [0.030, 0.011, -0.25, -0.30], [0.10, 0.040, 0.02, 0.03],
          [0.255, 0.050, 0.18, 0.20], [0.305, 0.028, 0.12, 0.14]],
    "L": [[-0.200, 0.024, 0.13, 0.08], [-0.050, 0.015, 0.65, 0.70], [0, 0.017, 1.10, 1.20],
          [0.045, 0.020, 0.30, 0.30], [0.13, 0.045, -0.12, -0.15],
          [0.285, 0.055, -0.20, -0.22], [0.340, 0.032, -0.12, -0.14]],
    "R": [[-0.175, 0.024, 0.13, 0.08], [-0.030, 0.009, -0.08, -0.08], [0, 0.012, 1.00, 1.10],
          [0.045, 0.017, -0.42, -0.50], [0.090, 0.018, -0.25, -0.30],
          [0.275, 0.050, 0.18, 0.18], [0.325, 0.028, 0.12, 0.12]],
    "V": [[0, 0.020, 0, 0], [-0.052, 0.024, 0.80, 0.70], [0, 0.028, 1.60, 1.40],
          [0.058, 0.030, 0.45, 0.40], [0.16, 0.055, -0.30, -0.25],
          [0.320, 0.070, -0.45, -0.40], [0.385, 0.040, -0.18, -0.16]],
    "/": [[-0.090, 0.0015, 0.60, 0.40], [-0.045, 0.020, -0.55, -0.50], [0, 0.024, -1.15, -1.00],
          [0.052, 0.028, -0.45, -0.40], [0.15, 0.050, 0.18, 0.15],
          [0.300, 0.065, 0.35, 0.30], [0.365, 0.038, 0.15, 0.12]]}


@dataclass
class Patient:
    """One simulated patient; `waves` maps symbol to (7, 4) as WAVES, R peak at 0 s."""

    conduction: str           # symbol of the beats that are normal for this patient
    waves: dict
    mean_rr_s: float
    sd_rr_s: float
    share: dict               # of all beats, a symbol of ectopic beats
    early: dict               # prematurity of A and V: fraction of the RR interval


def vary(rng, waves, gain, axis):
    """A patient's own version of waves (7, 4), with `gain` and the heart's axis turned [rad]."""
    waves = np.array(waves, float)
    waves[:, 0] *= rng.normal(1, 0.05, 7)
    waves[:, 1] *= rng.lognormal(0, 0.08)
    waves[:, 2:] *= gain * rng.lognormal(0, 0.10, (7, 1)) * rng.lognormal(0, 0.08, (7, 2))
    waves[:, 2:] @= [[np.cos(axis), np.sin(axis)], [-np.sin(axis), np.cos(axis)]]

    # The annotation is at 0 s: |MLII| of the QRS has to peak there.
    t = np.arange(-0.08, 0.08, 1e-4)
    qrs = bell(t[:, None], waves[QRS, 0], waves[QRS, 1]) @ waves[QRS, 2]
    waves[:, 0] -= t[np.abs(qrs).argmax()]
    return waves


def draw_patient(seed, index):
    """Patient `index` (from 1) and the generator that its record goes on with."""
    rng = np.random.default_rng([seed, index])
    conduction = CONDUCTION[(index - 1) % len(CONDUCTION)]
    paced = conduction == "/"
    fusion = index % 2 == 0 and not paced

    gain = rng.uniform(0.8, 1.3)
    axis = np.deg2rad(rng.uniform(-15, 15))
    normal = vary(rng, WAVES[conduction], gain, axis)

    # A narrow R and an inverted V would cancel: with fusion beats the focus is upright in MLII.
    focus = np.array(WAVES["V"])
    focus[:, 2:] *= 1 if fusion else rng.choice([-1, 1], 2)

    # The impulse takes another way through the atria, and the usual one through the ventricles.
    atrial = normal.copy()
    atrial[P] *= [0.75, 0.8, rng.uniform(-0.9, -0.3), rng.uniform(-0.9, -0.3)]

    # Shares of all beats. (A paced heart's atrial share is drawn and unused: the draws after it,
    # and so the records, stay those of VERSION.)
    abnormal = 0.03 if paced else rng.uniform(0.105, 0.145)
    fused = rng.uniform(0.02, 0.03) if fusion else 0
    early = rng.uniform(0.4, 0.5) * abnormal
    share = {"V": abnormal}
    if not paced:
        share = {"A": early, "V": abnormal - early - fused}
    if fusion:
        share["F"] = fused

    return Patient(
        conduction, {conduction: normal, "A": atrial, "V": vary(rng, focus, gain, axis)},
        mean_rr_s=rng.uniform(0.85, 1.0) if paced else rng.uniform(0.68, 0.95),
        sd_rr_s=0.003 if paced else rng.uniform(0.03, 0.05),
        share=share,
        early={"A": rng.uniform(0.22, 0.34), "V": rng.uniform(0.28, 0.40)}), rng


# --- when the beats come ------------------------------------------------------------------------

def rr_process(rng, duration_s, mean_s, sd_s):
    """RR(t) [s] at RR_GRID_HZ: random phases under McSharry's two peaks, LF/HF power 0.5."""
    # Two minutes at least: lines of a shorter spectrum lie further apart than its peaks are wide.
    n = int(max(duration_s, 120) * RR_GRID_HZ)
    f = np.fft.rfftfreq(n, 1 / RR_GRID_HZ)
    power = 0.5 * bell(f, 0.1, 0.01) + bell(f, 0.25, 0.01)
    rr = np.fft.irfft(np.sqrt(power) * np.exp(2j * np.pi * rng.random(len(f))), n)
    return mean_s + sd_s * (rr - rr.mean()) / rr.std()


def rhythm(rng, patient, duration_s):
    """Times [s] (k,), intervals before [s] (k,) and symbols (k,) of the beats of a record.

    V comes early and leaves the sinus node alone: the pause makes up for it in full.
    A resets the sinus node: the next beat follows after little more than one interval.
    F falls together with a sinus beat, at most 20 ms before it.
    """
    # First the undisturbed sinus node (or pacemaker), for a little longer: A shortens what follows.
    longer_s = 1.05 * duration_s + 5
    rr = rr_process(rng, longer_s, patient.mean_rr_s, patient.sd_rr_s)
    t = 0.0
    intervals = []
    while t < longer_s:
        intervals.append(rr[int(t * RR_GRID_HZ) % len(rr)])
        t += intervals[-1]
    intervals = np.array(intervals)

    # What comes too late to have its pause within the record stays a normal beat.
    n_inside = np.searchsorted(np.cumsum(intervals), 0.97 * duration_s - 2)
    counts = [max(1, round(share * n_inside)) for share in patient.share.values()]
    ectopic = np.repeat(list(patient.share), counts)

    # Drawn among so many fewer places, then moved apart: no two of them are neighbours.
    k = len(ectopic)
    at = 2 + np.sort(rng.choice(n_inside - 1 - k, k, replace=False)) + np.arange(k)
    symbols = np.full(len(intervals) + 1, patient.conduction)
    symbols[at] = rng.permutation(ectopic)

    for symbol in patient.share:
        at = np.flatnonzero(symbols == symbol)
        early = rng.uniform(0, 0.02, len(at))
        if symbol in patient.early:
            early = intervals[at - 1] * (patient.early[symbol] + rng.normal(0, 0.015, len(at)))
        intervals[at - 1] -= early
        if symbol == "A":
            intervals[at] *= rng.uniform(1.02, 1.12, len(at))
        else:
            intervals[at] += early

    before = np.insert(intervals, 0, patient.mean_rr_s)
    times = rng.uniform(0.3, 0.6) + np.insert(np.cumsum(intervals), 0, 0)
    keep = times < duration_s - 1 / FS_HZ
    return times[keep], before[keep], symbols[keep]


# --- what they look like ------------------------------------------------------------------------

def bell(x, centre, sd):
    """A Gaussian of height 1."""
    return np.exp(-0.5 * ((x - centre) / sd) ** 2)


def render(samples, rr_s, waves, gain, mean_rr_s, n_samples):
    """Add up beats: samples, rr_s, gain (m,) and waves (m, 7, 4) -> (n_samples, 2) [mV].

    The T wave follows the beat's own interval (Bazett), all before it the patient's mean.
    """
    scale = np.full((len(samples), 7), np.sqrt(mean_rr_s))
    scale[:, T] = np.sqrt(np.clip(rr_s, 0.4, 1.6))[:, None]
    before = int(0.4 * FS_HZ)
    after = int(0.8 * FS_HZ)
    ticks = np.arange(-before, after)

    beats = np.zeros((len(samples), len(ticks), 2))
    for wave in range(7):
        # (m, 1) each, then (m, 2)
        centre, sd = (waves[:, wave, :2] * scale[:, wave, None]).T[..., None]
        beats += (bell(ticks / FS_HZ, centre, sd)[..., None]
                  * (gain[:, None] * waves[:, wave, 2:])[:, None])

    # Beats overlap: the T wave of one and the P of the next add up.
    signal = np.zeros((before + n_samples + after, 2))
    np.add.at(signal, samples[:, None] + before + ticks, beats)
    return signal[before:before + n_samples]


def clean_ecg(rng, patient, samples, rr_s, symbols, n_samples):
    """The record without noise (n_samples, 2) [mV]; amplitudes vary with breath and beat."""
    # A fusion beat is rendered twice: as the patient's normal beat and as V.
    fused = np.flatnonzero(symbols == "F")
    # `part` is of V, the rest of the normal beat.
    part = rng.uniform(0.4, 0.65, len(fused))
    source = np.where(symbols == "F", patient.conduction, symbols).tolist() + ["V"] * len(fused)
    beats = np.append(np.arange(len(samples)), fused)

    # Breathing turns the heart in the chest: 15 breaths a minute.
    gain = 1 + 0.05 * np.sin(2 * np.pi * 0.25 * samples / FS_HZ + rng.uniform(0, 2 * np.pi))
    gain = np.append(gain, gain[fused] * part)
    gain[fused] *= 1 - part

    waves = np.stack([patient.waves[symbol] for symbol in source])
    waves[:, :, 2:] *= rng.lognormal(0, 0.04, (len(beats), 7, 1))
    # The atria beat as ever: their wave is not shared with V.
    waves[fused, P, 2:] /= (1 - part)[:, None]
    return render(samples[beats], rr_s[beats], waves, gain, patient.mean_rr_s, n_samples)


def coloured(rng, n, density):
    """Gaussian noise (n, 2) of mean 0 and mean square 1 with power density(f [Hz])."""
    f = np.fft.rfftfreq(n, 1 / FS_HZ)
    spectrum = np.fft.rfft(rng.standard_normal((n, 2)), axis=0) * np.sqrt(density(f))[:, None]
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, n, axis=0)
    return noise / noise.std(axis=0)


def add_noise(rng, clean, snr_db):
    """Clean signal (n, 2) and 70 % wander (below 0.4 Hz), 20 % muscle (20 to 100 Hz), 10 % white.

    snr_db = 10 log10(variance of the clean lead / mean square of all its noise), over the whole
    record, each lead by itself; inf adds nothing. Between 0.5 and 40 Hz it is 13 dB better.
    """
    n = len(clean)
    wander = coloured(
        rng, n, lambda f: np.exp(-(f / 0.15) ** 2) + np.exp(-((f - 0.25) / 0.03) ** 2))
    # Muscles tense and relax within seconds.
    bursts = np.exp(0.5 * coloured(rng, n, lambda f: np.exp(-(f / 0.2) ** 2)))
    muscle = coloured(rng, n, lambda f: bell(f, 60, 25)) * bursts

    noise = (np.sqrt(0.7) * wander + np.sqrt(0.2) * muscle / rms(muscle)
             + np.sqrt(0.1) * coloured(rng, n, np.ones_like))
    return clean + noise * (clean.std(axis=0) * 10 ** (-snr_db / 20)) / rms(noise)


def rms(signal):
    """Root mean square of each lead of a signal (n, 2): (2,)."""
    return np.sqrt((signal ** 2).mean(axis=0))


# --- the files ----------------------------------------------------------------------------------

def simulate_record(patient, rng, duration_s, snr_db):
    """A record of a drawn patient: signal (n, 2) [mV], beat samples (k,) and symbols (k,)."""
    times, rr_s, symbols = rhythm(rng, patient, duration_s)
    samples = np.rint(times * FS_HZ).astype(int)
    clean = clean_ecg(rng, patient, samples, rr_s, symbols, round(duration_s * FS_HZ))
    return add_noise(rng, clean, snr_db), samples, symbols


def write_record(folder, name, duration_s, seed, snr_db):
    """Write name.{hea,dat,atr} in MIT-BIH's format; "s03" is patient 3 in whatever database."""
    if not re.fullmatch(r"s\d+", name):
        raise UserError(f"record {name!r}: a simulated record is called s and a number, as s03")

    patient, rng = draw_patient(seed, int(name[1:]))
    signal, samples, symbols = simulate_record(patient, rng, duration_s, snr_db)
    adu = np.rint(signal * GAIN) + BASELINE
    # The header says how to make the record again.
    ectopic = ", ".join(f"{100 * share:.1f} % {symbol}" for symbol, share in patient.share.items())
    comments = ["SIMULATED by simulated_ecg.py: no patient",
                f"patient {int(name[1:])}: {CONDITION[patient.conduction]}, "
                f"{60 / patient.mean_rr_s:.0f} bpm, {ectopic}",
                f"parameters: version {VERSION}, seed {seed}, {duration_s:g} s, SNR {snr_db:g} dB"]
    record = wfdb.Record(
        record_name=name, fs=FS_HZ, sig_name=LEADS, fmt=["212"] * 2, units=["mV"] * 2,
        adc_gain=[GAIN] * 2, baseline=[BASELINE] * 2, adc_res=[ADC_BITS] * 2,
        adc_zero=[BASELINE] * 2, d_signal=adu.astype(int), comments=comments)
    # First values and checksums; then the names of the files and all that is left.
    record.set_d_features()
    record.set_defaults()
    record.wrsamp(write_dir=str(folder))

    # MIT-BIH's own files begin with the rhythm, too: a reader has to leave it out of the beats.
    wfdb.wrann(name, "atr", np.insert(samples, 0, 18), ["+", *symbols], fs=FS_HZ,
               aux_note=["(P" if "/" in symbols else "(N"] + [""] * len(samples),
               write_dir=str(folder))


def write_database(folder, records, duration_s=DURATION_S, seed=SEED, snr_db=SNR_DB, jobs=1):
    """Write the database in `jobs` processes, each of which takes 300 MB for a record of an hour.

    All is written into a folder beside `folder` and moved at the end, SHA256SUMS.txt last: an
    interrupted run leaves what there was, or no such list. Raises UserError where `folder` has
    records that are not simulated.
    """
    for header in sorted(folder.glob("*.hea")):
        if "# SIMULATED" not in header.read_text(errors="replace"):
            raise UserError(f"{header}: not simulated, so nothing simulated is written beside it. "
                            "Give an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        made = Path(made)
        joblib.Parallel(n_jobs=jobs)(
            joblib.delayed(write_record)(made, name, duration_s, seed, snr_db)
            for name in tqdm(records, desc="records", disable=None))

        (made / "RECORDS").write_text("\n".join([*records, ""]))
        # By name: a record's header is moved after its .atr and .dat.
        names = sorted(os.listdir(made))
        (made / "SHA256SUMS.txt").write_text(
            "".join(f"{pooch.file_hash(made / name)} {name}\n" for name in names))

        (folder / "SHA256SUMS.txt").unlink(missing_ok=True)
        for name in [*names, "SHA256SUMS.txt"]:
            os.replace(made / name, folder / name)


def write_if_missing(database):
    """Write the records of the simulated settings.Database where its list of digests is missing."""
    if not database.digests.exists():
        print("*** SIMULATED data: no patient, for tests and trials only, NOT FOR RESULTS ***")
        write_database(database.records_dir(), database.records, jobs=config.THREADS or -1)
