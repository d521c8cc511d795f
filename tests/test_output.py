"""The table and the annotations of one recording, byte for byte as pandas and wfdb write them."""

from types import SimpleNamespace

import numpy as np
import pytest
import wfdb

from recording import output


def scored_beats(n, fs_hz=360, lead="MLII", gap_s=3):
    """So much of ScoredBeats as its files are made of: n beats, random."""
    rng = np.random.default_rng(n)
    time_s = np.cumsum(rng.exponential(gap_s, n))
    readable = rng.random(n) < 0.8
    whole = np.arange(n) > 0
    kind = np.where(readable & whole, rng.choice(list("NSVFQ"), n), "")
    known = np.where(readable & whole, rng.normal(0, 5, n), np.nan)
    duration_s = time_s.max(initial=0) + 100
    episodes = [{"kind": "bigeminy", "start_s": time_s[2], "end_s": time_s[8]},
                {"kind": "ventricular run", "start_s": time_s[3], "end_s": time_s[4]},
                {"kind": "pause", "start_s": time_s[3], "end_s": time_s[4]}] if n else []
    return SimpleNamespace(
        beats=SimpleNamespace(time_s=time_s, whole=whole, readable=readable,
                              scored=readable & whole, duration_s=duration_s),
        found=SimpleNamespace(early=known / 7, distance=known - 0.5, score=known * 1e7,
                              group=rng.integers(0, 9, n)),
        samples=np.round(time_s * fs_hz).astype(np.int64), fs_hz=fs_hz, lead=lead,
        rr_before_s=np.diff(time_s, prepend=np.nan), excess=known, flagged=known > 1, kind=kind,
        review_group=rng.integers(0, 4, n), episodes=episodes,
        unreadable_s=np.array([[10, 20], [30.5, 40]])[:n])


@pytest.mark.parametrize("n, fs_hz, gap_s", [(300, 360, 0.8), (300, 128.0, 30), (40, 249.75, 3e6),
                                             (15, 1000, 1), (0, 360, 1)])
def test_annotations_are_those_of_wfdb_to_the_byte(n, fs_hz, gap_s, tmp_path, monkeypatch):
    """Steps too long for a skip among them, and pieces that end between annotations."""
    monkeypatch.setattr(output, "ROWS", 7)
    scored = scored_beats(n, fs_hz, gap_s=gap_s)
    output.write_annotations(tmp_path / "ours.ecgad", scored)
    if not n:
        assert (tmp_path / "ours.ecgad").read_bytes() == b"\0\0"
        return

    sample, symbol, aux, subtype = output.annotations_of(scored)
    assert (np.diff(sample) >= 0).all() and set("~+") < set(symbol)
    assert np.diff(sample).max() > output.LONGEST_STEP
    wfdb.wrann("theirs", "ecgad", sample, list(symbol), aux_note=list(np.char.decode(aux)),
               subtype=subtype.astype(int), fs=fs_hz, write_dir=str(tmp_path))
    assert (tmp_path / "ours.ecgad").read_bytes() == (tmp_path / "theirs.ecgad").read_bytes()


@pytest.mark.parametrize("n, lead", [(300, "MLII"), (30, 'V1, "modified"'), (30, "nan"), (30, " "),
                                     (0, "I"), (20, "Ableitung α\nII")])
def test_the_table_is_that_of_pandas_to_the_byte(n, lead, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "ROWS", 7)
    scored = scored_beats(n, lead=lead)
    output.write_csv(tmp_path / "ours.csv", scored)
    table = output.beat_table(scored)
    table.astype({"flag": int}).to_csv(tmp_path / "theirs.csv", index=False, float_format="%.5f")
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()


@pytest.mark.parametrize("duration_s, seen", [(120, True), (121, False)])
def test_the_picture_of_a_short_recording_has_its_signal(duration_s, seen, tmp_path):
    scored = scored_beats(50)
    scored.beats.duration_s = duration_s
    scored.lead_index = 1
    scored.for_picture = lambda: "copy"
    asked = []

    def later(work, path, copied, signal):
        asked.append((path.name, copied, signal))
        return lambda: None

    recording = SimpleNamespace(n_samples=9, read=lambda *which: list(which), later=later)
    output.write_all(tmp_path / "r", scored, recording)
    assert asked == [("r.ecgad.png", "copy", [1, 0, 9] if seen else None)]
    assert {path.name for path in tmp_path.iterdir()} == {"r.ecgad", "r.ecgad.csv"}
