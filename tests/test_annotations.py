"""Annotation files: against wfdb's decoder, on every real record and on what real records lack."""

import numpy as np
import pytest
import wfdb

import config
from pipeline import settings
from pipeline.annotations import read_annotations


def assert_as_wfdb(path, suffix):
    samples, symbols = read_annotations(path, suffix)
    notes = wfdb.rdann(str(path), suffix)
    np.testing.assert_array_equal(samples, notes.sample)
    assert symbols.tolist() == notes.symbol


def test_every_record_of_mitbih(mitdb):
    for name in settings.database("mitdb").records:
        assert_as_wfdb(mitdb / name, "atr")


def test_long_pauses_texts_and_fields(tmp_path):
    rng = np.random.default_rng(0)
    samples = np.cumsum(rng.choice([1, 300, 1023, 1024, 70000, 3_000_000], 400))
    symbols = rng.choice(["N", "V", "A", "/", "+", "~", "j", "E", "[", "|"], 400).tolist()
    texts = rng.choice(["", "(N\0", "(AFIB", "odd", "\xff\xef" * 20, "\0\0\0\0"], 400).tolist()
    fields = {name: rng.integers(0, 100, 400) for name in ("subtype", "chan", "num")}
    wfdb.wrann("r", "atr", samples, symbols, aux_note=texts, write_dir=str(tmp_path), **fields)
    assert_as_wfdb(tmp_path / "r", "atr")
    assert read_annotations(tmp_path / "r", "atr")[0][-1] == samples[-1]


def test_codes_of_its_own_are_read_by_wfdb(tmp_path):
    import pandas as pd
    own = pd.DataFrame({"label_store": [16], "symbol": ["@"], "description": ["mine"]})
    wfdb.wrann("r", "atr", np.array([5, 900]), ["N", "@"], custom_labels=own, write_dir=str(tmp_path))
    assert read_annotations(tmp_path / "r", "atr")[1].tolist() == ["N", "@"]


@pytest.mark.parametrize("content, expected", [(b"\x01", "whole number of words"), (b"\x0a\xfc(N", "breaks off"),
                                               (b"\x00\xec\x00\x00", "breaks off")])
def test_what_breaks_off_is_no_annotation_file(tmp_path, content, expected):
    (tmp_path / "r.atr").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        read_annotations(tmp_path / "r", "atr")
