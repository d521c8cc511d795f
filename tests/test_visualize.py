"""Pictures of the shipped results: what is drawn is what scores.npz and metrics.json hold."""

import functools
import shutil
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend
from matplotlib.text import Text
from numpy.testing import assert_array_equal
from overviews import overview, strip
from PIL import Image
from pytest import approx

import config
import visualize
from pipeline import artefacts, figures, settings
from pipeline.errors import UserError
from recording.beats import EXAMPLES
from scoring import beat_parts
from studies import ablation, benchmark_report, network_worth, noise_stress

MOST_CURVES = 5
MOST_LEGEND = 8
PAGE_PX = 830        # a picture in GitHub's column ...
LEAST_PX = 10        # ... and the least size of a font there that can be read
UNITS = ("(s)", "(mV)", "no unit", "%)", "(%", "beats", "fraction of", "(number)")


def stored(name):
    return artefacts.load_json(settings.ROOT / "results" / name, "")


def noise_picture():
    result = stored("noise_stress.json")
    return noise_stress.noise_figure(result["rows"], len(result["records"]), False)


def scaling_picture():
    return benchmark_report.scaling_figure(benchmark_report.stages_of(stored("size.json")))


# pictures of studies and of detect.py
OTHERS = {
    "noise_stress.png": noise_picture,
    "benchmark.png": lambda: benchmark_report.quality_figure(stored("benchmark.json"),
                                                             settings.database("mitdb")),
    "scaling.png": scaling_picture,
    "network_worth.png": lambda: network_worth.worth_figure(stored("network_worth.json")),
    "ablation.png": lambda: ablation.ablation_figure(stored("ablation.json")),
    "detect": lambda: overview(1800, EXAMPLES), "detect strip": strip}


@pytest.fixture(scope="module")
def run():
    return visualize.load_run(settings.database("mitdb"), "beat")


@pytest.fixture(scope="module")
def rendered(run):
    """rendered(name) -> (figure, its pixels, [(text, box)] as drawn); each figure is drawn once."""
    @functools.cache
    def render(name):
        shown = []
        draw_text = Text.draw

        def note_and_draw(text, renderer):
            shown.append(text)
            draw_text(text, renderer)

        with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(figures.STYLE):
            make = OTHERS.get(name, lambda: visualize.draw(name, run))
            canvas = FigureCanvasAgg(make())
            canvas.draw()  # as it is saved; the layout may still move by a pixel in the next one
            pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
            # ticks beyond the axes have texts as well, but are never drawn
            patch.setattr(Text, "draw", note_and_draw)
            canvas.draw()
            shown = [text for text in shown if text.get_visible() and text.get_text().strip()]
            boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
        scale = min(1, PAGE_PX / pixels.shape[1]) * figures.DPI / 72
        assert min(text.get_fontsize() for text in shown) * scale >= LEAST_PX, name
        return canvas.figure, pixels, boxes
    return render


@pytest.fixture
def axes(rendered):
    return lambda name: rendered(name)[0].axes


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A Database whose results are a copy of the shipped ones."""
    entry = config.DATABASES["mitdb"] | {"home": str(tmp_path)}
    monkeypatch.setitem(config.DATABASES, "copy", entry)
    database = settings.database("copy")
    shutil.copytree(folder_of(settings.database("mitdb")), folder_of(database))
    return database


def folder_of(database):
    return database.results_dir("beat", config.SEED)


def edit(database, change=dict, **arrays):
    """Run of the database after `change` of its metrics.json, with other arrays in scores.npz."""
    folder = folder_of(database)
    metrics = artefacts.load_json(folder / "metrics.json", "")
    change(metrics)
    artefacts.write_json(folder / "metrics.json", metrics)
    if arrays:
        path = folder / "scores.npz"
        np.savez(path, **artefacts.load_npz(path, "") | arrays)
    return visualize.load_run(database, "beat")


def words(artist):
    return "\n".join(text.get_text() for text in artist.findobj(Text))


def line(ax, start):
    """The one line of an Axes whose label starts so."""
    found, = [line for line in ax.lines if str(line.get_label()).startswith(start)]
    return found


# --- every picture --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [*visualize.FIGURES, *OTHERS])
def test_texts_are_apart_and_inside_and_large_enough_and_legends_short(name, rendered):
    figure, pixels, boxes = rendered(name)
    height, width, _ = pixels.shape
    for text, box in boxes:
        assert box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2, text
    for (one, a), (other, b) in combinations(boxes, 2):
        across = min(a.y1, b.y1) - max(a.y0, b.y0)
        along = min(a.x1, b.x1) - max(a.x0, b.x0)
        assert along < 1 or across < 3, f"{one!r} overlaps {other!r}"
    for legend in figure.findobj(Legend):
        assert len(legend.get_texts()) <= MOST_LEGEND


@pytest.mark.parametrize("name", visualize.FIGURES)
def test_every_axis_tells_its_unit_and_every_picture_n(name, rendered):
    figure, _, _ = rendered(name)
    for ax in figure.axes:
        labels = [ax.get_ylabel()]
        if len(ax.get_xticks()):  # Axes in one column may have their label below the last of them
            left = ax.get_position().x0
            column = [other for other in figure.axes if abs(other.get_position().x0 - left) < 0.01]
            labels.append("".join(other.get_xlabel() for other in column))
        for label in labels:
            assert any(unit in label for unit in UNITS), label
    assert "n = " in words(figure)


def test_simulated_data_is_marked_in_red_and_other_data_is_not(copy, rendered):
    simulated = edit(copy, lambda metrics: metrics.update(simulated=True))
    marks = visualize.draw("roc.png", simulated).texts
    assert [mark.get_color() for mark in marks] == ["red", "red"]
    assert "SIMULATED" not in words(rendered("roc.png")[0])


# --- one by one -----------------------------------------------------------------------------------

def test_history_marks_the_kept_epoch(run, axes):
    top, _ = axes("training_history.png")
    loss = run.history["validation_loss"]
    kept = line(top, "kept").get_xydata().tolist()
    assert kept == [[run.history["epoch"][loss.argmin()], loss.min()]]


def test_histograms_sum_to_all_beats_and_split_at_the_threshold(run, axes, copy):
    ax, = axes("score_distributions.png")
    for bars in ax.containers:
        assert sum(bar.get_height() for bar in bars) == approx(100)
    assert line(ax, "threshold").get_xdata()[0] == run.threshold
    positive = edit(copy, lambda m: m.update(default_score="qrs_error"))
    ax, = visualize.draw("score_distributions.png", positive).axes
    assert ax.get_xscale() == "log"


def test_curves_are_few_and_have_the_area_and_the_point_that_they_name(run, axes):
    """Threshold, confusion and curve come from one set of scores, so they meet."""
    flagged = run.score >= run.threshold
    abnormal = run.scores["label"] == 1
    sensitivity = flagged[abnormal].mean()
    scores = run.metrics["scores"]
    best = max(run.metrics["baselines"].values(), key=lambda entry: entry["auroc"]["value"])
    shown = [run.entry, scores["self_reference"], scores["combined_same_patient"], scores["mse"],
             best]
    for name, metric, point in (
            ("roc.png", "auroc", (flagged[~abnormal].mean(), sensitivity)),
            ("precision_recall.png", "auprc", (sensitivity, abnormal[flagged].mean()))):
        ax, = axes(name)
        for entry in shown:
            x, y = line(ax, entry["title"] + ": ").get_data()
            assert abs(np.trapezoid(y, x)) == approx(entry[metric]["value"], abs=0.002)
        assert words(ax.figure).count("[") == MOST_CURVES + 1  # and in the legend's title
        assert line(ax, "combined at its").get_xydata()[0] == approx(point, abs=1e-3)
        assert np.abs(line(ax, "combined: ").get_xydata() - point).sum(axis=1).min() < 0.002
    assert line(ax, "prevalence").get_ydata()[0] == approx(abnormal.mean())


def test_numbers_are_those_of_metrics_json(copy):
    """An AUROC that the scores cannot give must appear as written."""
    def change(metrics):
        entry = metrics["scores"]["combined"]
        entry["auroc"].update(value=0.1234, low=0.1111, high=0.2222)
        entry["confusion"].update(tn=1900, fp=100, fn=30, tp=70)

    run = edit(copy, change)
    assert "\ncombined: 0.123 [0.111, 0.222]\n" in words(visualize.draw("roc.png", run))
    ax, = visualize.draw("confusion_matrix.png", run).axes
    cells = [text.get_text() for text in ax.texts]
    assert cells == ["1,900\n95.0 %", "100\n5.0 %", "30\n30.0 %", "70\n70.0 %"]


@pytest.mark.parametrize("changes", [{"protocol": "patient"}, {"simulated": True}])
def test_published_point_only_where_comparable(changes, axes, copy):
    point = line(axes("roc.png")[0], "published: 0.9721").get_xydata()[0]
    assert point == approx((1 - 0.9551, 0.9019))
    other = edit(copy, lambda metrics: metrics.update(changes))
    assert "published:" not in words(visualize.draw("roc.png", other))


def test_symbols_show_n_and_flagged_in_class_order(run, axes):
    ax, = axes("score_by_symbol.png")
    expected = []
    for name in "NLRejAaJSVEF/fQ":
        score = run.score[run.scores["symbol"] == name]
        if len(score):
            expected.append(f"{name}\n{len(score):,}\n{(score >= run.threshold).mean():.1%}")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == expected
    assert [text.get_text() for text in ax.texts] == list("NSVFQ")


def test_records_are_sorted_and_those_left_out_counted(run, axes):
    ax, = axes("auroc_by_record.png")
    names = [tick.get_text().split()[0] for tick in ax.get_yticklabels()]
    rows = run.entry["by_record"]
    own = [rows[name]["auroc"] for name in names]
    assert own == sorted(own) and line(ax, "combined").get_xdata() == approx(own)
    none = sum(row["n_abnormal"] == 0 for row in rows.values())
    assert ax.get_title().endswith(f"shown: {none} without abnormal beats, "
                                   f"{len(rows) - none - len(names)} with too few")


def test_reconstruction_titles_signal_and_error_on_one_scale(run, axes):
    panels = axes("reconstructions.png")
    scores = run.scores
    for i, row in enumerate(scores["example_row"]):
        top, bottom = panels[2 * i:2 * i + 2]
        at = "%02d:%02d" % divmod(scores["sample"][row] // 360, 60)
        sign = "≥" if run.score[row] >= run.threshold else "<"
        assert top.get_title() == (
            f"{scores['symbol'][row]}: record {scores['record'][row]}, {at}, "
            f"error {scores['score_mse'][row]:.2g}\n"
            f"score {run.score[row]:.3g} {sign} threshold {run.threshold:.3g}")
        expected = scores["example_signal"][i], scores["example_recon"][i]
        assert_array_equal([drawn.get_ydata() for drawn in top.lines], expected)
        assert top.lines[0].get_xdata()[[0, 360]].tolist() == [-1, 0]
        drawn = bottom.collections[0].get_datalim(bottom.transData)
        difference = np.subtract(*expected)
        assert (drawn.y0, drawn.y1) == approx((difference.min(), difference.max()))
    for row in (panels[::2], panels[1::2]):
        assert len({ax.get_ylim() for ax in row}) == 1


def test_parts_show_the_named_part_and_the_saved_shares(run, axes):
    *beats, bottom = axes("parts_of_the_beat.png")
    scores = run.scores
    for ax, row in zip(beats, scores["part_row"], strict=True):
        title = beat_parts.TITLES[beat_parts.PARTS[scores["part"][row]]]
        assert f"leads: {title}, {scores['part_strength'][row]:.1f} times" in ax.get_title()
        assert scores["part_strength"][row] >= 1
    shares = run.metrics["parts"].values()
    expected = [100 * row[part] for part in beat_parts.PARTS for row in shares]
    assert [bar.get_width() for bar in bottom.patches] == approx(expected)


def test_latent_space_draws_abnormal_over_normal(run, axes):
    ax, = axes("latent_space.png")
    labels = [points.get_label() for points in ax.collections]
    n = [len(points.get_offsets()) for points in ax.collections]
    assert labels == [f"{name}, n = {(run.scores['aami'] == name).sum():,}" for name in "NQVSF"]
    assert n == sorted(n, reverse=True) and sum(n) == len(run.score)


def test_strip_colours_beats_by_the_threshold(run, axes):
    panels = axes("strip.png")[:3]
    time_s = run.scores["strip_sample"] / 360
    flagged = run.scores["strip_score"] >= run.threshold
    tested = run.scores["strip_in_test"]
    for start, expected in (("not in", ~tested), ("below", tested & ~flagged),
                            ("at or above", flagged)):
        assert line(panels[0], start).get_xdata() == approx(time_s[expected])
    shown = [text for ax in panels for text in ax.texts]
    assert [text.get_position()[0] for text in shown] == time_s.tolist()
    assert [text.get_text().strip() for text in shown] == run.scores["strip_symbol"].tolist()
    assert panels[2].get_xlim()[0] == approx(run.scores["strip_start"] / 360 + 20)


def test_a_split_without_abnormal_beats_has_every_picture(copy):
    """No AUROC, no sensitivity, three examples and no part to show: nothing of it is drawn."""
    def forget(metrics):
        for entry in (metrics["scores"] | metrics["baselines"]).values():
            entry |= dict.fromkeys(("auroc", "auprc", "sensitivity", "ppv"), {"value": None})
            for row in entry["by_record"].values():
                row.update(auroc=None, n_abnormal=0)
            del entry["by_symbol"]["V"]

    arrays = {"part_" + name: np.empty((0, 720), int) for name in ("row", "signal", "usual")}
    old = edit(copy).scores
    arrays |= {name: values[:3] for name, values in old.items() if name.startswith("example")}
    arrays |= {"label": 0 * old["label"]}
    arrays |= {name: np.full_like(old[name], "N") for name in ("aami", "symbol")}
    run = edit(copy, forget, **arrays)
    shown = "".join(words(visualize.draw(name, run)) for name in visualize.FIGURES)
    for expected in ("AUROC not available", "n = 3 beats",
                     f"{run.metrics['n']['records']} without abnormal beats"):
        assert expected in shown


# --- files ----------------------------------------------------------------------------------------

def test_main_leaves_pictures_that_show_the_same(copy, rendered, monkeypatch, capsys):
    name = "latent_space.png"
    monkeypatch.setattr(visualize, "FIGURES", {name: visualize.FIGURES[name]})
    path = copy.plots_dir("beat") / name
    visualize.main(["--database", "copy"])
    assert "1 pictures of MIT-BIH" in capsys.readouterr().out
    drawn = path.read_bytes()
    with Image.open(path) as image:
        # the palette of 256 colours may not lose a rare class, here F
        difference = np.asarray(image.convert("RGB")) - rendered(name)[1]
        assert np.abs(difference).max() < 24 and image.info["dpi"][0] == approx(150, abs=0.1)
        image.save(path, format="PNG", compress_level=0)  # other bytes, the same pixels

    left = path.read_bytes()
    for found, kept in ((left, left), (drawn[:len(drawn) // 2], drawn)):
        path.write_bytes(found)
        visualize.main(["--database", "copy"])
        assert path.read_bytes() == kept


@pytest.mark.parametrize("name, content, flaw, step", [
    ("metrics.json", b"{", "damaged", "evaluate"),
    ("scores.npz", None, "missing", "evaluate"),
    ("history.csv", None, "missing", "train_mitbih"),
    ("history.csv", b"a,b\n1,2\n3", "damaged", "train_mitbih"),
    ("history.csv", b"a,b\n1,2", "lacks epoch", "train_mitbih")])
def test_a_missing_or_damaged_artefact_names_file_and_command(name, content, flaw, step, copy):
    path = folder_of(copy) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    command = f"python {step}.py --protocol beat --database copy"
    with pytest.raises(UserError, match=f"{name}: {flaw}.*{command}"):
        visualize.main(["--database", "copy"])
    assert not copy.plots_dir("beat").exists()


def test_artefacts_that_lack_something_or_are_of_two_checkpoints_are_refused(copy):
    with pytest.raises(UserError, match="of different checkpoints.*evaluate.py"):
        edit(copy, weights=np.array("another"))
    with pytest.raises(UserError, match="metrics.json: lacks parts.*evaluate.py"):
        edit(copy, lambda metrics: metrics.pop("parts"))
