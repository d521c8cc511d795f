import csv
import json
import re
import shutil
import time
import tracemalloc
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from bokeh.core.serialization import Deserializer

import detect
from recording import page
from recording import page_data
from recording import reader
from pipeline import simulated_ecg
from pipeline.errors import UserError
from recording.page_data import FLAGGED, MISSING, SCORED, UNSCORED

HOSTILE = '</script><script>window.ran=1</script><img src=x onerror="window.ran=1">$$x$$'
CHROMIUM, CHROMEDRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


def run(*argv):
    detect.main([str(a) for a in (*argv, "--threads", 1)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a simulated record of two minutes with a gap, and detect.py's files with the page; read-only."""
    folder = tmp_path_factory.mktemp("made")
    simulated_ecg.write_database(folder, ("s02",), duration_s=120, seed=5)
    signal = wfdb.rdrecord(str(folder / "s02")).p_signal[:, 0]
    signal[60 * 360:75 * 360] = np.nan
    np.savetxt(folder / "r.csv", signal, fmt="%.4f", header="MLII (mV)", comments="")
    run(folder / "r.csv", "--fs", 360, "--level", 2.5, "--html")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "in")
    return tmp_path / "in"


class Signal:
    """A recording for the functions that only read: what was asked for is in `asked`."""

    def __init__(self, samples, fs_hz=100):
        self.samples, self.fs_hz, self.n_samples, self.asked = samples, fs_hz, len(samples), []

    def read(self, lead, start, stop):
        self.asked.append((start, stop))
        return np.array(self.samples[start:stop], float)


def beats_table(sample, level, threshold=3.0, rr=0.8):
    level = np.asarray(level, float)
    state = np.where(np.isnan(level), UNSCORED, np.where(level >= threshold, FLAGGED, SCORED))
    return pd.DataFrame({"sample": sample, "rr_before_s": rr, "level": level, "flag": state == FLAGGED, "state": state})


def stored_in(html):
    """([roots], {argument of detect_page.js: its value}) of a page, decoded by bokeh."""
    text = re.search(r'<script type="application/json" id="[^"]*">(.*?)</script>', html, re.DOTALL).group(1)
    (stored,) = json.loads(unescape(text)).values()
    roots, callbacks = Deserializer().decode([stored["roots"], stored["callbacks"]])
    return roots, callbacks["document_ready"][0].args


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        self.text += data if self.inside not in ("script", "style") else ""


# --- what a page holds ----------------------------------------------------------------------------

def test_page_holds_the_signal_the_beats_and_the_table_of_the_other_files(made):
    html, rows = (made / "r.ecgad.html").read_text(), list(csv.DictReader((made / "r.ecgad.csv").open()))
    _, args = stored_in(html)
    signal, stored = np.loadtxt(made / "r.csv", skiprows=1), args["full"].data["v"]
    known = ~np.isnan(signal)
    assert stored.dtype == np.int16 and ((stored != MISSING) == known).all()
    np.testing.assert_allclose(args["offset"] + args["scale"] * stored[known], signal[known], atol=1e-4)
    beats, table = args["beats"].data, args["rows"].data
    np.testing.assert_array_equal(beats["sample"], [int(r["sample"]) for r in rows])
    wanted = [FLAGGED if r["flag"] == "1" else SCORED if r["state"] == "scored" else UNSCORED for r in rows]
    np.testing.assert_array_equal(beats["state"], wanted)
    flagged = sorted((r for r in rows if r["flag"] == "1"), key=lambda r: -float(r["level"]))
    assert len(flagged) > 3 and [float(r["level"]) for r in flagged] == list(table["level"])
    assert [int(r["sample"]) for r in flagged] == list(table["sample"])
    np.testing.assert_array_equal(args["unreadable"].data["x0"], [60e3])
    summary, text = json.loads((made / "r.ecgad.json").read_text()), Tags(html).text
    assert f"All {len(flagged)} flagged beats" in text and "Research code, not a medical device" in text
    assert f"{100 * summary['unreadable_share']:.1f} % of the time" in text and "00:02:00.0 (h:min:s) at 360 Hz" in text


def test_page_loads_nothing_and_says_its_language_and_title(made):
    html = (made / "r.ecgad.html").read_text()
    tags = Tags(html).tags
    assert ("html", {"lang": "en"}) in tags and "<title>r: flagged beats</title>" in html
    assert not [(tag, attrs) for tag, attrs in tags if {"src", "href", "data", "srcset", "action"} & set(attrs)]
    styles = " ".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert "url(" not in styles and "@import" not in styles
    assert {tag for tag, _ in tags} >= {"h1", "h2", "main", "dl", "button", "noscript"}


@pytest.mark.parametrize("where", ["name", "lead", "unit"])
def test_untrusted_text_is_text(folder, where):
    """What a file calls itself, its leads and its units neither ends a script nor begins a tag, nor is mathematics."""
    summary = json.loads((folder / "r.ecgad.json").read_text())
    with reader.open_recording(folder / "r.csv", 360) as recording:
        if where == "unit":
            summary["calibrated"], recording.units[0] = False, HOSTILE
        else:
            summary |= {"recording": HOSTILE} if where == "name" else {"lead": HOSTILE, "leads": [HOSTILE]}
        (folder / "r.ecgad.json").write_text(json.dumps(summary))
        page.write_page(folder / "r", recording, 0)
    html = (folder / "r.ecgad.html").read_text()
    parsed, stored = Tags(html), re.search(r'<script type="application/json".*?</script>', html, re.DOTALL).group()
    assert HOSTILE in parsed.text and "<script>window" not in html and "$$" not in stored
    assert not [tag for tag, _ in parsed.tags if tag == "img"]


def test_a_name_that_is_no_utf_8_does_not_stop_the_page(folder):
    summary = json.loads((folder / "r.ecgad.json").read_text()) | {"recording": "caf\udce9"}
    (folder / "r.ecgad.json").write_text(json.dumps(summary))
    with reader.open_recording(folder / "r.csv", 360) as recording:
        page.write_page(folder / "r", recording, 0)
    assert "caf?" in (folder / "r.ecgad.html").read_text()


# --- long recordings ------------------------------------------------------------------------------

def test_long_recording_keeps_strips_at_full_rate_and_extremes_of_the_rest(monkeypatch):
    for name, value in (("FULL_SAMPLES", 3000), ("ENVELOPE", 900), ("CHUNK", 700)):
        monkeypatch.setattr(page_data, name, value)
    rng = np.random.default_rng(0)
    recording = Signal(rng.normal(size=20_000).astype(np.float32))
    recording.samples[12_000:12_500] = np.nan
    table = beats_table(np.arange(50, 20_000, 100), np.append(np.arange(199) % 50 / 10, 9.0))
    rows = page_data.listed_beats(table, 20_000, 100)
    assert len(rows) == 3 and rows[0] == 199 and list(table["level"][rows]) == sorted(table["level"], reverse=True)[:3]
    kept = page_data.full_rate(table["sample"].to_numpy()[rows], 20_000, 100)
    wanted = np.zeros(20_000, bool)
    for row in rows:
        wanted[max(0, table["sample"][row] - 500):table["sample"][row] + 501] = True
    full, low, high = page_data.read_signal(recording, 0, kept, 23)
    assert [start for start, _ in recording.asked] == [0, *(stop for _, stop in recording.asked[:-1])]
    assert max(stop - start for start, stop in recording.asked) <= 700 and recording.asked[-1][1] == 20_000
    np.testing.assert_array_equal(full, recording.samples[wanted])
    assert sum(stop - start for start, stop in kept) == wanted.sum()
    for k in range(870):
        piece = recording.samples[23 * k:23 * k + 23]
        piece = piece[~np.isnan(piece)]
        assert (low[k], high[k]) == (piece.min(), piece.max()) if len(piece) else np.isnan([low[k], high[k]]).all()
    assert len(low) == len(high) == 870


def test_memory_and_page_of_a_day_are_bounded(tmp_path, monkeypatch):
    """24 h at 360 Hz, 100,000 beats, every third flagged."""
    n, rng = 24 * 3600 * 360, np.random.default_rng(0)
    block = rng.normal(size=1 << 18)

    class Day(Signal):
        def __init__(self):
            self.fs_hz, self.n_samples, self.start, self.units = 360.0, n, None, ["mV"]

        def read(self, lead, start, stop):
            return np.resize(block, stop - start)

    table = beats_table(np.arange(100_000) * 311, rng.normal(2.5, 1, 100_000))
    summary = {"recording": "day", "calibrated": True, "level": 3.0, "leads": ["1"], "unreadable": {}, "beats": 1,
               "scored": 1, "flagged": 30_000, "flagged_share": 0.3, "flagged_per_hour": 1, "unreadable_share": 0}
    monkeypatch.setattr(page_data, "read_back", lambda stem, fs: (summary, table, np.empty((0, 2))))
    tracemalloc.start()
    try:
        content = page_data.read_content(tmp_path / "day", Day(), 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(page, "read_content", lambda *recording: content)
    page.write_page(tmp_path / "day", Day(), 0)
    html = (tmp_path / "day.ecgad.html").read_text()
    assert peak < 100e6 and len(html) < 15e6 and "The 555 of highest level, of\n30,000 flagged" in html


def test_of_very_many_beats_the_extreme_and_those_in_strips_are_kept(monkeypatch):
    monkeypatch.setattr(page_data, "BEATS", 20)
    level = np.random.default_rng(0).normal(size=97)
    level[40:60] = np.nan
    drawn = page_data.drawn_beats(beats_table(np.arange(97) * 100, level), np.array([[1950, 2201]]))
    wanted = {20, 21, 22}
    for first in range(0, 97, 10):
        group = range(first, min(first + 10, 97))
        if not np.isnan(level[group]).all():
            wanted |= {max(group, key=lambda k: level[k]), min(group, key=lambda k: level[k])}
    assert wanted <= set(np.flatnonzero(drawn)) <= wanted | set(range(40, 60))


# --- numbers --------------------------------------------------------------------------------------

@pytest.mark.parametrize("signal, step", [
    (np.linspace(-2, 3, 5001), 1e-4), (np.full(50, 7.5), 1e-9), (np.array([0.25]), 1e-9), (np.full(9, np.nan), 0),
    (np.append(np.sin(np.arange(5000)), [1e30, np.nan]), 0.01), (np.empty(0), 0)])
def test_int16_gives_the_signal_back(signal, step):
    (stored,), offset, scale = page_data.quantised(signal.astype(np.float32))
    back = np.where(stored == MISSING, np.nan, offset + scale * stored)
    usual = ~(np.abs(signal) > 1e3)
    np.testing.assert_allclose(back[usual], signal[usual], atol=step)
    assert np.isfinite(back[~usual]).all() and (back[~usual] > 100).all()


def test_heart_rate_and_flagged_share_of_stretches():
    table = beats_table([100, 900, 1500, 2500], [1, 5, np.nan, 4], rr=[0.5, 0.75, 0.1, 9.0])
    content = type("C", (), {"table": table, "n_samples": 3000, "fs_hz": 100})
    bins = page_data.binned(content)
    np.testing.assert_array_equal(bins["left"], [0, 10, 20])
    np.testing.assert_allclose(bins["rate"], [(120 + 80) / 2, np.nan, np.nan])
    np.testing.assert_allclose(bins["flagged"], [50, np.nan, 100])


def test_spans_are_joined_up_to_a_gap():
    spans = np.array([[0, 2], [2, 4], [5, 6], [9, 10]])
    assert page_data.joined(spans).tolist() == [[0, 4], [5, 6], [9, 10]]
    assert page_data.joined(spans, 1).tolist() == [[0, 6], [9, 10]]
    assert page_data.joined(np.empty((0, 2))).shape == (0, 2)


# --- with detect.py -------------------------------------------------------------------------------

def test_page_is_written_later_from_what_is_there(folder, monkeypatch, capsys):
    first = (folder / "r.ecgad.html").read_text()
    (folder / "r.ecgad.html").unlink()
    monkeypatch.setattr(detect, "detect", lambda *a: pytest.fail("computed again"))
    run(folder / "r.csv", "--fs", 360, "--level", 2.5, "--html")
    assert len((folder / "r.ecgad.html").read_text()) == pytest.approx(len(first), abs=200)
    assert "done before" in capsys.readouterr().out
    before = (folder / "r.ecgad.html").stat().st_mtime_ns
    run(folder / "r.csv", "--fs", 360, "--level", 2.5, "--html")
    run(folder / "r.csv", "--fs", 360, "--level", 2.5)
    assert (folder / "r.ecgad.html").stat().st_mtime_ns == before


def test_page_does_not_outlive_what_it_was_drawn_from(folder):
    run(folder / "r.csv", "--fs", 360, "--level", 3.5)
    assert not (folder / "r.ecgad.html").exists()
    run(folder / "r.csv", "--fs", 360, "--level", 3.5, "--html")
    assert "3.50 (asked for)" in " ".join((folder / "r.ecgad.html").read_text().split())
    assert not list(folder.glob(".part-*"))


def test_damaged_table_names_the_remedy(folder):
    (folder / "r.ecgad.html").unlink()
    (folder / "r.ecgad.csv").write_text("time_s,sample\n1,2\n")
    with pytest.raises(UserError, match=r"r\.ecgad\..*not as detect.py wrote them.*--force"):
        run(folder / "r.csv", "--fs", 360, "--level", 2.5, "--html")
    assert not (folder / "r.ecgad.html").exists()


def variant(made, folder, name, change):
    """Page of the module's recording as if detect.py had found something else: change(summary, table)."""
    summary, table = json.loads((made / "r.ecgad.json").read_text()), pd.read_csv(made / "r.ecgad.csv")
    table = change(summary, table)
    summary["flagged"] = int(table["flag"].sum())
    table.to_csv(folder / f"{name}.ecgad.csv", index=False)
    (folder / f"{name}.ecgad.json").write_text(json.dumps(summary))
    shutil.copy(made / "r.ecgad", folder / f"{name}.ecgad")
    with reader.open_recording(made / "r.csv", 360) as recording:
        page.write_page(folder / name, recording, 0)


def all_flagged(summary, table):
    summary["level"] = None  # minus infinity: as many alarms an hour as there are beats
    return table.assign(flag=(table["state"] == "scored").astype(int))


@pytest.fixture(scope="module")
def odd(made, tmp_path_factory):
    """{kind: page} of recordings with little, or much, in them."""
    folder = tmp_path_factory.mktemp("odd")
    kinds = {"flat": np.zeros(20 * 360), "missing": np.full(20 * 360, np.nan), "sample": np.array([0.5])}
    for kind, samples in kinds.items():
        np.save(folder / f"{kind}.npy", samples)
    run(folder, "--fs", 360, "--html")
    variant(made, folder, "none flagged", lambda summary, table: table.assign(flag=0))
    variant(made, folder, "all flagged", all_flagged)
    variant(made, folder, "one beat", lambda summary, table: table[table["flag"] == 1][:1])
    return {page.name[:-len(".ecgad.html")]: page for page in sorted(folder.glob("*.html"))}


def test_recordings_with_little_in_them_have_a_page(odd):
    texts = {kind: " ".join(Tags(page.read_text()).text.split()) for kind, page in odd.items()}
    assert {kind for kind, text in texts.items() if "No beat is flagged" in text} == {
        "flat", "missing", "sample", "none flagged"} and len(texts) == 6
    assert "100.0 % of the time: flat 100.0 %" in texts["flat"] and "The only flagged beat." in texts["one beat"]
    assert re.search(r"Level to flag ?none", texts["all flagged"])


# --- in a browser ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs: python -m pip install selenium==4.51.0")
    if not (CHROMIUM.exists() and CHROMEDRIVER.exists()):
        pytest.skip("no chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "window-size=1400,1000",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


MODELS = """
const model = (name) => Bokeh.documents[0].get_model_by_name(name)
const shown = () => [model("shown").start, model("shown").end]
const line = (name) => model(name).renderers[0].data_source.data
const deep = (root, selector) => [...root.querySelectorAll("*")].flatMap(
  (e) => [...(e.matches(selector) ? [e] : []), ...(e.shadowRoot ? deep(e.shadowRoot, selector) : [])])
const middle = (e) => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] }
"""


def ask(driver, script):
    return driver.execute_script(MODELS + script)


def until(driver, script):
    """The first true answer of a script; fails after ten seconds."""
    for _ in range(200):
        if answer := ask(driver, script):
            return answer
        time.sleep(0.05)
    pytest.fail(f"never: {script}\n{driver.get_log('browser')}")


def opened(driver, page):
    driver.get(page.as_uri())
    until(driver, "return document.documentElement.dataset.ready")


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] not in ("INFO", "DEBUG")]


def drag(driver, at, to):
    from selenium.webdriver.common.action_chains import ActionChains
    actions = ActionChains(driver)
    pointer = actions.w3c_actions.pointer_action
    pointer.move_to_location(*map(int, at)).pointer_down()
    for share in (0.3, 0.6, 1):
        pointer.move_to_location(*(int(a + share * (b - a)) for a, b in zip(at, to)))
    pointer.pointer_up()
    actions.perform()


def click(driver, script):
    """A true click in the middle of the element that a script returns."""
    from selenium.webdriver.common.action_chains import ActionChains
    x, y = ask(driver, f"const e = {script}; e.scrollIntoView({{block: 'center'}}); return middle(e)")
    actions = ActionChains(driver)
    actions.w3c_actions.pointer_action.move_to_location(int(x), int(y)).click()
    actions.perform()


def test_browser_opens_the_page_without_a_complaint_or_a_load(browser, made):
    opened(browser, made / "r.ecgad.html")
    assert complaints(browser) == [] and ask(browser, "return performance.getEntriesByType('resource').length") == 0
    assert browser.title == "r: flagged beats"
    assert ask(browser, "return shown()") == pytest.approx([0, 120_000])
    assert ask(browser, "return document.documentElement.scrollWidth <= window.innerWidth")


def test_browser_row_of_the_table_shows_its_strip_and_moves_the_plots(browser, made):
    opened(browser, made / "r.ecgad.html")
    rows = sorted((r for r in csv.DictReader((made / "r.ecgad.csv").open()) if r["flag"] == "1"),
                  key=lambda r: -float(r["level"]))
    signal = np.loadtxt(made / "r.csv", skiprows=1)
    assert "Beat 1 of" in ask(browser, "return document.getElementById('shown').textContent")
    click(browser, "deep(document, '.slick-row')[2]")
    until(browser, "return document.getElementById('shown').textContent.startsWith('Beat 3 of')")
    at, drawn = int(rows[2]["sample"]), ask(browser, "return line('strip')")
    cut = signal[max(0, at - 1800):at + 1801]
    np.testing.assert_allclose(np.array(drawn["y"], float), cut, atol=1e-4)
    np.testing.assert_allclose(drawn["x"], (np.arange(len(cut)) + max(0, at - 1800) - at) / 360, atol=1e-9)
    marks = ask(browser, "return model('strip').renderers.slice(1).map((r) => r.data_source.data.text)")
    near = [r for r in csv.DictReader((made / "r.ecgad.csv").open()) if abs(int(r["sample"]) - at) <= 1800]
    assert sorted(marks[2]) == sorted(f"{float(r['level']):.1f}" for r in near if r["flag"] == "1")
    assert len(marks[0]) == sum(r["flag"] == "0" and r["state"] == "scored" for r in near)
    start, end = ask(browser, "return shown()")
    assert start <= 1000 * at / 360 <= end and end - start == pytest.approx(30_000)
    assert complaints(browser) == []


def test_browser_zoom_of_one_plot_moves_the_others(browser, made):
    opened(browser, made / "r.ecgad.html")
    signal = np.loadtxt(made / "r.csv", skiprows=1)
    whole = len(ask(browser, "return line('signal').x"))
    x, y, width = ask(browser, """const e = Bokeh.index.find_one(model("level")).el; e.scrollIntoView()
        const r = e.getBoundingClientRect(); return [r.x, r.y + r.height / 2, r.width]""")
    drag(browser, (x + 0.3 * width, y), (x + 0.4 * width, y))
    start, end = until(browser, "return shown()[1] < 100000 && shown()")
    assert 8_000 < end - start < 20_000
    drawn = until(browser, "return line('signal').x[0] > 1000 && line('signal')")
    first, last = (round(drawn["x"][k] * 0.36) for k in (0, -1))
    assert abs(first - start * 0.36) < 12 and abs(last - end * 0.36) < 12 and whole > 3000
    if last - first < 2000:
        np.testing.assert_allclose(np.array(drawn["y"], float), signal[first:last + 1], atol=1e-4)
    assert ask(browser, "return ['level', 'rate', 'signal'].map((n) => model(n).x_range.id === model('shown').id)") == [
        True] * 3
    browser.find_element("xpath", "//button[text()='Whole recording']").click()
    assert until(browser, "return shown()[0] === 0 && shown()")[1] == pytest.approx(120_000)
    assert complaints(browser) == []


def test_browser_is_usable_from_the_keyboard(browser, made):
    from selenium.webdriver.common.keys import Keys
    opened(browser, made / "r.ecgad.html")
    button = browser.find_element("xpath", "//button[text()='Zoom in']")
    button.send_keys(Keys.ENTER)
    assert until(browser, "return shown()[1] < 119999 && shown()") == pytest.approx([30_000, 90_000])
    browser.find_element("xpath", "//button[text()='Earlier']").send_keys(Keys.SPACE)
    assert until(browser, "return shown()[0] < 29999 && [shown()]")[0] == pytest.approx([0, 60_000])
    browser.find_element("xpath", "//button[text()='Next lower level']").send_keys(Keys.ENTER)
    until(browser, "return document.getElementById('shown').textContent.startsWith('Beat 2 of')")


def test_browser_draws_a_long_recording_from_extremes_and_strips(browser, folder, monkeypatch):
    monkeypatch.setattr(page_data, "FULL_SAMPLES", 3 * 3601)
    monkeypatch.setattr(page_data, "ENVELOPE", 4000)
    with reader.open_recording(folder / "r.csv", 360) as recording:
        page.write_page(folder / "r", recording, 0)
    opened(browser, folder / "r.ecgad.html")
    signal = np.loadtxt(folder / "r.csv", skiprows=1)
    text = browser.find_element("tag name", "main").text
    assert "The 3 of highest level" in text and "at full rate in the 10 s about" in text
    drawn = np.array(ask(browser, "return line('signal').y"), float)
    assert np.nanmax(drawn) == pytest.approx(np.nanmax(signal), abs=1e-3)
    assert np.nanmin(drawn) == pytest.approx(np.nanmin(signal), abs=1e-3)
    at = int(ask(browser, "return Bokeh.documents[0].roots()[1].source.data.sample[0]"))
    strip = np.array(ask(browser, "return line('strip').y"), float)
    np.testing.assert_allclose(strip, signal[max(0, at - 1800):at + 1801], atol=1e-3)
    ask(browser, f"model('shown').setv({{start: {(at - 900) / 0.36}, end: {(at + 900) / 0.36}}})")
    drawn = until(browser, "return line('signal').x.length < 1810 && line('signal')")
    first = round(drawn["x"][0] * 0.36)
    assert abs(first - (at - 900)) <= 1 and 1800 < len(drawn["y"])
    np.testing.assert_allclose(np.array(drawn["y"], float), signal[first:first + len(drawn["y"])], atol=1e-3)
    assert complaints(browser) == []


def test_browser_runs_no_text_of_the_recording(browser, folder):
    summary = json.loads((folder / "r.ecgad.json").read_text())
    summary |= {"recording": HOSTILE, "lead": HOSTILE, "leads": [HOSTILE], "lead_chosen": HOSTILE, "calibrated": False}
    (folder / "r.ecgad.json").write_text(json.dumps(summary))
    with reader.open_recording(folder / "r.csv", 360) as recording:
        recording.units[0] = HOSTILE
        page.write_page(folder / "r", recording, 0)
    opened(browser, folder / "r.ecgad.html")
    assert browser.find_element("tag name", "h1").text == HOSTILE and browser.title.startswith(HOSTILE)
    assert ask(browser, "return window.ran === undefined") and complaints(browser) == []


def test_browser_opens_recordings_with_little_in_them(browser, odd):
    for kind in ("missing", "sample", "one beat", "all flagged"):
        opened(browser, odd[kind])
        assert complaints(browser) == [], kind
