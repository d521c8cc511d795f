"""Every setting of the pipeline. Edit a value, run the command named beside its group.

No setting is a default argument elsewhere, so an edit here always changes the run. `check()` is
called first by every script. Constants of the simulation and of the baselines are in their modules.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# --- Signal and segments ------------------------------- after a change: python dataset.py
FS_HZ = 360                   # rate the network works at; the rate of MIT-BIH
WINDOW_SIZE = 720             # samples a segment: 2 s, one second to each side of the R peak
LEADS = ("MLII", "V5")        # first of these that the record has, by name: column 0 of 114 is V5
BAND_HZ = (0.5, 40.0)         # pass band: removes baseline wander and mains, keeps P, QRS and T
FILTER_ORDER = 3              # Butterworth, run forwards and backwards (no phase shift)
FLAT_MAX_S = 10.0             # a longer constant stretch means a disconnected lead: an error

# --- Splits -------------------------------------------- after a change: python dataset.py
SPLIT_SEED = 42               # permutation of the beat protocol
TRAIN_FRACTION = 0.70         # of all beats, as published: 70 / 15 / 15
VALIDATION_FRACTION = 0.15

# --- Shards of an archive ------- nothing to run after a change: old shards stay good
SHARD_BEATS = 8192            # beats a file at most: 24 MB

# --- Training ------------------------------------------ after a change: python train_mitbih.py
SEED = 0                      # initial weights and order of batches of the shipped checkpoint
SEEDS = (0, 1, 2, 3, 4)       # `make reproduce` trains all of them; tables give median and range
LATENT_DIM = 32
TAPER_SIGMA_S = 80 / 360      # the network sees the segment times a Gaussian of this width on the R peak:
                              # its own beat, not its neighbours; None: the whole segment, as published
RECORD_LOSS = 0.01            # weight of telling from the latents which record a normal beat is from;
                              # 0: reconstruction alone, as published
BATCH_SIZE = 128
EPOCH_SEGMENTS = 20000        # normal beats repeat themselves: an epoch is at most this many of them
MAX_EPOCHS = 6                # one cosine cycle of the learning rate over all of them
PATIENCE = 3                  # epochs without a better validation loss before stopping
LEARNING_RATE = 2e-3          # peak; warm-up over the first WARMUP_FRACTION of all steps
WARMUP_FRACTION = 0.15
WEIGHT_DECAY = 1e-4

# --- Training from shards -------------------------------- after a change: python train_mitbih.py --shards FOLDER
ARCHIVE_BUFFER = 65536        # beats mixed at a time, of hundreds of records; 190 MB, and as much is read ahead
ARCHIVE_VALIDATION = 20000    # beats of validation records, held in memory: 60 MB
ARCHIVE_REFERENCES = 60000    # beats of training records, in memory when the scores are fitted; about as in MIT-BIH

# --- Scores and threshold --- after a change: python train_mitbih.py (fits anew, does not train)
SCORE_SIGMA_S = 40 / 360      # width of the Gaussian on the R peak in the score `beat`
NEIGHBOURS = 3                # nearest normal training beats a distance is the mean of
DENSITY_NEIGHBOURS = 10       # and those of a training beat that say how dense it is there
DENSITY_POWER = 0.5           # 0: plain distance, 1: wholly relative to that density
LOCAL_BEATS = 201             # neighbouring RR intervals that a beat's own is compared with:
USUAL_PERCENTILE = 90         # with this percentile of them; 50 is the median
PAUSE_WEIGHT = 0.25           # of the pause after a beat, beside its prematurity
SPREAD_FLOOR = 0.05           # of log RR: added to the record's own spread that prematurity is divided by
OWN_IRREGULARITY = 0.1        # beats of a record up to this `rhythm`: its own reference
OWN_NEIGHBOURS = 0.1          # share of the reference that must be near for a beat to be usual
LEARNING_S = 300              # `causal`: the reference comes from the first five minutes
WEIGHTS = {"beat": {"nearest": 1.0, "rhythm": 0.2, "beat": 0.1},          # of the standardised parts of
           "patient": {"record": 1.0, "rhythm": 0.5, "excess": 0.5}}     # `combined`: select_score.py
TARGET_SPECIFICITY = 0.985    # asked of the threshold on normal validation beats: select_score.py
LEVEL_SPECIFICITY = 0.98      # of detect.py's level, mean over the normal beats of validation patients

# --- Evaluation ------------------------------------------ after a change: python evaluate.py
SCORES = {"beat": ("mse", "beat", "latent", "rhythm", "nearest", "own", "record", "combined", "combined_own"),
          "patient": ("mse", "beat", "latent", "rhythm", "nearest", "record", "causal", "combined",
                      "combined_causal")}
DEFAULT_SCORE = "combined"    # one of both SCORES: the score of the headline and of the pictures
BOOTSTRAP_RESAMPLES = 1000    # of records, for the 95 % intervals
BOOTSTRAP_SEED = 0

# --- Machine --------------------------------------------------------- threads change the last digits only
PROTOCOL = "beat"             # when --protocol is not given
THREADS = 0                   # 0: as many as there are cores
RANK_TIMEOUT_S = 30           # without a word from another process of torchrun: it is given up
DOWNLOAD_CONNECTIONS = 4      # PhysioNet refuses more than about 8
DOWNLOAD_TIMEOUT_S = 30       # without a byte
DOWNLOAD_RETRIES = 4          # a file and source; waits 1, 2, 4 ... s between

PROTOCOLS = ("beat", "patient")

# What PhysioNet's annotation symbols mean to AAMI EC57, as the published work reads them:
# bxb would count `e` and `j` as S.
AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
NORMAL_CLASS = "N"

# The published result that this project is measured against.
PUBLISHED = {"auroc": 0.9721, "accuracy": 0.9459, "sensitivity": 0.9019,
             "specificity": 0.9551, "f1": 0.8514}


@dataclass(frozen=True)
class Database:
    """Records of a database and their role in the patient protocol."""

    title: str
    folder: str               # below data/
    root: Path                # everything made from it lies below this folder
    records: tuple
    train: tuple              # patient protocol
    validation: tuple
    test: tuple
    simulated: bool = False


# de Chazal et al. 2004. DS1 without 201: the same man is 202, in DS2.
# Validation patients: two with bundle-branch block, and S, V and F beats among them, so that
# scores can be developed and thresholds set on patients nobody trained on.
MITDB = Database(
    title="MIT-BIH Arrhythmia Database 1.0.0", folder="mitdb", root=ROOT,
    records=tuple("100 101 102 103 104 105 106 107 108 109 111 112 113 114 115 116 117 118 119"
                  " 121 122 123 124 200 201 202 203 205 207 208 209 210 212 213 214 215 217 219"
                  " 220 221 222 223 228 230 231 232 233 234".split()),
    train=tuple("101 106 108 109 112 114 115 116 119 122 203 207 208 215 220 230".split()),
    validation=tuple("118 124 205 209 223".split()),
    test=tuple("100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232"
               " 233 234".split()))

# Written by synthetic.py for machines that reach no source of the real data, and for the tests.
SIMULATED = Database(
    title="SIMULATED ECG (synthetic.py), no patient", folder="simdb", root=ROOT / "simulated",
    records=tuple(f"s{i:02d}" for i in range(1, 17)),
    train=tuple(f"s{i:02d}" for i in range(1, 7)),
    validation=tuple(f"s{i:02d}" for i in range(7, 10)),
    test=tuple(f"s{i:02d}" for i in range(10, 15)),   # s15 and s16 are paced
    simulated=True)

DATABASES = {"mitdb": MITDB, "simulated": SIMULATED}


class UserError(RuntimeError):
    """Something the user can mend: the message names the thing, what was expected and the remedy."""

    exit_status = 1


class Unreachable(UserError):
    """No source of the real data delivered anything: `make` then goes on with simulated data."""

    exit_status = 3


# What each artefact depends on: a change of one of these makes it stale.
SEGMENT_SETTINGS = ("AAMI", "FS_HZ", "WINDOW_SIZE", "LEADS", "BAND_HZ", "FILTER_ORDER", "SPLIT_SEED",
                    "TRAIN_FRACTION", "VALIDATION_FRACTION")
TRAINING_SETTINGS = ("LATENT_DIM", "TAPER_SIGMA_S", "RECORD_LOSS", "BATCH_SIZE", "EPOCH_SEGMENTS",
                     "MAX_EPOCHS", "PATIENCE", "LEARNING_RATE", "WARMUP_FRACTION", "WEIGHT_DECAY")
ARCHIVE_SETTINGS = ("ARCHIVE_BUFFER", "ARCHIVE_VALIDATION")  # of --shards, beside those
SCORE_SETTINGS = ("SCORE_SIGMA_S", "NEIGHBOURS", "DENSITY_NEIGHBOURS", "DENSITY_POWER", "LOCAL_BEATS",
                  "USUAL_PERCENTILE", "PAUSE_WEIGHT", "SPREAD_FLOOR", "OWN_IRREGULARITY",
                  "OWN_NEIGHBOURS", "LEARNING_S", "WEIGHTS", "TARGET_SPECIFICITY")
EVALUATION_SETTINGS = ("DEFAULT_SCORE", "BOOTSTRAP_RESAMPLES", "BOOTSTRAP_SEED")


def snapshot(names):
    """The named settings as plain JSON values, to be stored in an artefact."""
    return {name: list(v) if isinstance(v := globals()[name], tuple) else v for name in names}


def changed(stored, names):
    """`["BATCH_SIZE: 256 then, 128 now", ...]`: settings that differ from the stored snapshot."""
    now = snapshot(names)
    return [f"{name}: {stored.get(name)!r} then, {now[name]!r} now"
            for name in names if stored.get(name) != now[name]]


def segments_path(database):
    """Segments of all records with both splits, written by dataset.py."""
    return database.root / "data" / "segments.npz"


def records_dir(database):
    """The WFDB files of a database, verified, never edited."""
    return database.root / "data" / database.folder


def checkpoint_path(database, protocol, seed):
    """`checkpoints/beat.pt` for SEED, `checkpoints/beat-seed1.pt` for the others."""
    name = protocol if seed == SEED else f"{protocol}-seed{seed}"
    return database.root / "checkpoints" / f"{name}.pt"


def results_dir(database, protocol, seed):
    """`results/beat/` for SEED, `results/beat/seed1/` for the others."""
    folder = database.root / "results" / protocol
    return folder if seed == SEED else folder / f"seed{seed}"


def plots_dir(database, protocol):
    """Where the pictures of SEED go."""
    return database.root / "evaluation_plots" / protocol


def _is_number(value, low, high, whole=False):
    kinds = (int,) if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def _rules():
    """(setting, is it sound, what was expected) for every setting a person may edit."""
    nyquist = FS_HZ / 2 if _is_number(FS_HZ, 1, 1e6) else 0
    whole = lambda name, low, high: (name, _is_number(globals()[name], low, high, True),
                                     f"a whole number from {low} to {high}")
    real = lambda name, low, high: (name, _is_number(globals()[name], low, high),
                                    f"a number from {low} to {high}")
    yield whole("FS_HZ", 100, 2000)
    yield ("WINDOW_SIZE", _is_number(WINDOW_SIZE, 16, 65536, True) and WINDOW_SIZE % 16 == 0,
           "a whole multiple of 16 (four layers halve it), for example 720")
    yield ("LEADS", isinstance(LEADS, tuple) and LEADS and all(isinstance(s, str) for s in LEADS),
           'a tuple of lead names, for example ("MLII", "V5")')
    yield ("BAND_HZ", isinstance(BAND_HZ, tuple) and len(BAND_HZ) == 2
           and all(_is_number(f, 0, 1e6) for f in BAND_HZ) and 0 < BAND_HZ[0] < BAND_HZ[1] < nyquist,
           f"two rising frequencies in Hz between 0 and {nyquist:g} (half of FS_HZ)")
    yield whole("FILTER_ORDER", 1, 8)
    yield real("FLAT_MAX_S", 0.1, 1800)
    yield whole("SPLIT_SEED", 0, 2**32 - 1)
    yield real("TRAIN_FRACTION", 0.01, 0.98)
    yield ("VALIDATION_FRACTION", _is_number(VALIDATION_FRACTION, 0.01, 0.98)
           and TRAIN_FRACTION + VALIDATION_FRACTION < 0.999,
           "a number from 0.01 that leaves part of the beats for the test: "
           "TRAIN_FRACTION + VALIDATION_FRACTION < 1")
    yield whole("SHARD_BEATS", 1, 10**6)
    yield whole("SEED", 0, 2**32 - 1)
    yield ("SEEDS", isinstance(SEEDS, tuple) and SEED in SEEDS and len(set(SEEDS)) == len(SEEDS)
           and all(_is_number(s, 0, 2**32 - 1, True) for s in SEEDS),
           "a tuple of different whole numbers that holds SEED")
    yield whole("LATENT_DIM", 2, 4096)
    yield whole("BATCH_SIZE", 2, 65536)
    yield whole("MAX_EPOCHS", 1, 10000)
    yield whole("PATIENCE", 1, 10000)
    yield real("LEARNING_RATE", 1e-8, 1)
    yield real("WARMUP_FRACTION", 0.01, 0.9)
    yield real("WEIGHT_DECAY", 0, 1)
    yield ("TAPER_SIGMA_S", TAPER_SIGMA_S is None or _is_number(TAPER_SIGMA_S, 0.005, 10),
           "a number from 0.005 to 10, or None for no taper")
    yield real("RECORD_LOSS", 0, 1000)
    yield whole("EPOCH_SEGMENTS", 2, 10**9)
    yield whole("ARCHIVE_BUFFER", 1024, 10**8)
    yield whole("ARCHIVE_VALIDATION", 1000, 10**8)
    yield whole("ARCHIVE_REFERENCES", 1000, 10**8)
    yield real("SCORE_SIGMA_S", 0.005, 10)
    yield whole("NEIGHBOURS", 1, 1000)
    yield real("TARGET_SPECIFICITY", 0.5, 0.9999)
    yield real("LEVEL_SPECIFICITY", 0.5, 0.9999)
    yield whole("DENSITY_NEIGHBOURS", 1, 1000)
    yield real("DENSITY_POWER", 0, 1)
    yield whole("LOCAL_BEATS", 3, 1001)
    yield real("USUAL_PERCENTILE", 0, 100)
    yield real("PAUSE_WEIGHT", 0, 10)
    yield real("SPREAD_FLOOR", 0.001, 10)
    yield real("OWN_IRREGULARITY", 0, 1e6)
    yield real("OWN_NEIGHBOURS", 0, 0.99)
    yield real("LEARNING_S", 10, 86400)
    yield ("WEIGHTS", isinstance(WEIGHTS, dict) and all(
        isinstance(w, dict) and w and set(w) <= {"beat", "rhythm", "nearest", "record", "excess"} and any(w.values())
        and all(_is_number(v, 0, 1000) for v in w.values()) for w in map(WEIGHTS.get, PROTOCOLS)),
           "for each protocol weights from 0 of beat, rhythm, nearest, record and excess, not all of them 0")
    shared = [name for name in SCORES["beat"] if name in SCORES["patient"]]
    yield "DEFAULT_SCORE", DEFAULT_SCORE in shared, f"one of {', '.join(shared)}"
    yield whole("BOOTSTRAP_RESAMPLES", 100, 100000)
    yield whole("BOOTSTRAP_SEED", 0, 2**32 - 1)
    yield "PROTOCOL", PROTOCOL in PROTOCOLS, f"one of {', '.join(PROTOCOLS)}"
    yield whole("THREADS", 0, 1024)
    yield real("RANK_TIMEOUT_S", 1, 3600)
    yield whole("DOWNLOAD_CONNECTIONS", 1, 8)
    yield real("DOWNLOAD_TIMEOUT_S", 0.1, 3600)
    yield whole("DOWNLOAD_RETRIES", 0, 100)


def check():
    """Raise UserError naming the first setting that makes no sense, its value and the remedy."""
    for name, sound, expected in _rules():
        if not sound:
            raise UserError(f"config.py: {name} = {globals()[name]!r}; expected {expected}. "
                            f"Edit {name} in config.py and run the command again.")
    for database in DATABASES.values():
        _check_split(database)


def _check_split(database):
    parts = (database.train, database.validation, database.test)
    names = [name for part in parts for name in part]
    twice = sorted({n for n in names if names.count(n) > 1})
    unknown = sorted(set(names) - set(database.records))
    if twice or unknown or not all(parts):
        raise UserError(f"config.py: patient split of {database.title}: "
                        f"in two parts: {twice}; not in the database: {unknown}; every part needs "
                        "records, each in one part only. Edit train, validation and test in config.py.")


def run(main):
    """Run a script: a UserError or a full disk becomes one line on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except BrokenPipeError:  # the reader of our output, `head` for example, has left
        sys.stderr.close()
    except OSError as error:
        sys.exit(f"error: {error.filename or 'file system'}: {error.strerror or error}. "
                 "Free space on the disk or choose a folder that can be written; "
                 "files written before are whole.")
    except KeyboardInterrupt:
        print("stopped; finished files are kept", file=sys.stderr)
        sys.exit(130)
