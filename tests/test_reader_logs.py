"""Tables as loggers and watches write them: clock times, lost rows, decimal commas, lines above."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from conftest import ecg_mv, leads_of, peak_bytes, refused

from recording.reader import open_recording

START = datetime(2024, 3, 5, 23, 59, 50)


def lose(signal, *stretches):
    """(rows that are left, the signal with NaN where a stretch (first, behind) is lost)."""
    left = np.ones(len(signal), bool)
    for first, behind in stretches:
        left[first:behind] = False
    return np.flatnonzero(left), np.where(left[:, None], signal, np.nan)


def write(path, rows, times, signal, head="", sep=";", number="{:.4f}", comma=False):
    lines = [head] if head else []
    for row, time in zip(rows, times):
        cells = [number.format(value) for value in signal[row]]
        line = sep.join([time, *cells] if time else cells)
        lines.append(line.replace(".", ",") if comma else line)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


CLOCKS = {  # how a time is written, which start is then known
    "clock": (lambda t: f"{t:%H:%M:%S.%f}"[:-3], None),
    "iso": (lambda t: t.isoformat(timespec="milliseconds"), START),
    "iso, zone": (lambda t: f"{t:%Y-%m-%d %H:%M:%S.%f}+0200", START),
    "german": (lambda t: f"{t:%d.%m.%Y %H:%M:%S,%f}"[:-3], START),
    "ms": (lambda t: str(round((t - datetime(1970, 1, 1)) / timedelta(milliseconds=1))), START),
    "µs": (lambda t: str(round((t - datetime(1970, 1, 1)) / timedelta(microseconds=1))), START),
    "ns": (lambda t: f"{round((t - datetime(1970, 1, 1)) / timedelta(microseconds=1))}000", START),
    "s": (lambda t: f"{(t - datetime(1970, 1, 1)) / timedelta(seconds=1):.3f}", START)}


@pytest.mark.parametrize("head", ["timestamp;I [mV];II [mV]", ""])
@pytest.mark.parametrize("kind", CLOCKS)
def test_clock_and_counted_times_with_lost_rows(tmp_path, kind, head):
    """One sample is lost, 73 and 3,000: past midnight, at 250 Hz."""
    text, start = CLOCKS[kind]
    rows, expected = lose(ecg_mv(9000), (1000, 1001), (2000, 2073), (4000, 7000))
    times = [text(START + timedelta(seconds=row / 250)) for row in rows]
    write(tmp_path / "rec.csv", rows, times, expected, head)
    with open_recording(tmp_path / "rec.csv") as recording:
        assert recording.fs_hz == 250 and recording.start == start
        assert recording.leads == (["I", "II"] if head else ["1", "2"])
        assert recording.calibrated == [bool(head)] * 2
    for block in (None, 777):
        read = leads_of(tmp_path / "rec.csv", block=block)
        np.testing.assert_allclose(read, expected, atol=1e-4)


def test_decimal_commas(tmp_path):
    signal = ecg_mv(3000)
    times = [f"{row / 250:.3f}" for row in range(3000)]
    write(tmp_path / "rec.csv", range(3000), times, signal, "Zeit [s];I [mV];II [mV]", comma=True)
    np.testing.assert_allclose(leads_of(tmp_path / "rec.csv"), signal, atol=1e-4)

    # the first comma may be far down; a point beside commas would be one of thousands
    (tmp_path / "late.csv").write_text("I;II\n" + "1;2\n" * 400 + "1,5;2\n")
    assert leads_of(tmp_path / "late.csv", 250)[-1].tolist() == [1.5, 2]
    (tmp_path / "both.csv").write_text("I;II\n1.234,5;2\n1,5;2\n")
    refused(tmp_path / "both.csv", "row 2, column 1", "'1.234,5'", "decimal comma", fs_hz=250)


@pytest.mark.parametrize("text", [
    "Name,Jane Doe\nDate of Birth,1980-01-01\nClassification,Sinus Rhythm\nSymptoms,\n"
    "Recorded Date,2020-09-09 20:53:15 +0200\nSoftware Version,1.9\nDevice,\"Watch5,2\"\n"
    "Sample Rate,512 hertz\n\n\nLead,Lead I\nUnit,µV\n\n{}",
    "Name,Jane Doe\nDatum,2020-09-09 20:53:15 +0200\nGerät,\"Watch6,1\"\nAbtastrate,512 Hertz\n"
    "Lead,I\nEinheit,µV\n\n{}",
    "# Subject: Jane\n# Start: 2020-09-09T20:53:15\n# Low pass: 150 Hz\n# Sampling rate: 512 Hz\n"
    "I [uV]\n{}"], ids=["English", "German", "comments"])
@pytest.mark.parametrize("comma", ["", "plain", "quoted"])
def test_an_apple_watch_and_other_lines_above(tmp_path, text, comma):
    signal = ecg_mv(15360, leads=1, fs_hz=512)
    values = [f"{1000 * value:.3f}" for value, in signal]
    if comma:
        values = [value.replace(".", ",") for value in values]
    if comma == "quoted":
        values = [f'"{value}"' for value in values]
    if comma == "plain" and text.startswith("#"):
        pytest.skip("two columns with the name of one: refused below")
    (tmp_path / "ecg.csv").write_text(text.format("\n".join(values)), encoding="utf-8")
    with open_recording(tmp_path / "ecg.csv") as recording:
        assert recording.fs_hz == 512
        assert recording.leads == ["I"] and recording.calibrated == [True]
        assert recording.start == datetime(2020, 9, 9, 20, 53, 15)
    np.testing.assert_allclose(leads_of(tmp_path / "ecg.csv"), signal, atol=1e-6)


def polar(path, signal, fs_hz=130.0, lost=(), seed=0):
    """A Polar H10 by Polar Sensor Logger: packets of 73 samples, some lost, clocks with jitter."""
    rng = np.random.default_rng(seed)
    lines = ["Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]"]
    first_ns = 599616000318562436
    for packet in range(len(signal) // 73):
        if packet in lost:
            continue
        # the telephone gets a packet when the radio has it; the sensor's clock is off by 0.3 ms
        arrived = START + timedelta(seconds=(packet + 1) * 73 / fs_hz + rng.uniform(0, 0.05))
        off_s = rng.normal(0, 3e-4)
        for row in range(73 * packet, 73 * (packet + 1)):
            ns = first_ns + round((row / fs_hz + off_s) * 1e9)
            lines.append(f"{arrived.isoformat(timespec='milliseconds')};{ns};"
                         f"{(ns - first_ns) / 1e6:.6f};{1000 * signal[row, 0]:.0f}")
    path.write_text("\n".join(lines) + "\n")


def test_a_polar_h10_with_lost_packets(tmp_path):
    signal = ecg_mv(73 * 200, leads=1, fs_hz=130)
    lost = (17, 90, 91, 92, 150)
    polar(tmp_path / "rec.txt", signal, lost=lost)
    _, expected = lose(signal, *[(73 * packet, 73 * packet + 73) for packet in lost])
    with open_recording(tmp_path / "rec.txt") as recording:
        assert recording.fs_hz == pytest.approx(130, rel=1e-4) and recording.leads == ["ecg"]
        assert recording.calibrated == [True]
        assert recording.start.replace(microsecond=0) == START
    np.testing.assert_allclose(leads_of(tmp_path / "rec.txt"), expected, atol=6e-4)


@pytest.mark.parametrize("fs_hz, digits", [(360, 3), (250, 2), (512, 3), (128, 0)])
def test_rounded_times_have_no_gaps_of_their_own(tmp_path, fs_hz, digits):
    """To 10 ms at 250 Hz and to the second: several rows have the same time, the first fewer."""
    signal = ecg_mv(20_000)
    times = [f"{np.floor((row / fs_hz + 0.4) * 10**digits) / 10**digits:.{digits}f}"
             for row in range(20_000)]
    write(tmp_path / "rec.csv", range(20_000), times, signal, "time (s),I,II", sep=",")
    with open_recording(tmp_path / "rec.csv") as recording:
        assert recording.fs_hz == pytest.approx(fs_hz, rel=2e-3)
        assert recording.n_samples == 20_000


def test_header_of_rdsamp_with_a_row_of_units(tmp_path):
    signal = ecg_mv(3000, fs_hz=360)
    times = [f"{row // 21600}:{row / 360 % 60:06.3f}" for row in range(3000)]
    head = "'Elapsed time','MLII','V5'\n'mm:ss.mmm','mV','mV'"
    write(tmp_path / "rec.csv", range(3000), times, signal, head, sep=",")
    with open_recording(tmp_path / "rec.csv") as recording:
        assert recording.leads == ["MLII", "V5"] and recording.calibrated == [True] * 2
        assert recording.fs_hz == 360
    np.testing.assert_allclose(leads_of(tmp_path / "rec.csv"), signal, atol=1e-4)


@pytest.mark.parametrize("change, words", [
    (lambda lines: lines[:900] + lines[500:], ("time goes back", "900", "--fs")),
    (lambda lines: [*lines[:70], lines[70].replace("23:59", "23:99"), *lines[71:]],
     ("row 71", "column 1", "is no time")),
    (lambda lines: lines[:1] + lines[1::40], ("6.25 Hz",)),
    (lambda lines: [line for k, line in enumerate(lines) if k < 9 or k % 10],
     ("lost rows", "--fs"))])
def test_times_that_cannot_be(tmp_path, change, words):
    times = [(START + timedelta(seconds=row / 250)).isoformat() for row in range(2000)]
    write(tmp_path / "rec.csv", range(2000), times, ecg_mv(2000), "time;I;II")
    lines = (tmp_path / "rec.csv").read_text().split("\n")[:-1]
    (tmp_path / "rec.csv").write_text("\n".join(change(lines)))
    refused(tmp_path / "rec.csv", *words)


def test_a_gap_of_centuries_is_refused_and_costs_no_memory(tmp_path):
    (tmp_path / "rec.csv").write_text("time;I\n" + "\n".join(
        f"{1024 if row < 500 else 2024}-03-05T12:00:{row % 500 / 250:06.3f};1"
        for row in range(999)))
    assert peak_bytes(refused, tmp_path / "rec.csv", "hours") < 30e6


def test_memory_of_a_long_table_is_that_of_a_block(tmp_path):
    times = [f"{START + timedelta(milliseconds=4 * row):%H:%M:%S.%f}" for row in range(200_000)]
    write(tmp_path / "rec.csv", range(200_000), times, ecg_mv(200_000), "time;I;II")
    def first():
        with open_recording(tmp_path / "rec.csv") as recording:
            recording.read(0, 0, 1000)
    assert peak_bytes(first) < 40e6
