"""The page of a recording in a real browser: review, downloads, print, phone, accessibility."""

import base64
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import wfdb
from conftest import Leads, scored_beats
from numpy.testing import assert_allclose, assert_array_equal
from test_page import HOSTILE, flagged_of, hostile_page, made, odd, page_of, review_in  # noqa: F401

import detect
from recording import page_data
from recording.episodes import NO_QRS, RHYTHMS
from recording.summary import urgency

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")


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


def told(driver):
    """(what was said last, the title, what is said of the beat)"""
    return [driver.find_element("id", name).text for name in ("said", "title", "member")]


def saved(driver, folder, button, name):
    """Path of the file `name` that a button of the page saves."""
    driver.execute_cdp_cmd("Browser.setDownloadBehavior",
                           {"behavior": "allow", "downloadPath": str(folder)})
    driver.find_element("id", button).click()
    for _ in range(200):
        # under another name until it is whole
        if (folder / name).exists():
            return folder / name
        time.sleep(0.05)
    pytest.fail("nothing was saved")


def test_browser_moves_all_plots_from_the_keyboard(browser, made):
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
    assert complaints(browser) == []


def test_browser_reviews_by_keys_and_clicks_and_undoes(browser, made):
    opened(browser, made / "r.ecgad.html")
    ask(browser, "localStorage.clear()")
    opened(browser, made / "r.ecgad.html")
    groups = review_in((made / "r.ecgad.html").read_text())["groups"]
    assert len(groups) > 1
    queue = browser.find_element("id", "review")

    # single keys do nothing outside the queue
    browser.find_element("tag name", "body").send_keys("a")
    assert told(browser)[0] == ""
    queue.send_keys("a")
    assert told(browser)[0] == "Group 1: accepted."
    queue.send_keys("j")
    assert told(browser)[1].startswith("Review group 2: ")
    queue.send_keys("r")
    queue.send_keys("V")    # with Shift: the one beat
    assert told(browser)[0].startswith("Beat ") and "accepted as V" in told(browser)[0]
    assert "Kind V" in told(browser)[2]
    queue.send_keys("u")
    assert told(browser)[0].startswith("Undone: beat ") and "Kind N" in told(browser)[2]

    # what was decided is there when the page is opened again, and undone from there
    opened(browser, made / "r.ecgad.html")
    assert browser.find_element("id", "progress").text.startswith("2 of ")
    browser.find_elements("css selector", "#queue button")[1].click()
    browser.find_element("css selector", "[data-do='undo']").click()
    assert told(browser)[0] == "Undone: group 2 is not reviewed."
    assert complaints(browser) == []


def test_browser_saves_what_detect_reads_back(browser, made, tmp_path, capsys):
    for name in ("r.ecgad", "r.ecgad.csv"):
        shutil.copy(made / name, tmp_path)
    table, flagged = flagged_of(made)
    opened(browser, made / "r.ecgad.html")
    ask(browser, "localStorage.clear()")
    opened(browser, made / "r.ecgad.html")

    # untouched, the annotations are those of detect.py, but for the excess beside each beat
    saved(browser, tmp_path, "save-annotations", "r.reviewed").rename(tmp_path / "first.reviewed")
    notes = wfdb.rdann(str(tmp_path / "first"), "reviewed")
    as_found = wfdb.rdann(str(made / "r"), "ecgad")
    assert_array_equal(notes.sample, as_found.sample)
    assert notes.symbol == as_found.symbol and notes.fs == as_found.fs == 360
    assert_array_equal(notes.subtype, as_found.subtype)
    rhythms = [k for k, symbol in enumerate(notes.symbol) if symbol == "+"]
    assert rhythms and [notes.aux_note[k] for k in rhythms] == [as_found.aux_note[k]
                                                                for k in rhythms]

    # the first group is normal, one beat of it is a V after all
    queue = browser.find_element("id", "review")
    for key in "rV":
        queue.send_keys(key)
    first = table[table["review_group"] == 1]
    saved(browser, tmp_path, "save-annotations", "r.reviewed").rename(tmp_path / "page.reviewed")
    saved(browser, tmp_path, "save-table", "r.reviewed.csv")
    detect.main(["--reviewed", str(tmp_path / "r.reviewed.csv")])
    said = capsys.readouterr().out
    assert f"{len(flagged)} flagged: 1 accepted" in said
    assert f"{len(first) - 1} rejected, {len(flagged) - len(first)} left as found" in said

    # detect.py writes the annotations that the page saves
    by_page, by_detect = (wfdb.rdann(str(tmp_path / name), "reviewed") for name in ("page", "r"))
    assert by_page.symbol == by_detect.symbol
    assert_array_equal(by_page.sample, by_detect.sample)
    beat = {sample: symbol for sample, symbol in zip(by_page.sample, by_page.symbol)
            if symbol != "+"}
    letters = [beat[sample] for sample in first["sample"]]
    assert sorted(letters) == sorted(["N"] * (len(first) - 1) + ["V"])


def test_browser_shows_an_episode(browser, made):
    opened(browser, made / "r.ecgad.html")
    found = json.loads((made / "r.ecgad.json").read_text())["episodes"]
    # the most urgent kind is the first on the page
    episode = min(found, key=lambda one: (urgency(one["kind"]), one["start_s"]))
    ask(browser, "document.querySelector('.kind details').open = true")
    browser.find_element("css selector", ".kind button").click()
    start, end = ask(browser, "return shown()")
    assert start <= 1000 * episode["start_s"] and end >= 1000 * min(episode["end_s"], 120)
    assert browser.find_element("id", "episode-said").text.startswith(episode["kind"])
    assert browser.find_elements("css selector", "#episode svg.paper")
    assert complaints(browser) == []


def test_browser_page_is_accessible_and_fits_a_phone(browser, made):
    """axe-core, levels A and AA; nothing wider than a phone."""
    folder = Path(pytest.importorskip("axe_playwright_python").__file__).parent
    opened(browser, made / "r.ecgad.html")
    ask(browser, "document.querySelectorAll('details').forEach((d) => d.open = true)")
    browser.execute_script((folder / "axe.min.js").read_text())
    found = browser.execute_async_script("""
        const done = arguments[0], tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
        axe.run(document, {runOnly: {type: "tag", values: tags}}).then((result) => done(
            [result.passes.length, result.violations.map((v) => [v.id, v.nodes[0].html])]))""")
    assert found[0] > 10 and found[1] == []

    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})
    try:
        opened(browser, made / "r.ecgad.html")
        assert ask(browser, "return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def printed(driver, path):
    """Pages of the report, as Chromium prints it."""
    opened(driver, path)
    pdf = base64.b64decode(driver.execute_cdp_cmd(
        "Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})["data"])
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_browser_prints_two_pages_at_most(browser, made, tmp_path):
    assert 1 <= printed(browser, made / "r.ecgad.html") <= 2

    # sixteen groups, every kind of episode, four warnings
    sample = np.arange(50, 20_000, 100)
    scored = scored_beats(sample, np.full(200, 4.0), 20_000)
    scored.review_group = np.arange(200) % 16 + 1
    scored.mean_beats = (np.linspace(-0.4, 0.6, 100), None, [np.sin(np.arange(100))] * 16)
    kinds = [*RHYTHMS, "pause", "tachycardia", NO_QRS]
    scored.episodes = [{"kind": kind, "start_s": 10.0, "end_s": 20.0, "beats": 10,
                        "rate_per_min": 60.0, "why": "a rule"} for kind in kinds]
    recording = Leads([np.sin(np.arange(20_000) / 9)] * 2)
    recording.leads = ["I", "II"]
    recording.calibrated = [True, True]
    page_of(tmp_path / "r.html", scored, recording, warnings=["a long sentence " * 12] * 4)
    assert printed(browser, tmp_path / "r.html") == 2


def test_browser_draws_a_long_recording_from_extremes_and_strips(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page_data, "FULL_SAMPLES", 3 * 1001)
    monkeypatch.setattr(page_data, "ENVELOPE", 4000)
    signal = np.random.default_rng(0).normal(size=20_000)
    scored = scored_beats(np.arange(50, 20_000, 100), np.arange(200) % 50 / 10, 20_000)
    page_of(tmp_path / "r.html", scored, Leads([signal]))
    opened(browser, tmp_path / "r.html")
    assert "at full rate in the 10 s about" in browser.find_element("tag name", "main").text
    drawn = np.array(ask(browser, "return line('signal').y"), float)
    assert_allclose([drawn.min(), drawn.max()], [signal.min(), signal.max()], atol=1e-3)

    # those of the flagged beats whose strip is kept can be looked at
    seen = re.match(r"Beat \d+ of (\d+) that the page shows of 80, ", told(browser)[2])
    kept = page_data.full_rate(scored, 20_000, 3 * 1001)
    samples = scored.samples[scored.flagged]
    first, last = (samples - 500).clip(0), (samples + 500).clip(max=20_000)
    within = (first[:, None] >= kept[:, 0]) & (last[:, None] <= kept[:, 1])
    assert len(kept) == 3 and int(seen[1]) == within.sum() < 80
    path = browser.find_element("css selector", "#strip path[fill='none'][stroke='#111']")
    assert path.get_attribute("d").count("L") == 1000     # every sample, none of the outline
    assert len(browser.find_elements("css selector", "#strip svg.paper")) == 1
    assert complaints(browser) == []


def test_browser_runs_no_text_of_the_recording_and_opens_odd_ones(browser, odd, tmp_path):
    hostile_page(tmp_path / "r.html")
    opened(browser, tmp_path / "r.html")
    assert browser.find_element("tag name", "h1").text == HOSTILE
    assert ask(browser, "return window.ran === undefined") and complaints(browser) == []
    for kind, path in odd.items():
        opened(browser, path)
        assert complaints(browser) == [], kind
