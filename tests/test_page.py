"""The page of a recording: what it holds, and that it is bounded and safe."""

import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser

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
from recording import page
from recording.page_data import MISSING, STATES, UNSCORED
from recording.scored import summary_of

HOSTILE = '</script><script>window.ran=1</script><img src=x onerror="window.ran=1">$$x$$'


def run(*argv):
    detect.main([str(a) for a in (*argv, "--threads", 1)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a simulated record of two minutes with a run and a gap, and detect.py's files."""
    folder = tmp_path_factory.mktemp("made")
    simulated_ecg.write_database(folder, ("s02",), duration_s=120, seed=5)
    signal = wfdb.rdrecord(str(folder / "s02")).p_signal
    notes = wfdb.rdann(str(folder / "s02"), "atr")
    ventricular = notes.sample[np.array(notes.symbol) == "V"][0]
    signal[30 * 360:][:4 * 200] = np.tile(signal[ventricular - 110:ventricular + 90], (4, 1))
    signal[60 * 360:75 * 360] = np.nan
    np.savetxt(folder / "r.csv", np.column_stack([signal[:, 0], -signal[:, 0]]), fmt="%.4f",
               delimiter=",", header="MLII (mV),V1 (mV)", comments="")
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
    text = re.search(r'<script type="application/json" id="(?!review-data)[^"]*">'
                     r"(.*?)</script>", html, re.DOTALL).group(1)
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
    """(rows of all beats, rows of the flagged ones) of a recording's table."""
    table = pd.read_csv(folder / "r.ecgad.csv", keep_default_na=False)
    return table, table[table["flag"] == 1]


def review_in(html):
    """What review.js knows beside bokeh's arrays."""
    text = re.search(r'<script type="application/json" id="review-data">(.*?)</script>', html,
                     re.DOTALL).group(1)
    return json.loads(text)


def test_page_holds_the_signal_the_beats_and_the_review_groups_of_the_other_files(made):
    html = (made / "r.ecgad.html").read_text()
    table, flagged = flagged_of(made)
    args = stored_in(html)
    signal = np.loadtxt(made / "r.csv", skiprows=1, delimiter=",")
    for lead in range(2):
        stored = args[f"full{lead}"].data["v"]
        assert stored.dtype == np.int16
        back = np.where(stored == MISSING, np.nan,
                        args["offset"][lead] + args["scale"][lead] * stored)
        assert_allclose(back, signal[:, lead], atol=1e-4)

    beats = args["beats"].data
    assert_array_equal(beats["sample"], table["sample"])
    wanted = np.where(table["state"] == "scored", table["kind"], UNSCORED)
    assert [STATES[k] for k in beats["state"]] == list(wanted)
    assert_array_equal(beats["review_group"], table["review_group"])
    assert_array_equal([args["unreadable"].data[x] for x in ("x0", "x1")], [[60e3], [80e3]])

    groups = review_in(html)["groups"]
    assert sum(row["beats"] for row in groups) == len(flagged) > 3
    for row in groups:
        here = table[table["review_group"] == row["review_group"]]
        assert set(here["kind"]) == {row["kind"]} and len(here) == row["beats"]
        # the mean beat as the signal has it, but for the filter: it goes up where the signal does
        middle = np.searchsorted(review_in(html)["offset_s"], 0)
        assert row["mean"][middle] > 0.5 * signal[here["sample"], 0].mean()

    text = Tags(html).text
    share = json.loads((made / "r.ecgad.json").read_text())["unreadable_share"]
    for words in (f"{len(flagged)} of {(table['state'] == 'scored').sum()} beats flagged",
                  "Research code, not a medical device", "2.50\n(asked for)",
                  f"{100 * share:.1f} % of the time", "00:02:00.0 (h:min:s) at 360 Hz"):
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
    # nothing of it is in a bokeh model
    assert "$$" not in json.dumps(str(stored_in(html)))
    assert parsed.text.count(HOSTILE) == 6 and "<script>window" not in html
    assert review_in(html)["name"] == HOSTILE
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
    without = {kind for kind, text in texts.items() if "There is nothing to review" in text}
    assert without == {"sample", "missing", "none flagged"}
    assert "No beat could be scored" in texts["missing"]
    assert "No beat is flagged of 2 scored" in texts["none flagged"]
    assert "excess none (asked for)" in texts["all flagged"]
