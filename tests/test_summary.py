"""Many recordings: what is said of the rhythm, which comes first, where it lies, the page."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from conftest import scored_beats

import detect
from pipeline import settings, simulated_ecg
from pipeline.errors import UserError
from recording import cluster, episodes, summary
from recording.beats import joined
from recording.rhythm import rhythm_of
from test_page import HOSTILE
from test_page_browser import browser, complaints  # noqa: F401 (browser is a fixture)


def run(*argv):
    detect.main([str(a) for a in (*argv, "--threads", 1)])


def summary_of(path):
    return json.loads(path.read_text())


# --- the rhythm of one recording ------------------------------------------------------------------

def beats_of(rr_s, kind, gap_s=()):
    """ScoredBeats of intervals before each beat and of letters ("-": not scored); the stretches of
    ten seconds that begin at gap_s are unreadable.
    """
    time_s = np.cumsum(rr_s)
    letters = np.array(list(kind))
    excess = np.where(letters == "-", np.nan, np.where(letters == "N", 0, 5))
    scored = scored_beats(1000 * time_s, excess, 1000 * (time_s[-1] + 1), fs_hz=1000)
    scored.kind = np.where(letters == "-", "", letters)
    scored.beats.unreadable[(np.array(gap_s) // 10).astype(int)] = 1
    scored.episodes = episodes.episodes(time_s, scored.kind, joined(scored.beats))
    return scored


def test_rhythm_is_that_of_a_hand_count():
    """At 75 a minute: eight beats at 150, ten at 40, a pause of 3 s, bigeminy, runs, couplets."""
    usual = [0.8] * 10
    rr_s = [*usual, *[0.4] * 8, *usual, *[1.5] * 10, 3.0, *usual]
    kind = "N" * len(rr_s)
    #      couplets VV, SS; V alone; SV is none; a run of four is no couplet
    more = "NVVNNSSNNVNNSVNNVSSVNNN"
    found = rhythm_of(beats_of(rr_s + [0.8] * len(more), kind + more))
    assert found["rate_highest_per_min"] == pytest.approx(150)
    # eight in a row with the pause: 7 of 1.5 s and one of 3
    assert found["rate_lowest_per_min"] == pytest.approx(60 * 8 / (7 * 1.5 + 3))
    # 52 of 0.8, less the one before the first beat
    assert found["rate_mean_per_min"] == pytest.approx(
        60 * 71 / (52 * 0.8 + 8 * 0.4 + 10 * 1.5 + 3))
    assert found["longest_pause_s"] == pytest.approx(3)
    assert found["longest_pause_at_s"] == pytest.approx(10 * 0.8 + 8 * 0.4 + 8 + 15)
    assert found["v_burden"] == 6 / 72 and found["s_burden"] == 5 / 72
    assert (found["runs"], found["longest_run_beats"], found["couplets"]) == (1, 4, 2)


def test_rhythm_stops_at_what_is_unreadable():
    """Nothing is told across a gap: a pause of 25 s, a run and a couplet would lie in it."""
    gap = beats_of([1.0] * 9 + [25.0] + [1.0] * 9, "NNNNNNNNVVNNNNNNNNN", gap_s=[10, 20])
    found = rhythm_of(gap)
    assert found["longest_pause_s"] == 1 and found["couplets"] == 0
    assert found["rate_lowest_per_min"] == found["rate_highest_per_min"] == 60
    few = rhythm_of(beats_of([1.0] * 5, "NNNNN"))
    assert few["rate_mean_per_min"] == 60 and few["rate_lowest_per_min"] is None
    nothing = rhythm_of(beats_of([1.0] * 5, "-----"))
    assert set(nothing.values()) == {None} and rhythm_of(scored_beats([], [], 3000)) == nothing


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """Folder of a simulated record of three minutes with two leads, and detect.py's output."""
    folder = tmp_path_factory.mktemp("brought")
    simulated_ecg.write_database(folder, ("s02",), duration_s=180, seed=5)
    run(folder / "s02.hea")
    return folder


def test_rhythm_of_a_record_is_that_of_its_experts(brought):
    """Counted from the annotations alone, with as much tolerance as missed beats may make."""
    notes = wfdb.rdann(str(brought / "s02"), "atr")
    beat = np.isin(notes.symbol, list(settings.AAMI_OF))
    symbol = np.array(notes.symbol)[beat]
    time_s = notes.sample[beat] / 360
    rates = 480 / (time_s[8:] - time_s[:-8])
    found = summary_of(brought / "s02.ecgad.json")["rhythm"]
    assert found["rate_mean_per_min"] == pytest.approx(60 / np.diff(time_s).mean(), rel=0.02)
    assert found["rate_lowest_per_min"] == pytest.approx(rates.min(), rel=0.02)
    assert found["rate_highest_per_min"] == pytest.approx(rates.max(), rel=0.02)
    assert found["longest_pause_s"] == pytest.approx(np.diff(time_s).max(), abs=0.03)
    assert found["longest_pause_at_s"] == pytest.approx(time_s[np.diff(time_s).argmax()], abs=0.03)
    # a fusion beat may be told V
    assert (symbol == "V").mean() <= found["v_burden"] <= np.isin(symbol, ("V", "F")).mean()
    assert found["s_burden"] == pytest.approx((symbol == "A").mean(), abs=0.015)


# --- which comes first ----------------------------------------------------------------------------

def summary_with(found=(), v=0.0, s=0.0, **more):
    """What row_of reads of a summary; found: (kind, seconds) of the episodes, or with a rate."""
    rhythm = dict.fromkeys(("rate_lowest_per_min", "rate_mean_per_min", "rate_highest_per_min",
                            "longest_pause_s", "longest_pause_at_s", "runs", "longest_run_beats",
                            "couplets"), 60)
    return {"lead": "I", "duration_s": 7200, "scored": 9000, "flagged": 90,
            "flagged_per_hour": 45.0, "unreadable_share": 0.125, "warnings": [],
            "simulated_training": False,
            "episodes": [{"kind": kind, "start_s": 5.0, "end_s": 5.0 + length_s,
                          "beats": int(2 * length_s), "rate_per_min": (*rate, 120.0)[0]}
                         for kind, length_s, *rate in found],
            "rhythm": rhythm | {"v_burden": v, "s_burden": s}} | more


def rows_of(**summaries):
    """Rows of {label: summary, or the text of an error}."""
    return [summary.failed_row(label, made) if isinstance(made, str)
            else summary.row_of(label, made, f"{label}.ecgad.png")
            for label, made in summaries.items()]


def test_what_threatens_life_comes_first_then_failures_doubts_and_burden(tmp_path):
    rows = rows_of(
        burden=summary_with(v=0.02), most=summary_with(v=0.2), s=summary_with(v=0.02, s=0.1),
        quiet=summary_with(), many=summary_with(flagged_per_hour=90.0),
        doubt=summary_with([("pause", 4)], warnings=["few beats"]),
        nothing=summary_with(scored=0, v=None, s=None, rhythm=rhythm_of(scored_beats([], [], 10))),
        bad="bad.hea: no header",
        af=summary_with([("atrial fibrillation, suspected", 3000)], v=0.5),
        slow=summary_with([("slow ventricular run", 60)]),
        svt=summary_with([("supraventricular run", 20)]), pause=summary_with([("pause", 2.5)]),
        rest=summary_with([("pause", 3)] * 2),
        vt=summary_with([("ventricular run", 2, 190.4)] * 9), long_vt=summary_with([
            ("ventricular run", 31), ("ventricular run", 1)], warnings=["few beats"]),
        asystole=summary_with([("asystole", 7), ("pause", 2)]),
        vf=summary_with([(episodes.NO_QRS, 10), ("asystole", 90)]))
    page = summary.write(tmp_path, rows)
    table = pd.read_csv(tmp_path / "summary.csv")
    order = ["vf", "asystole", "vt", "long_vt", "bad", "doubt", "nothing", "rest", "pause", "svt",
             "af", "slow", "most", "s", "burden", "many", "quiet"]
    assert table["recording"].tolist() == order
    assert table["look_first"].tolist() == list(range(1, 18))
    assert re.findall(r'(?s)<th scope="row">(?:<a[^>]*>)?(\w+)', page.read_text()) == order

    details = table.set_index("recording")["detail"]
    assert list(details[["vf", "vt", "svt"]]) == ["10 s", "4 beats at 190/min",
                                                  "40 beats at 120/min"]
    row = table.set_index("recording").loc["long_vt"]
    assert (row["hours"], row["v_burden_percent"], row["unreadable_percent"]) == (2, 0, 12.5)
    assert (row["ventricular_run_episodes"], row["ventricular_run_s"]) == (2, 32)
    assert (row["file"], row["warnings"]) == ("long_vt.ecgad.png", "few beats")
    failed = table.set_index("recording").loc["bad"]
    assert failed["error"] == "bad.hea: no header" and failed.isna().sum() == len(failed) - 3


def test_every_kind_of_episode_has_its_columns():
    """As episodes.py names them; a new one gets its own."""
    source = Path(episodes.__file__).read_text()
    named = set(re.findall(r'"((?:slow ventricular |ventricular |supraventricular )run|bigeminy|'
                           r'trigeminy|pause|'
                           r'asystole|[a-z]+cardia|atrial[^"]*|fibrillation,[^"]*)"', source))
    assert named == set(summary.COLUMNS)
    table = summary.table_of(rows_of(a=summary_with([("torsade", 4)]), b="bad"))
    assert table["torsade_episodes"].tolist() == [1, pd.NA] and table["torsade_s"][0] == 4


def test_hostile_names_are_text_in_both_files(tmp_path):
    names = [HOSTILE, "=HYPERLINK(1)", "a\nb,c\"", "caf\udce9", "javascript:x", "-aVR"]
    rows = [summary.row_of(name, summary_with(lead=name, warnings=[name]), f"{name}.ecgad.png")
            for name in names] + [summary.failed_row(HOSTILE, HOSTILE)]
    html = summary.write(tmp_path, rows).read_text()
    assert "<script>window" not in html and "<img" not in html and html.count("<script>") == 1
    targets = re.findall(r'href="([^"]*)"', html)
    assert len(targets) == len(names) and "caf%E9.ecgad.png" in targets
    assert all(re.fullmatch(r"[\w.%~/-]+", target) for target in targets)
    table = pd.read_csv(tmp_path / "summary.csv", keep_default_na=False)
    assert len(table) == len(rows) and "a\nb,c\"" in list(table["recording"])
    for column in ("recording", "lead", "warnings", "error"):
        assert not table[column].str.match(r"[=+@-]").any()
    assert set(table["lead"]) > {"'=HYPERLINK(1)", "'-aVR"}


def test_the_list_is_narrow_and_moves_no_cursor():
    found = summary_with([("pause", 3)], warnings=["word " * 60], flagged_share=0.01)
    lines = detect.lines_of("a\x1b[2J\udce9/" + "x" * 60, found).split("\n")
    assert len(lines) > 4 and max(map(len, lines)) <= 120 and lines[1].startswith("  ")
    assert lines[0].startswith("a?[2J?/") and all(line.isprintable() for line in lines)


# --- where it is written --------------------------------------------------------------------------

def test_the_summary_lies_where_the_recordings_do(tmp_path):
    a, b = tmp_path / "in" / "a" / "x.hea", tmp_path / "in" / "b" / "y.hea"
    assert summary.folder_of([a, b], None) == tmp_path / "in"
    assert summary.folder_of([a, a.with_name("z.edf")], None) == a.parent
    assert summary.folder_of([a], "s3://b/out") == "s3://b/out"
    assert summary.folder_of(["s3://b/in/x.hea", "s3://b/in2/y.hea"], None) == "s3://b"
    for apart in (["s3://b/x.hea", "s3://c/y.hea"], [a, "s3://b/x.hea"],
                  [Path("/a/x.hea"), Path("/b/x.hea")]):
        assert summary.folder_of(apart, None) is None
    assert summary.label_of(a.with_suffix(""), tmp_path / "in") == "a/x"
    assert summary.label_of("s3://b/in/x", "s3://b") == "in/x"


def two(brought, folder):
    """A folder with two copies of the simulated record, in folders of their own."""
    for name in ("a", "b"):
        shutil.copytree(brought, folder / name, ignore=shutil.ignore_patterns("*ecgad*"))
    return folder


def test_a_run_sums_up_what_was_done_before_and_says_what_to_open(brought, tmp_path, capsys,
                                                                    monkeypatch):
    folder = two(brought, tmp_path)
    (folder / "bad.hea").write_text("no header at all\n")
    stopped = cluster.attempt

    def stop(task, item):
        if item.parent.name == "b":
            raise KeyboardInterrupt
        return stopped(task, item)

    monkeypatch.setattr(cluster, "attempt", stop)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    assert not (folder / "summary.csv").exists()
    monkeypatch.undo()

    with pytest.raises(UserError) as failed:
        run(folder)
    assert str(failed.value).endswith(f"\nopen {folder / 'summary.html'}")
    assert capsys.readouterr().out.count("done before") == 1
    table = pd.read_csv(folder / "summary.csv").set_index("recording")
    assert set(table.index) == {"a/s02", "b/s02", "bad"}
    assert table.loc["bad", "because"] == "failed" and "bad.hea" in table.loc["bad", "error"]
    told = summary_of(folder / "b" / "s02.ecgad.json")
    assert table.loc["b/s02", "flagged"] == told["flagged"]
    assert table.loc["b/s02", "v_burden_percent"] == pytest.approx(
        100 * told["rhythm"]["v_burden"], abs=1e-3)

    # neither a recording of its own, nor refused the next time; pages take the place of pictures
    (folder / "bad.hea").unlink()
    run(folder, "--html")
    assert capsys.readouterr().out.split("\n")[-2] == f"open {folder / 'summary.html'}"
    table = pd.read_csv(folder / "summary.csv")
    assert table["file"].tolist() == ["a/s02.ecgad.html", "b/s02.ecgad.html"]
    assert all((folder / file).exists() for file in table["file"])


@pytest.mark.parametrize("name", ["summary.csv", "summary.html"])
def test_a_file_of_the_users_own_is_not_overwritten(brought, tmp_path, name):
    folder = two(brought, tmp_path)
    (folder / name).write_text("recording,age\n1,50\n")
    with pytest.raises(UserError, match=f"{name}: was not written by detect.py.*--out"):
        run(folder / "a" / "s02.hea", folder / "b" / "s02.hea")
    assert (folder / name).read_text().startswith("recording,age")
    assert not (folder / "a" / "s02.ecgad.json").exists()


def test_a_summary_that_cannot_be_written_is_said_beside_what_was_done(brought, tmp_path, capsys):
    folder = two(brought, tmp_path)
    (folder / "summary.html").mkdir()
    with pytest.raises(UserError) as caught:
        run(folder)
    said = " ".join(str(caught.value).split())
    assert re.search("the summary cannot be written: .*summary.html.*--out", said)
    assert (folder / "b" / "s02.ecgad.json").exists()
    run(folder / "a" / "s02.hea")
    assert capsys.readouterr().out.endswith(f"\nopen {folder / 'a' / 's02.ecgad.png'}\n")


# --- in a browser ---------------------------------------------------------------------------------

def opened(driver, path):
    driver.get(path.as_uri())
    for _ in range(400):
        if driver.execute_script("return document.documentElement.dataset.ready"):
            return
        time.sleep(0.05)
    pytest.fail(f"never ready: {driver.get_log('browser')}")


def names_shown(driver):
    return driver.execute_script("return [...document.querySelectorAll('tbody tr')]"
                                 ".filter((r) => !r.hidden).map((r) => r.cells[0].innerText)")


def heading(driver, words):
    return driver.find_element("xpath", f"//thead//button[contains(., '{words}')]")


def sorted_by(driver):
    return driver.execute_script("return [...document.querySelectorAll('[aria-sort]')].map("
                                 "(h) => [h.innerText.trim(), h.getAttribute('aria-sort')])")


def test_browser_sorts_from_the_keyboard_and_filters(browser, tmp_path):  # noqa: F811
    from selenium.webdriver.common.keys import Keys
    rows = rows_of(b=summary_with(v=0.09), c=summary_with(v=0.1), a=summary_with(v=0.02),
                   bad="bad.hea: no header", vf=summary_with([(episodes.NO_QRS, 10)]))
    opened(browser, summary.write(tmp_path, rows))
    first = ["vf", "bad", "c", "b", "a"]
    assert names_shown(browser) == first and sorted_by(browser) == [["#", "ascending"]]

    burden = heading(browser, "V burden")
    burden.send_keys(Keys.ENTER)
    # numbers as numbers; what is not known comes last both ways
    assert names_shown(browser) == ["c", "b", "a", "vf", "bad"]
    assert sorted_by(browser) == [["V burden (%)", "descending"]]
    burden.send_keys(Keys.SPACE)
    assert names_shown(browser) == ["vf", "a", "b", "c", "bad"]
    assert sorted_by(browser) == [["V burden (%)", "ascending"]]
    heading(browser, "Recording").send_keys(Keys.ENTER)
    assert names_shown(browser) == ["a", "b", "bad", "c", "vf"]
    heading(browser, "Look first").send_keys(Keys.ENTER)
    assert names_shown(browser) == first

    box = browser.find_element("id", "filter")
    box.send_keys("FIBRILLATION 10")
    assert names_shown(browser) == ["vf"]
    assert browser.find_element("id", "shown").text == "1 of 5 rows shown"
    box.clear()
    box.send_keys("header")
    assert names_shown(browser) == ["bad"] and complaints(browser) == []
    assert browser.execute_script(
        "return performance.getEntriesByType('resource').length") == 0


def test_browser_shows_a_phone_a_table_that_scrolls_and_runs_no_name(browser,  # noqa: F811
                                                                     tmp_path):
    rows = [summary.row_of(f"{HOSTILE}{k}", summary_with(lead=HOSTILE), "x.png") for k in range(3)]
    page = summary.write(tmp_path, rows)
    size = browser.get_window_size()
    browser.set_window_size(500, 800)
    opened(browser, page)
    wide, view, table, own = browser.execute_script(
        "const t = document.querySelector('.table'); return [document.documentElement.scrollWidth,"
        "document.documentElement.clientWidth, t.scrollWidth, t.clientWidth]")
    browser.set_window_size(size["width"], size["height"])
    assert wide <= view and table > own
    assert names_shown(browser)[0] == f"{HOSTILE}0"
    assert browser.execute_script("return window.ran === undefined") and complaints(browser) == []


def test_ten_thousand_rows_open_quickly(browser, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    rows = [summary.row_of(f"ward/patient-{k:05d}", summary_with(
        [("pause", 3)] * (k % 3), v=v, warnings=["much is unreadable"] * (k % 2)), f"{k}.png")
        for k, v in enumerate(rng.random(10_000))]
    before = time.monotonic()
    opened(browser, summary.write(tmp_path, rows))
    heading(browser, "V burden").click()
    assert len(names_shown(browser)) == summary.AT_FIRST
    browser.find_element("id", "filter").send_keys("patient-0012")
    assert len(names_shown(browser)) == 10
    # about 4 s on two idle cores, 3 of them to write it
    assert time.monotonic() - before < 30

    # all of the rows, in order, where they are asked for, and on paper
    browser.find_element("id", "filter").clear()
    browser.find_element("id", "filter").send_keys(" ")
    browser.find_element("id", "more").click()
    burden = browser.execute_script("return [...document.querySelectorAll('tbody tr')].filter("
                                    "(r) => !r.hidden).map((r) => Number(r.cells[10].innerText))")
    assert len(burden) == 10_000 and burden == sorted(burden, reverse=True)
