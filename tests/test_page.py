"""The page of a recording: what it holds, that it is bounded, safe, and works in a browser."""

import json
import re
import shutil
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from bokeh.core.serialization import Deserializer
from conftest import Leads, scored_beats
from numpy.testing import assert_allclose, assert_array_equal

import detect
from pipeline import simulated_ecg
from pipeline.artefacts import without_nan
from recording import page, page_data
from recording.page_data import FLAGGED, MISSING, UNSCORED, USUAL
from recording.scored import summary_of

HOSTILE = '</script><script>window.ran=1</script><img src=x onerror="window.ran=1">$$x$$'
CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")


def run(*argv):
    detect.main([str(a) for a in (*argv, "--threads", 1)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a simulated record of two minutes with a gap, and detect.py's files of it."""
    folder = tmp_path_factory.mktemp("made")
    simulated_ecg.write_database(folder, ("s02",), duration_s=120, seed=5)
    signal = wfdb.rdrecord(str(folder / "s02")).p_signal[:, 0]
    signal[60 * 360:75 * 360] = np.nan
    np.savetxt(folder / "r.csv", signal, fmt="%.4f", header="MLII (mV)", comments="")
    run(folder / "r.csv", "--fs", 360, "--excess", 2.5, "--html")
    return folder


def page_of(path, scored, recording, **more):
    """Write the page; more: what the summary says otherwise."""
    summary = summary_of(scored, recording)
    summary |= {"lead_chosen": "asked for", "excess_rule": "asked for"} | more
    page.write_page(path, scored, without_nan(summary), recording)
    return path.read_text()


def stored_in(html):
    """{argument of page.js: its value} of a page, decoded by bokeh."""
    text = re.search(r'<script type="application/json" id="[^"]*">(.*?)</script>', html,
                     re.DOTALL).group(1)
    (stored,) = json.loads(unescape(text)).values()
    _, callbacks = Deserializer().decode([stored["roots"], stored["callbacks"]])
    return callbacks["document_ready"][0].args


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.text = ""
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


# --- what a page holds ----------------------------------------------------------------------------

def flagged_of(folder):
    """(rows of all beats, rows of the flagged ones, highest first) of a recording's table."""
    table = pd.read_csv(folder / "r.ecgad.csv")
    flagged = table[table["flag"] == 1]
    return table, flagged.sort_values("excess", ascending=False, kind="stable")


def test_page_holds_the_signal_the_beats_and_the_table_of_the_other_files(made):
    html = (made / "r.ecgad.html").read_text()
    table, flagged = flagged_of(made)
    args = stored_in(html)
    signal = np.loadtxt(made / "r.csv", skiprows=1)
    stored = args["full"].data["v"]
    assert stored.dtype == np.int16
    back = np.where(stored == MISSING, np.nan, args["offset"] + args["scale"] * stored)
    assert_allclose(back, signal, atol=1e-4)
    beats = args["beats"].data
    assert_array_equal(beats["sample"], table["sample"])
    wanted = np.where(table["state"] == "scored", USUAL, UNSCORED)
    wanted[flagged.index] = FLAGGED
    assert_array_equal(beats["state"], wanted)

    listed = args["rows"].data
    assert len(flagged) > 3 and list(flagged["sample"]) == list(listed["sample"])
    assert_allclose(listed["excess"], flagged["excess"], atol=1e-5)
    assert list(listed["kind"]) == list(flagged["kind"])
    assert_array_equal([args["unreadable"].data[x] for x in ("x0", "x1")], [[60e3], [80e3]])
    text = Tags(html).text
    share = json.loads((made / "r.ecgad.json").read_text())["unreadable_share"]
    for words in (f"All {len(flagged)} flagged beats", "Research code, not a medical device",
                  "2.50\n(asked for)", f"{100 * share:.1f} % of the time",
                  "00:02:00.0 (h:min:s) at 360 Hz"):
        assert words in text, words


def test_page_loads_nothing_and_says_its_language_and_title(made):
    html = (made / "r.ecgad.html").read_text()
    tags = Tags(html).tags
    assert ("html", {"lang": "en"}) in tags and "<title>r: flagged beats</title>" in html
    loading = {"src", "href", "data", "srcset", "action"}
    assert not [tag for tag, attrs in tags if loading & set(attrs)]
    styles = " ".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert "url(" not in styles and "@import" not in styles


def test_page_fits_its_files(made, tmp_path, capsys):
    """It can be asked for later, is not made twice, and does not outlive what it is of."""
    shutil.copytree(made, tmp_path / "in")
    path = tmp_path / "in" / "r.ecgad.html"

    def again(excess, *flags):
        run(tmp_path / "in" / "r.csv", "--fs", 360, "--excess", excess, *flags)
        return "done before" in capsys.readouterr().out

    path.unlink()
    assert not again(2.5, "--html")
    assert again(2.5, "--html") and again(2.5) and path.exists()
    assert not again(3.5) and not path.exists()


def hostile_page(path):
    """Page of a recording whose name, lead and unit are HOSTILE."""
    recording = Leads([np.zeros(3000)])
    recording.leads = recording.units = [HOSTILE]
    recording.calibrated = [False]
    scored = scored_beats([500], [5], 3000, name=HOSTILE, lead=HOSTILE, unit="file's unit")
    return page_of(path, scored, recording, lead_chosen=HOSTILE)


def test_untrusted_text_is_text(tmp_path):
    """Names and units of a file neither end a script nor begin a tag, nor are mathematics."""
    html = hostile_page(tmp_path / "r.html")
    parsed = Tags(html)
    stored = re.search(r'<script type="application/json".*?</script>', html, re.DOTALL).group()
    assert parsed.text.count(HOSTILE) == 6 and "<script>window" not in html and "$$" not in stored
    assert "img" not in dict(parsed.tags)
    scored = scored_beats([500], [5], 3000, name="caf\udce9")  # no UTF-8
    assert "<h1>caf?</h1>" in page_of(tmp_path / "r.html", scored, Leads([np.zeros(3000)]))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """{kind: page} of recordings with little, or much, in them."""
    folder = tmp_path_factory.mktemp("odd")
    everything = {
        "sample": (scored_beats([], [], 1), np.array([0.5])),
        "missing": (scored_beats([], [], 3000), np.full(3000, np.nan)),
        "none flagged": (scored_beats([500, 900], [1, 2], 3000), np.zeros(3000)),
        "one beat": (scored_beats([500], [5], 3000), np.sin(np.arange(3000))),
        "all flagged": (scored_beats([500, 900], [1, 2], 3000, line=-np.inf), np.zeros(3000))}
    for kind, (scored, samples) in everything.items():
        page_of(folder / f"{kind}.html", scored, Leads([samples]))
    return {kind: folder / f"{kind}.html" for kind in everything}


def test_recordings_with_little_in_them_have_a_page(odd):
    texts = {kind: " ".join(Tags(path.read_text()).text.split()) for kind, path in odd.items()}
    without = {kind for kind, text in texts.items() if "No beat is flagged" in text}
    assert without == {"sample", "missing", "none flagged"}
    assert "excess none (asked for)" in texts["all flagged"]


# --- in a browser ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver",
                                    reason="needs: python -m pip install selenium==4.51.0")
    if not (CHROMIUM.exists() and CHROMEDRIVER.exists()):
        pytest.skip("no chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("headless", "no-sandbox", "disable-gpu", "window-size=1400,1000",
                 "disable-background-networking",
                 f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


def ask(driver, script):
    return driver.execute_script("""
        const model = (name) => Bokeh.documents[0].get_model_by_name(name)
        const shown = () => [model("shown").start, model("shown").end]
        const line = (name) => model(name).renderers[0].data_source.data
        const told = () => document.getElementById("shown").textContent
    """ + script)


def until(driver, script):
    """The first true answer of a script; fails after ten seconds."""
    for _ in range(200):
        if answer := ask(driver, script):
            return answer
        time.sleep(0.05)
    pytest.fail(f"never: {script}\n{driver.get_log('browser')}")


def opened(driver, path):
    driver.get(path.as_uri())
    until(driver, "return document.documentElement.dataset.ready")


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser")
            if entry["level"] not in ("INFO", "DEBUG")]


def press(driver, label, key):
    driver.find_element("xpath", f"//button[text()='{label}']").send_keys(key)


def test_browser_shows_a_beat_and_moves_all_plots_from_the_keyboard(browser, made):
    from selenium.webdriver.common.keys import Keys
    opened(browser, made / "r.ecgad.html")
    assert ask(browser, "return performance.getEntriesByType('resource').length") == 0
    assert ask(browser, "return ['excess', 'rate', 'signal'].every("
                        "(n) => model(n).x_range.id === model('shown').id)")
    press(browser, "Zoom in", Keys.ENTER)
    zoomed = until(browser, "return shown()[1] < 119999 && shown()")
    assert zoomed == pytest.approx([30_000, 90_000])
    press(browser, "Earlier", Keys.SPACE)
    assert until(browser, "return shown()[0] < 29999 && [shown()]")[0] == pytest.approx([0, 60_000])

    press(browser, "Next lower score", Keys.ENTER)
    until(browser, "return told().startsWith('Beat 2 of')")
    table, flagged = flagged_of(made)
    second = flagged.iloc[1]
    assert f"excess {second['excess']:.1f}" in ask(browser, "return told()")
    at = second["sample"]
    samples = np.arange(max(0, at - 1800), at + 1801)
    drawn = ask(browser, "return line('strip')")
    assert_allclose(np.array(drawn["y"], float), np.loadtxt(made / "r.csv", skiprows=1)[samples],
                    atol=1e-4)
    assert_allclose(drawn["x"], (samples - at) / 360, atol=1e-9)
    marks = ask(browser,
                "return model('strip').renderers.slice(1).map((r) => r.data_source.data.text)")
    near = table[(table["sample"] - at).abs() <= 1800]
    assert sorted(marks[2]) == sorted(near["excess"][near["flag"] == 1].map("{:.1f}".format))
    assert len(marks[0]) == ((near["flag"] == 0) & (near["state"] == "scored")).sum()
    start, end = ask(browser, "return shown()")
    assert start <= at / 0.36 <= end and end - start == pytest.approx(30_000)
    assert complaints(browser) == []


def test_browser_draws_a_long_recording_from_extremes_and_strips(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page_data, "FULL_SAMPLES", 3 * 1001)
    monkeypatch.setattr(page_data, "ENVELOPE", 4000)
    signal = np.random.default_rng(0).normal(size=20_000)
    scored = scored_beats(np.arange(50, 20_000, 100), np.arange(200) % 50 / 10, 20_000)
    page_of(tmp_path / "r.html", scored, Leads([signal]))
    opened(browser, tmp_path / "r.html")
    text = browser.find_element("tag name", "main").text
    assert "The 3 of highest excess" in text and "at full rate in the 10 s about" in text
    drawn = np.array(ask(browser, "return line('signal').y"), float)
    assert_allclose([drawn.min(), drawn.max()], [signal.min(), signal.max()], atol=1e-3)
    at = int(ask(browser, "return Bokeh.documents[0].roots()[1].source.data.sample[0]"))
    strip = np.array(ask(browser, "return line('strip').y"), float)
    assert_allclose(strip, signal[at - 500:at + 501], atol=1e-3)


def test_browser_runs_no_text_of_the_recording_and_opens_odd_ones(browser, odd, tmp_path):
    hostile_page(tmp_path / "r.html")
    opened(browser, tmp_path / "r.html")
    assert browser.find_element("tag name", "h1").text == HOSTILE
    assert ask(browser, "return window.ran === undefined") and complaints(browser) == []
    for kind, path in odd.items():
        opened(browser, path)
        assert complaints(browser) == [], kind
