"""What detect.py writes of one recording: annotations, table, picture; all from its ScoredBeats."""

import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np

from pipeline.artefacts import whole_file
from pipeline.errors import UserError
from pipeline.runtime import importing, slices
from recording import places
from recording.episodes import NO_QRS, RHYTHMS

EXTENSION = "ecgad"
NOISE_SYMBOL = "~"     # WFDB: change of signal quality; subtype -1 unreadable, 0 readable again
RHYTHM_SYMBOL = "+"    # WFDB: change of rhythm
ROWS = 10000           # of beats, written at a time
SHORT_S = 120          # a recording whose signal can be seen in its picture
LEAD = "\1"            # stands for the name of the lead until it is put in
FORMATS = {"f": "%.5f", "i": "%d", "b": "%d", "U": "%s"}   # by the kind of numpy's dtype

# of the MIT annotation format: WFDB Programmer's Guide, annot(5), and wfdb.io.annotation
CODES = {"N": 1, "V": 5, "F": 6, "S": 9, "Q": 13, NOISE_SYMBOL: 14, RHYTHM_SYMBOL: 28, "[": 32,
         "]": 33}
NOTE, SKIP, SUBTYPE, AUX = 22, 59, 61, 63
RATE_NOTE = "## time resolution: "
NO_MORE_NOTES = bytes([0, SKIP << 2, 255, 255, 255, 255, 1, 0])
LONGEST_STEP = 1023       # samples that fit beside a code
LONGEST_SKIP = 2**31 - 1


# --- table ----------------------------------------------------------------------------------------

def beat_columns(scored, rows=slice(None)):
    """{column: (n,) values, or one for all} of the table, a row a beat in order of time; of some
    rows, a slice, alone.
    """
    beats = scored.beats
    # a beat at an end of the recording has no whole segment
    state = np.where(beats.whole[rows], "scored", "cut")
    return {
        "time_s": beats.time_s[rows], "sample": scored.samples[rows], "lead": scored.lead,
        "rr_before_s": scored.rr_before_s[rows], "early": scored.found.early[rows],
        "qrs_distance": scored.found.distance[rows], "score": scored.found.score[rows],
        "excess": scored.excess[rows], "flag": scored.flagged[rows], "kind": scored.kind[rows],
        "group": scored.found.group[rows], "review_group": scored.review_group[rows],
        "state": np.where(beats.readable[rows], state, "unreadable")}


def beat_table(scored):
    """The beat_columns as a DataFrame: what detect.score returns."""
    import pandas as pd  # here: it takes half a second to load, and the files do without
    return pd.DataFrame(beat_columns(scored))


def write_csv(path, scored):
    """The beat_columns, flags as 0 and 1, as pandas would write them in three times the time."""
    lead = quoted(scored.lead)
    # a part at a time: the words of a week are 30 MB
    parts = (beat_columns(scored, here) for here in slices(len(scored.beats.time_s), ROWS))

    with whole_file(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        file.write(",".join(beat_columns(scored, slice(0))) + "\n")
        for columns in parts:
            columns["lead"] = np.full(len(columns["time_s"]), LEAD)
            row = ",".join(FORMATS[values.dtype.kind] for values in columns.values()) + "\n"
            cells = zip(*(values.tolist() for values in columns.values()))
            text = "".join(map(row.__mod__, cells))
            # what is not known is empty; the lead's name is put in last: it may be "nan"
            file.write(text.replace(",nan", ",").replace(LEAD, lead))


def quoted(text):
    """Text as a cell of a CSV file."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([0, text])
    return line.getvalue().removeprefix("0,").removesuffix("\n")


# --- annotations ----------------------------------------------------------------------------------

def annotations_of(scored):
    """(sample, symbol, aux as bytes, subtype), each (m,), of every scored beat, change of signal
    quality and episode that WFDB has a rhythm for, in order of time.
    """
    rows = np.flatnonzero(scored.beats.scored)
    # a part at a time: as objects of Python the numbers of a week are 60 MB, as text, not bytes, 18
    parts = [np.array(list(map("{:.2f}".format, scored.excess[rows[part]])), "S")
             for part in slices(len(rows), ROWS)]
    excess = np.concatenate(parts) if parts else np.empty(0, "S1")
    beats = (scored.samples[rows], scored.kind[rows], excess, np.zeros(len(rows), np.int8))

    found = [beats]
    for others in (quality_of(scored), rhythms_of(scored)):
        if others:
            sample, symbol, aux, subtype = zip(*others)
            found.append((sample, symbol, np.char.encode(aux), np.array(subtype, np.int8)))
    columns = [np.concatenate(values) for values in zip(*found)]
    # of the same sample the beat comes first
    order = np.argsort(columns[0], kind="stable")
    return [values[order] for values in columns]


def quality_of(scored):
    """[(sample, symbol, aux, subtype)] where the signal becomes unreadable, and readable again."""
    edges = (scored.unreadable_s.ravel() * scored.fs_hz).round().astype(int).tolist()
    return list(zip(edges, itertools.repeat(NOISE_SYMBOL), itertools.repeat(""),
                    itertools.cycle((-1, 0))))


def rhythms_of(scored):
    """[(sample, symbol, aux, subtype)] where a rhythm begins, and where none has a name again."""
    rows = []
    for episode in scored.episodes:
        first, last = (round(episode[end] * scored.fs_hz) for end in ("start_s", "end_s"))
        last = min(last, round(scored.beats.duration_s * scored.fs_hz) - 1)
        if episode["kind"] == NO_QRS:
            rows.append((first, "[", "", 0))
            rows.append((last, "]", "", 0))
        if episode["kind"] in RHYTHMS:
            rows.append((first, RHYTHM_SYMBOL, RHYTHMS[episode["kind"]], 0))
            rows.append((last, RHYTHM_SYMBOL, "(N", 0))
    return sorted(rows, key=lambda row: row[0])


def write_annotations(path, scored):
    """WFDB annotation file, byte for byte as wfdb.wrann writes it in seven times the time."""
    columns = annotations_of(scored)
    steps = np.diff(columns[0], prepend=0)

    with whole_file(path) as part, open(part, "wb") as file:
        if len(steps):
            file.write(rate_bytes(scored.fs_hz))
        for here in slices(len(steps), ROWS):
            file.write(annotation_bytes(steps[here], *(values[here] for values in columns[1:])))
        file.write(b"\0\0")


def rate_bytes(fs_hz):
    """The sampling rate as the file's first note."""
    rate = str(int(fs_hz) if round(fs_hz, 8) == int(fs_hz) else fs_hz)
    text = (RATE_NOTE + rate).encode()
    # a note of length n is padded to a whole word; its own annotation has code 22 and no time
    return (bytes([0, NOTE << 2, len(text), AUX << 2]) + text + bytes(len(text) % 2)
            + NO_MORE_NOTES)


def annotation_bytes(steps, symbol, aux, subtype):
    """Annotations in the MIT format; steps (m,): samples since the one before. Each is a skip where
    the step is long, its code and step, its subtype and its aux where it has them.
    """
    cells = []   # of each part: (words of two bytes (m, k), bool (m, k): whether they are there)

    # a skip has two words of 16 bits, the higher one first
    while (steps > LONGEST_STEP).any():
        long = steps > LONGEST_STEP
        skip = np.where(long, np.minimum(steps, LONGEST_SKIP), 0)
        words = np.stack([np.full(len(steps), SKIP << 10), skip >> 16, skip & 0xFFFF], axis=1)
        cells.append((words, long))
        steps = steps - skip

    names, index = np.unique(symbol, return_inverse=True)
    code = np.array([CODES[name] for name in names], int)[index]
    cells.append((steps + (code << 10), np.ones(len(steps), bool)))
    cells.append(((subtype.astype(int) & 0xFF) + (SUBTYPE << 10), subtype != 0))

    # text, padded to whole words
    length = np.char.str_len(aux)
    cells.append((length + (AUX << 10), length > 0))
    letters = aux.astype(f"S{2 * -(-aux.dtype.itemsize // 2)}").view("<u2").reshape(len(aux), -1)
    cells.append((letters, 2 * np.arange(letters.shape[1]) < length[:, None]))

    words = []
    there = []
    for values, known in cells:
        values = values.reshape(len(steps), -1)
        words.append(values.astype("<u2"))
        there.append(np.broadcast_to(known.reshape(len(steps), -1), values.shape))
    return np.hstack(words)[np.hstack(there)].tobytes()


# --- all of it ------------------------------------------------------------------------------------

def write_all(stem, scored, recording):
    """All files of one recording but the summary and the page; recording: open."""
    # of a short one the signal can be seen
    signal = None
    if scored.beats.duration_s <= SHORT_S:
        signal = recording.read(scored.lead_index, 0, recording.n_samples)

    drawn = recording.later(draw, Path(f"{stem}.{EXTENSION}.png"), scored.for_picture(), signal)
    write_annotations(Path(f"{stem}.{EXTENSION}"), scored)
    write_csv(Path(f"{stem}.{EXTENSION}.csv"), scored)
    drawn()


def draw(path, scored, signal):
    """The picture, into a file; signal (n,) of a short recording, else None."""
    from pipeline.figures import save
    from recording.picture import draw_overview
    save(path, lambda: draw_overview(scored, signal), quickly=True)


def load_picture():
    """Load what `draw` needs, matplotlib above all: it takes half a second, and detect.score draws
    nothing.
    """
    with importing():
        import recording.picture  # noqa: F401


def file_beside(stem, end):
    """The place of a file NAME.ecgad* of a stem, Path or address."""
    return places.beside(stem, f"{places.name_of(stem)}.{EXTENSION}{end}")


def stored_dict(place, origin):
    """The dict in a JSON file of an earlier run with the same origin, or None."""
    try:
        value = json.loads(places.read_bytes(place))
        return value if value["origin"] == origin else None
    except ConnectionError:  # it may pass: tried again by who called
        raise
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None


def stored_summary(stem, origin, html):
    """The summary of an earlier run with the same origin and all its files, or None; stem: Path or
    address.

    html: the page is one of them.
    """
    ends = ["", ".csv", ".png"]
    if html:
        ends.append(".html")

    summary = stored_dict(file_beside(stem, ".json"), origin)
    if summary and all(places.is_file(file_beside(stem, end)) for end in ends):
        return summary
    return None
