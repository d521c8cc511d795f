"""What the scripts make of config.py: checks, records of settings, databases with their paths."""

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import config
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

# What each artefact depends on: a change of one of these makes it stale.
SEGMENT_SETTINGS = ("AAMI", "FS_HZ", "WINDOW_SIZE", "BAND_HZ", "FILTER_ORDER", "SPLIT_SEED",
                    "TRAIN_FRACTION", "VALIDATION_FRACTION")
TRAINING_SETTINGS = ("NETWORK", "LATENT_DIM", "TAPER_SIGMA_S", "LOWPASS_HZ", "RECORD_LOSS",
                     "CORRUPTED_SHARE", "NOISE_SHARE", "NOISE_SNR_DB", "SHIFT_S", "BAND_SHARE",
                     "MODULATION", "BATCH_SIZE", "EPOCH_SEGMENTS", "MAX_EPOCHS", "PATIENCE",
                     "LEARNING_RATE", "WARMUP_FRACTION", "WEIGHT_DECAY")
ARCHIVE_SETTINGS = ("ARCHIVE_BUFFER", "ARCHIVE_VALIDATION")
SCORE_SETTINGS = ("SCORES", "DEFAULT_SCORE", "WEIGHTS", "QRS_SIGMA_S", "KNN_NEIGHBOURS",
                  "DENSITY_NEIGHBOURS", "DENSITY_POWER", "TIMING_WEIGHT", "LOCAL_BEATS",
                  "USUAL_PERCENTILE", "PAUSE_RATIO", "PAUSE_WEIGHT", "SPREAD_FLOOR",
                  "SELF_IRREGULARITY", "SELF_NEIGHBOURS", "SELF_CAUSAL_S", "TARGET_SPECIFICITY")
EVALUATION_SETTINGS = ("BOOTSTRAP_RESAMPLES", "BOOTSTRAP_SEED")

# Lowest and highest value of every number in config.py; whole numbers where both are.
RANGES = {
    "FS_HZ": (100, 2000), "WINDOW_SIZE": (16, 65536), "FILTER_ORDER": (1, 8),
    "FLAT_MAX_S": (0.1, 1800.0), "SPLIT_SEED": (0, 2**32 - 1), "TRAIN_FRACTION": (0.01, 0.98),
    "VALIDATION_FRACTION": (0.01, 0.98), "SEED": (0, 2**32 - 1), "LATENT_DIM": (2, 4096),
    "RECORD_LOSS": (0.0, 1000.0), "CORRUPTED_SHARE": (0.0, 1.0), "NOISE_SHARE": (0.0, 1.0),
    "SHIFT_S": (0.0, 0.1), "BAND_SHARE": (0.0, 1.0), "MODULATION": (0.0, 0.9),
    "BATCH_SIZE": (2, 65536),
    "EPOCH_SEGMENTS": (2, 10**9), "MAX_EPOCHS": (1, 10000), "PATIENCE": (1, 10000),
    "LEARNING_RATE": (1e-8, 1.0), "WARMUP_FRACTION": (0.01, 0.9), "WEIGHT_DECAY": (0.0, 1.0),
    "QRS_SIGMA_S": (0.005, 10.0), "KNN_NEIGHBOURS": (1, 1000), "DENSITY_NEIGHBOURS": (1, 1000),
    "DENSITY_POWER": (0.0, 1.0), "TIMING_WEIGHT": (0.0, 100.0), "LOCAL_BEATS": (3, 1001),
    "USUAL_PERCENTILE": (0.0, 100.0), "PAUSE_RATIO": (1.0, 100.0),
    "PAUSE_WEIGHT": (0.0, 10.0), "SPREAD_FLOOR": (0.001, 10.0), "SELF_IRREGULARITY": (0.0, 1e6),
    "SELF_NEIGHBOURS": (0.0, 0.99), "SELF_CAUSAL_S": (10.0, 86400.0),
    "TARGET_SPECIFICITY": (0.5, 0.9999), "EXCESS_SPECIFICITY": (0.5, 0.9999),
    "BOOTSTRAP_RESAMPLES": (100, 100000), "BOOTSTRAP_SEED": (0, 2**32 - 1),
    "SHARD_BEATS": (1, 10**6), "ARCHIVE_BUFFER": (1024, 10**8), "ARCHIVE_VALIDATION": (1000, 10**8),
    "ARCHIVE_REFERENCES": (1000, 10**8), "THREADS": (0, 1024), "RANK_TIMEOUT_S": (1.0, 3600.0),
    "DOWNLOAD_CONNECTIONS": (1, 8), "DOWNLOAD_TIMEOUT_S": (0.1, 3600.0),
    "DOWNLOAD_RETRIES": (0, 100)
}
OTHERS = ("BAND_HZ", "SEEDS", "NETWORK", "TAPER_SIGMA_S", "LOWPASS_HZ", "NOISE_SNR_DB", "SCORES",
          "DEFAULT_SCORE", "WEIGHTS", "DATABASE", "PROTOCOL", "PROTOCOLS", "AAMI", "NORMAL_CLASS",
          "PUBLISHED", "DATABASES")
PARTS = ("train", "validation", "test")
AAMI_OF = {symbol: aami for aami, symbols in config.AAMI.items() for symbol in symbols}


# --- databases ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Database:
    """One entry of config.DATABASES. `home` holds its data; `out` what is made from it."""

    name: str
    title: str
    home: Path
    out: Path                 # the home, or with --run a folder of the user's own below runs/
    leads: tuple
    digests: Path             # list of the SHA-256 of its files
    sources: tuple            # addresses that they are fetched from, asked in turn
    records: tuple
    train: tuple              # patient protocol
    validation: tuple
    test: tuple
    simulated: bool = False
    run: str | None = None

    def records_dir(self):
        """The WFDB files of the database, verified, never edited."""
        return self.home / "data" / self.name

    def segments_path(self):
        """Segments of all records with both splits, written by dataset.py."""
        return self.home / "data" / "segments.npz"

    def checkpoint_path(self, protocol, seed):
        """`checkpoints/beat.pt` for SEED, `checkpoints/beat-seed1.pt` for the others."""
        name = protocol if seed == config.SEED else f"{protocol}-seed{seed}"
        return self.out / "checkpoints" / f"{name}.pt"

    def results_dir(self, protocol, seed):
        """`results/beat/` for SEED, `results/beat/seed1/` for the others."""
        folder = self.out / "results" / protocol
        return folder if seed == config.SEED else folder / f"seed{seed}"

    def plots_dir(self, protocol):
        """Where the pictures of SEED go."""
        return self.out / "evaluation_plots" / protocol

    def patients(self):
        """Records and patient split as plain JSON values."""
        return {part: list(getattr(self, part)) for part in ("records", *PARTS)}

    def command(self, script, *flags):
        """The command line a person types to run a script on this database.

        `script` is a file of the top level ("dataset.py") or a module ("-m studies.ablation").
        """
        words = ["python", script, *map(str, flags)]
        if self.name != config.DATABASE:
            words += ["--database", self.name]
        if self.run:
            words += ["--run", self.run]
        return " ".join(words)

    def stage_command(self, script, protocol, seed, *flags):
        """The command line that runs a step for this protocol and seed."""
        seed_flag = ["--seed", seed] if seed != config.SEED else []
        return self.command(script, "--protocol", protocol, *seed_flag, *flags)


def database(name=None, run=None):
    """The Database that config.py describes; DATABASE without a name. `run`: a name of the
    user's own.

    Raises UserError for a name that is not there, or a run that is no plain name.
    """
    name = name or config.DATABASE
    if name not in config.DATABASES:
        raise UserError(
            f"--database {name}: not described; expected one of {', '.join(config.DATABASES)}. "
            "Describe it in DATABASES in config.py: docs/extending.md.")

    # a run's name becomes a folder: nothing that leads out of runs/
    if run is not None and not re.fullmatch(r"[\w-]+", run):
        raise UserError(
            f"--run {run!r}: expected a name of letters, digits, - and _. Choose another one.")

    entry = dict(config.DATABASES[name])
    try:
        home = ROOT / entry.pop("home")
        out = home
        if run:
            out = ROOT / "runs" / run
            out = out if name == config.DATABASE else out / name
        lists = {part: tuple(entry.pop(part).split()) for part in ("records", *PARTS)}
        digests = ROOT / entry.pop("digests")
        return Database(name=name, home=home, out=out, run=run, digests=digests, **lists, **entry)
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"config.py: DATABASES[{name!r}]: {error}; expected title, home, leads, digests, "
            "sources, records, train, validation and test, the last four as names with spaces "
            "between.") from error


# --- records of settings ------------------------------------------------------------------------

def snapshot(names):
    """The named settings as plain JSON values, to be stored in an artefact."""
    return {name: plain(getattr(config, name)) for name in names}


def segment_settings(described):
    """All settings that the segments of a Database depend on, its leads and patients among them."""
    own = {"LEADS": list(described.leads), "PATIENTS": described.patients()}
    return snapshot(SEGMENT_SETTINGS) | own


def plain(value):
    """The value with lists for tuples, as JSON gives it back."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def differences(stored, today):
    """`["BATCH_SIZE: 256 then, 128 now", ...]`: where an artefact would be made otherwise today.

    The one way in which anything here is found stale. `stored` and `today` are dicts of plain JSON
    values; a name that is not in `stored` counts as None.
    """
    stored = stored if isinstance(stored, dict) else {}
    return [f"{name}: {stored.get(name)!r} then, {value!r} now"
            for name, value in today.items() if stored.get(name) != value]


# --- checks -------------------------------------------------------------------------------------

def check():
    """Raise UserError naming the first setting that makes no sense, its value and the remedy."""
    known = (*RANGES, *OTHERS)
    names = {name for name in vars(config) if name.isupper()}
    for name in known:
        if name not in names:
            raise UserError(f"config.py: {name} is missing. Add it, or take config.py as it was.")

    # a misspelt name would be silently without effect
    for name in sorted(names.difference(known)):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"is it {near[0]}?" if near else "expected one of those that are there."
        raise UserError(f"config.py: {name} is no setting; {hint} Edit or delete it.")

    for name, (low, high) in RANGES.items():
        whole = isinstance(low, int) and isinstance(high, int)
        expect(name, is_number(getattr(config, name), low, high, whole),
               f"a {'whole ' if whole else ''}number from {low:g} to {high:g}")

    check_together()
    for name in config.DATABASES:
        check_split(database(name))


def check_together():
    """What a range does not say: kinds of other settings, and those that must fit together."""
    low_high = config.BAND_HZ
    expect("WINDOW_SIZE", config.WINDOW_SIZE % 16 == 0, "a multiple of 16: four layers halve it")
    expect(
        "BAND_HZ",
        isinstance(low_high, tuple) and len(low_high) == 2
        and all(is_number(f, 0.001, 0.499 * config.FS_HZ) for f in low_high)
        and low_high[0] < low_high[1], "two rising frequencies below half of FS_HZ")
    expect("VALIDATION_FRACTION", config.TRAIN_FRACTION + config.VALIDATION_FRACTION < 1,
           "less than what TRAIN_FRACTION leaves: test beats need a share")

    # the shipped checkpoint is that of SEED: it is one of those the tables are over
    seeds = config.SEEDS
    expect(
        "SEEDS",
        isinstance(seeds, tuple) and all(is_number(s, 0, 2**32 - 1, True) for s in seeds)
        and len(set(seeds)) == len(seeds) and config.SEED in seeds,
        "different whole numbers, SEED among them")

    taper = config.TAPER_SIGMA_S
    expect("TAPER_SIGMA_S", taper is None or is_number(taper, 0.005, 10),
           "a number from 0.005 to 10, or None")

    lowpass = config.LOWPASS_HZ
    expect("LOWPASS_HZ", lowpass is None or is_number(lowpass, 1, 0.49 * config.FS_HZ),
           "a frequency below half of FS_HZ, or None")
    snr = config.NOISE_SNR_DB
    expect("NOISE_SNR_DB", isinstance(snr, tuple) and len(snr) == 2
           and all(is_number(db, -60, 100) for db in snr) and snr[0] <= snr[1],
           "two rising numbers from -60 to 100")

    # their names are checked where scores are known: scoring/scores.py
    for name in ("SCORES", "WEIGHTS"):
        value = getattr(config, name)
        expect(
            name,
            isinstance(value, dict) and set(value) == set(config.PROTOCOLS) and all(value.values()),
            f"a row for each of {', '.join(config.PROTOCOLS)}")
    for weights in config.WEIGHTS.values():
        sound = isinstance(weights, dict) and all(is_number(w, 0, 1000) for w in weights.values())
        expect("WEIGHTS", sound and any(weights.values()), "numbers from 0, not all of them 0")

    shared = [name for name in config.SCORES["beat"] if name in config.SCORES["patient"]]
    expect("DEFAULT_SCORE", config.DEFAULT_SCORE in shared, f"one of {', '.join(shared)}")
    expect("PROTOCOL", config.PROTOCOL in config.PROTOCOLS, f"one of {', '.join(config.PROTOCOLS)}")
    expect("DATABASE", config.DATABASE in config.DATABASES, f"one of {', '.join(config.DATABASES)}")


def expect(name, sound, expected):
    """Raise UserError where a setting is not sound."""
    if not sound:
        raise UserError(f"config.py: {name} = {getattr(config, name)!r}; expected {expected}. "
                        f"Edit {name} in config.py and run the command again.")


def is_number(value, low, high, whole=False):
    """Whether a value is a number in this range; True and False are none."""
    # True is an int to Python, and BATCH_SIZE = True a batch of one
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return math.isfinite(value) and low <= value <= high


def check_split(described):
    """Raise UserError where a record is in two parts or not there at all, or a part is empty."""
    names = [name for part in PARTS for name in getattr(described, part)]
    # a patient on both sides of the split would be no new patient
    twice = sorted({name for name in names if names.count(name) > 1})
    unknown = sorted(set(names) - set(described.records))

    if twice or unknown or not all(getattr(described, part) for part in PARTS):
        raise UserError(
            f"config.py: patient split of {described.title}: in two parts: {twice}; not in the "
            f"database: {unknown}; every part needs records, each in one part only. "
            "Edit DATABASES in config.py.")
