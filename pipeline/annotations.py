"""Annotation files of WFDB in MIT format: what wfdb.rdann reads, without a loop over the annotations.

That loop was a third of the time it took to build the segments. The format is in the WFDB Applications Guide, annot(5):
words of 16 bits, a code in the upper 6 and a value in the lower 10. Codes up to 49 are annotations, value samples after
the one before; 59 adds an interval of 32 bits in the next two words; 60 to 62 set fields that are of no use here; 63 is
followed by that many bytes of text. A word of 0 ends the file.
"""

import numpy as np
import wfdb

SKIP, TEXT, LAST_ANNOTATION = 59, 63, 49
OWN_CODES = b"## annotation type definitions"  # a file may give codes other meanings: then wfdb reads it
SYMBOLS = np.full(LAST_ANNOTATION + 1, "", "U1")
for _code, _symbol in zip(wfdb.io.annotation.ann_label_table["label_store"],
                          wfdb.io.annotation.ann_label_table["symbol"]):
    SYMBOLS[_code] = _symbol


def read_annotations(path, suffix):
    """(samples (k,) int64, symbols (k,)) of `path`.`suffix`.

    Raises OSError where it cannot be read, ValueError where it is no annotation file or breaks off.
    """
    with open(f"{path}.{suffix}", "rb") as file:
        content = file.read()
    if OWN_CODES in content:
        notes = wfdb.rdann(str(path), suffix)
        return np.asarray(notes.sample, np.int64), np.asarray(notes.symbol)
    if len(content) % 2:
        raise ValueError(f"{len(content)} bytes: not a whole number of words")
    words = np.frombuffer(content, "<u2").astype(np.int64)
    code, value = words >> 10, words & 1023
    step, is_code, end = np.where(code <= LAST_ANNOTATION, value, 0), np.ones(len(words), bool), 0
    for at in np.flatnonzero((code == SKIP) | (code == TEXT)).tolist():
        if at < end:  # within a text or an interval
            continue
        end = at + 1 + (2 if code[at] == SKIP else (value[at] + 1) // 2)
        if end > len(words):
            raise ValueError("breaks off within an annotation")
        is_code[at + 1:end] = False
        if code[at] == SKIP:
            step[at] = np.int64(words[at + 1] << 16 | words[at + 2]).astype(np.int32)  # high word first, signed
    stop = np.flatnonzero(is_code & (words == 0))
    kept = np.flatnonzero(is_code[:stop[0]] if len(stop) else is_code)
    samples, code = np.cumsum(step[kept]), code[kept]
    notes = (code > 0) & (code <= LAST_ANNOTATION)
    return samples[notes], SYMBOLS[code[notes]]
