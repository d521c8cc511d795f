"""Networks on records with recorded noise mixed in: what network_worth and recipes share.

The noise is the second half of bw, em and ma of PhysioNet's nstdb (Moody, Muldrow & Mark 1984), in
equal parts, each brought to power 1 within the pass band. The signal-to-noise ratio is that of the
whole record within the pass band: no R peak is needed to define it, and none is moved.
"""

import functools
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb

import config
import dataset
from models import latents
from pipeline import settings
from pipeline.artefacts import without_nan
from pipeline.errors import UserError
from preprocess import bandpass, resample
from recording import reader
from scoring import detector, metrics
from scoring.features import BATCH, BeatFeatures

NOISES = ("bw", "em", "ma")
SCORES = ("self_reference", config.DEFAULT_SCORE)
CLASSES = ("S", "V", "F")
POOLED = "pooled"            # in place of a class: all beats of all records
LEAST = 5                    # beats of a class, and normal ones, that a record must have


# --- records with noise ---------------------------------------------------------------------------

def add_arguments(parser):
    """--noise and --other of a study's command line."""
    parser.add_argument("--noise", required=True, type=Path, metavar="DIR",
                        help="folder with bw, em and ma of PhysioNet's nstdb")
    parser.add_argument("--other", type=Path, metavar="DIR",
                        help="WFDB records of another database, measured as well")


def groups(database, records, other):
    """{title: (paths, leads)} of records of the database, and of those of the folder `other`."""
    found = {f"{database.name}, {len(records)} records":
             ([database.records_dir() / name for name in records], database.leads)}
    if other:
        # one that config.py describes says its leads; of others the first one is taken
        paths = [p.with_suffix("") for p in reader.find_recordings([other]) if p.suffix == ".hea"]
        entry = config.DATABASES.get(other.name)
        leads = entry["leads"] if entry else wfdb.rdheader(str(paths[0])).sig_name
        found[f"{other.name}, {len(paths)} records"] = (paths, leads)
    return found


def load_noise(folder, half=1):
    """(3, n) of a half of bw, em and ma at FS_HZ, each of power 1 within the pass band."""
    tracks = []
    for name in NOISES:
        path = folder / name
        try:
            record = wfdb.rdrecord(str(path), channels=[0])
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable noise record ({error}). "
                            "Name the folder of bw, em and ma of PhysioNet's nstdb.") from error

        middle = record.sig_len // 2
        part = record.p_signal[middle * half:middle * (half + 1), 0]
        part = filtered(resample(part, record.fs, config.FS_HZ))
        tracks.append(part / part.std())
    return np.stack([track[:min(map(len, tracks))] for track in tracks])


def filtered(signal_mv):
    """The signal within the pass band."""
    return bandpass(signal_mv, config.FS_HZ, config.BAND_HZ, config.FILTER_ORDER)


def mix(signal_mv, tracks, snr_db, seed):
    """signal_mv (n,), filtered, with all noise tracks (3, m) from places that the seed draws; as it
    is where snr_db is None."""
    if snr_db is None:
        return signal_mv
    starts = np.random.default_rng(seed).integers(tracks.shape[1], size=len(tracks))
    noise = sum(np.resize(np.roll(track, -start), len(signal_mv))
                for track, start in zip(tracks, starts))
    gain = signal_mv.std() / noise.std() * 10 ** (-snr_db / 20)
    return signal_mv + gain * noise


def segments_of(paths, leads, tracks=None, snr_db=None, second=False):
    """dataset.Segments, without splits, of WFDB records with .atr files; snr_db None: clean.

    second: of the same beats on each record's other lead, with noise from other places.
    """
    remedy = "Leave the record out."
    tables = []
    for seed, path in enumerate(paths):
        wanted = leads
        if second:
            wanted = other_leads(path, leads)
            seed += len(paths)   # no record's first lead has this seed

        noisy = functools.partial(mix, tracks=tracks, snr_db=snr_db, seed=seed)
        beats = dataset.read_beats(path, remedy)
        tables.append(dataset.read_record(path, wanted, *beats, remedy, noisy))

    rows = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return dataset.Segments(rows.pop("x"), rows, {})


def other_leads(path, leads):
    """Names of a WFDB record's leads but the first of `leads` that it has, whatever they are.

    By name, not `leads` backwards: most records of MIT-BIH have V1 beside MLII, and no V5.
    """
    names = wfdb.rdheader(str(path)).sig_name
    first = next((name for name in leads if name in names), None)
    return [name for name in names if name != first]


def conditions(database, records, other, noise, ratios, ratios_of_other, second=False):
    """({"data", "noise"}, Segments) one by one of these records and those of the folder `other`,
    each clean and with the noise of the folder `noise` at their ratios in dB; second: of their
    other lead."""
    tracks = load_noise(noise)
    both = zip(groups(database, records, other).items(), (ratios, ratios_of_other))
    for (title, (paths, leads)), ratios_of_these in both:
        for snr_db in (None, *ratios_of_these):
            name = "clean" if snr_db is None else f"{snr_db} dB"
            yield {"data": title, "noise": name}, segments_of(paths, leads, tracks, snr_db,
                                                                  second)


# --- figures --------------------------------------------------------------------------------------

def class_areas(scores, rows):
    """{(class, record): ROC-AUC of the class against the record's normal beats}."""
    found = {}
    for name, record in itertools.product(CLASSES, np.unique(rows["record"])):
        here = (rows["record"] == record) & np.isin(rows["aami"], (name, config.NORMAL_CLASS))
        y = (rows["aami"][here] == name).astype(np.int8)
        if LEAST <= y.sum() <= len(y) - LEAST:
            found[name, record] = metrics.auroc(*metrics.Ranking(scores[here], y).counts())
    return found


def pooled_area(scores, rows):
    """ROC-AUC of all abnormal beats of all records against all normal ones."""
    return metrics.auroc(*metrics.Ranking(scores, rows["y"]).counts())


def features_of(model, fitted, segments, device):
    """BeatFeatures of all segments, of latents and timing alone: the default score of the patient
    protocol has no part that needs the drawing."""
    z = latents(model, segments.x, BATCH, device)
    features = BeatFeatures(z, None, None, segments.rows["record"])
    features.set_rhythm(segments.rows, np.arange(len(z)), fitted["settings"], config.FS_HZ)
    return features


def scores_of(model, fitted, segments, device):
    """{score: (n,)} of SCORES of all segments."""
    return detector.scores_of(features_of(model, fitted, segments, device), fitted, SCORES)


def measure(models, segments, what, device, score=scores_of):
    """DataFrame of {network, seed, score, class, record, auroc} and the columns of `what`.

    models: {(name, seed): (model, fitted)}. score: another way to score them than scores_of.
    """
    rows = []
    for (name, seed), (model, fitted) in models.items():
        for score_name, values in score(model, fitted, segments, device).items():
            rows += [{"network": name, "seed": seed, "score": score_name, "class": aami,
                      "record": record, "auroc": area, **what}
                     for (aami, record), area in
                     [*class_areas(values, segments.rows).items(),
                      ((POOLED, None), pooled_area(values, segments.rows))]]
    return pd.DataFrame(rows)


def table_of(found):
    """[{data, noise, score, network, "S", "V", "F", "pooled"}]: medians over the seeds of means
    over the records; None where no record has enough beats of the class."""
    keys = ["data", "noise", "score", "network", "class"]
    means = found.groupby([*keys, "seed"], sort=False).auroc.mean()
    table = means.groupby(keys, sort=False).median().unstack("class")
    return without_nan(table.reindex(columns=[*CLASSES, POOLED]).reset_index().to_dict("records"))


def fit(model, segments, train, validation, device):
    """The fitted scores of a network that has no checkpoint."""
    return detector.fit(model, segments, train, validation, config.WEIGHTS["patient"],
                        settings.snapshot(settings.SCORE_SETTINGS), config.FS_HZ, device)
