"""What a reviewer made of the flags: NAME.reviewed.csv or NAME.reviewed, saved from the page, held
against NAME.ecgad.csv.

reads   NAME.reviewed.csv   a row a flagged beat: sample, reviewed_kind, verdict
     or NAME.reviewed       WFDB annotations, all beats
        NAME.ecgad.csv, NAME.ecgad   beside it or in --out, as detect.py wrote them
writes  NAME.reviewed       from the table; beats with the reviewer's letters, the rest as it was
        NAME.reviewed.json  what changed
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb

from pipeline.artefacts import whole_file, write_json
from pipeline.errors import UserError, said
from recording.output import EXTENSION
from recording.reader_wfdb import read_annotations

REVIEWED = "reviewed"      # NAME.reviewed
LETTERS = "NSVFQ"
COLUMNS = ["sample", "reviewed_kind", "verdict"]
VERDICTS = ("accepted", "rejected", "")
MAX_BYTES = 200e6          # of a file that is read back: a week of beats has 40 MB


def read_back(path, out=None):
    """(NAME, summary of what changed) of a reviewed file, beside which the rest is written.

    out: folder of NAME.ecgad.csv where it is not beside the file. Raises UserError where the file
    or what it belongs to is missing, damaged, or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: missing. Save it from the page NAME.{EXTENSION}.html.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are more than {MAX_BYTES:,.0f}; "
                        "expected what a page saved. Save it again.")
    stem = path.name.removesuffix(".csv")
    name = stem.removesuffix(f".{REVIEWED}")
    if name == stem:
        raise UserError(f"{path}: expected NAME.{REVIEWED}.csv or NAME.{REVIEWED}. Give it the "
                        "name the page saved it under, without (1) or the like.")

    folder = Path(out) if out else path.parent
    beats = beats_of(folder / f"{name}.{EXTENSION}.csv")
    if path.suffix == ".csv":
        kind, verdict = from_table(path, beats)
        write_annotations(path.parent, folder, name, dict(zip(beats["sample"],
                                                              zip(kind, verdict))))
    else:
        kind, verdict = from_annotations(path, beats)

    summary = changes(beats, kind, verdict)
    write_json(path.parent / f"{name}.{REVIEWED}.json", summary)
    return name, summary


def reviews_of(place):
    """[Path] a reviewed file, or those in a folder; UserError where it has none."""
    path = Path(place)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob(f"*.{REVIEWED}.csv"))
    if not found:
        raise UserError(f"{path}: has no NAME.{REVIEWED}.csv. Save them from the pages.")
    return found


def beats_of(path):
    """The scored beats of NAME.ecgad.csv."""
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype={"kind": str})
        beats = table[table["state"] == "scored"].reset_index(drop=True)
        beats = beats.astype({"sample": int, "flag": int, "kind": str})
        if beats["sample"].duplicated().any():
            raise ValueError("two beats at a sample")
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing. What was reviewed is read back beside the output of "
                        "detect.py: copy it there, or name the folder with --out.") from error
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{path}: damaged ({said(error)}). Run detect.py on the recording again.") from error
    return beats


def from_table(path, beats):
    """(kind, verdict): (n,) of the scored beats, as a NAME.reviewed.csv says."""
    try:
        table = pd.read_csv(path, keep_default_na=False, usecols=COLUMNS,
                            dtype={"reviewed_kind": str, "verdict": str})
        table = table.astype({"sample": int})
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({said(error)}); expected a table with the "
                        f"columns {', '.join(COLUMNS)}. Save it from the page again.") from error

    check_letters(path, table["reviewed_kind"])
    unknown = table.loc[~table["verdict"].isin(VERDICTS), "verdict"]
    if len(unknown):
        raise UserError(f"{path}: the verdict {unknown.iloc[0]!r}; expected accepted, rejected or "
                        "nothing. Correct it or save the table again.")

    row = rows_of(path, beats, table["sample"])
    kind = np.array(beats["kind"], object)
    verdict = np.full(len(beats), "", object)
    kind[row] = table["reviewed_kind"]
    verdict[row] = table["verdict"]
    return kind, verdict


def from_annotations(path, beats):
    """The same from a WFDB annotation file, in which every beat has its letter; a verdict stands
    beside it where the page has saved it, else it is what changed.
    """
    try:
        notes = read_annotations(path.with_suffix(""), path.suffix[1:])
        symbol = np.asarray(notes.symbol)
    except Exception as error:  # the reader of a damaged file raises anything
        raise UserError(f"{path}: damaged ({said(error)}); expected a WFDB annotation file. Save "
                        "it from the page again.") from error

    # what is neither a letter of ours nor a change of rhythm or quality was put there by hand
    beat = ~np.isin(symbol, ["~", "+", "[", "]", '"'])
    check_letters(path, pd.Series(symbol[beat], dtype=str))
    row = rows_of(path, beats, pd.Series(notes.sample[beat]))
    kind = np.full(len(beats), "N", object)
    kind[row] = symbol[beat]

    rejected = (beats["flag"] == 1) & (kind == "N")
    verdict = np.where(rejected, "rejected", np.where(kind != beats["kind"], "accepted", ""))
    noted = np.array(notes.aux_note, object)[beat]
    told = np.isin(noted, VERDICTS[:2])
    verdict[row[told]] = noted[told]
    return kind, verdict


def check_letters(path, letters):
    """Raise UserError for a letter that no beat has."""
    unknown = letters[~letters.isin(list(LETTERS))]
    if len(unknown):
        raise UserError(f"{path}: the kind {unknown.iloc[0]!r}; expected one of "
                        f"{', '.join(LETTERS)}. Correct it or save the file again.")


def rows_of(path, beats, samples):
    """Row of each sample among the scored beats; UserError where there is no such beat."""
    row = pd.Index(beats["sample"]).get_indexer(samples)
    if (row < 0).any():
        raise UserError(f"{path}: a beat at sample {samples[row < 0].iloc[0]}, where detect.py has "
                        "none. It was reviewed on another output: make the page anew with --force, "
                        "or name the folder it is of with --out.")
    return row


def write_annotations(folder, source, name, review_at):
    """NAME.reviewed: the annotations of NAME.ecgad in the folder `source`, each beat with the
    letter and verdict of review_at {sample: (letter, verdict)}.
    """
    try:
        notes = read_annotations(source / name, EXTENSION)
        if not all(isinstance(symbol, str) for symbol in notes.symbol):
            raise ValueError("an annotation without a symbol")
    except Exception as error:  # the reader of a damaged file raises anything
        raise UserError(f"{source / name}.{EXTENSION}: missing or damaged ({said(error)}). Run "
                        "detect.py on the recording again.") from error

    symbol = []
    verdicts = []
    for sample, old, note in zip(notes.sample, notes.symbol, notes.aux_note):
        beat = old in list(LETTERS)
        letter, verdict = review_at.get(sample, (old, "")) if beat else (old, note)
        symbol.append(letter)
        verdicts.append(verdict)
    with (whole_file(folder / f"{name}.{REVIEWED}") as part,
          tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as written):
        # wfdb takes no path and refuses many names: written as r.reviewed
        try:
            wfdb.wrann("r", REVIEWED, notes.sample, symbol, aux_note=verdicts,
                       subtype=notes.subtype, fs=notes.fs, write_dir=written)
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            # no annotations, out of order, a note with a tab
            raise UserError(f"{source / name}.{EXTENSION}: damaged ({said(error)}). Run detect.py "
                            "on the recording again.") from error
        (Path(written) / f"r.{REVIEWED}").replace(part)


def changes(beats, kind, verdict):
    """{"flagged", "accepted", "rejected", "renamed", "added", "as_found", "before", "after"}.

    before, after: beats of each kind. added: beats that were not flagged and have a letter now.
    """
    flagged = (beats["flag"] == 1).to_numpy()
    found = np.array(beats["kind"], object)
    abnormal = kind != "N"
    return {"beats": len(beats), "flagged": int(flagged.sum()),
            "accepted": int((flagged & abnormal & (verdict == "accepted")).sum()),
            "rejected": int((flagged & ~abnormal).sum()),
            "renamed": int((flagged & abnormal & (kind != found)).sum()),
            "added": int((~flagged & abnormal).sum()),
            "as_found": int((flagged & (verdict == "")).sum()),
            "before": {letter: int((found == letter).sum()) for letter in LETTERS},
            "after": {letter: int((kind == letter).sum()) for letter in LETTERS}}


def in_words(name, summary):
    """What the terminal says of it."""
    kinds = ", ".join(f"{letter} {summary['before'][letter]:,} -> {summary['after'][letter]:,}"
                      for letter in LETTERS[1:])
    return (f"{name}: {summary['flagged']:,} flagged: {summary['accepted']:,} accepted "
            f"({summary['renamed']:,} as another kind), {summary['rejected']:,} rejected, "
            f"{summary['as_found']:,} left as found; {summary['added']:,} added\n  {kinds}")
