"""Pictures of the shipped results: what is drawn is what scores.npz and metrics.json hold."""

import functools
import json
import shutil
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import config
import visualize
from pipeline import artefacts, figures, settings
from pipeline.errors import UserError
from scoring import beat_parts

SHIPPED = settings.database("mitdb")
UNITS = ("(s)", "(mV)", "no unit", "%)", "(%", "beats", "fraction of", "(number)")
DEFAULT = config.DEFAULT_SCORE


@pytest.fixture(scope="module")
def run():
    return visualize.load_run(SHIPPED, "beat")


@pytest.fixture(scope="module")
def rendered(run):
    """rendered(name) -> (figure, its pixels, [(text, box)] as drawn); each figure is drawn once."""
    @functools.cache
    def render(name):
        shown = []
        draw_text = Text.draw
        with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(figures.STYLE):
            canvas = FigureCanvasAgg(visualize.draw(name, run))
            canvas.draw()  # settles the layout
            # ticks beyond the axes have texts as well, but are never drawn
            patch.setattr(Text, "draw", lambda text, renderer: (shown.append(text), draw_text(text, renderer)))
            canvas.draw()
            boxes = [(text.get_text(), text.get_window_extent()) for text in shown
                     if text.get_visible() and text.get_text().strip()]
        return canvas.figure, np.asarray(canvas.buffer_rgba())[..., :3].astype(int), boxes
    return render


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A Database whose results are a copy of the shipped ones."""
    monkeypatch.setitem(config.DATABASES, "copy", config.DATABASES["mitdb"] | {"home": str(tmp_path)})
    shutil.copytree(SHIPPED.results_dir("beat", config.SEED), tmp_path / "results" / "beat")
    return settings.database("copy")


def edit(database, change=None, **arrays):
    """Run of the database after `change` of its metrics.json and with other arrays in scores.npz."""
    folder = database.results_dir("beat", config.SEED)
    if change:
        metrics = json.loads((folder / "metrics.json").read_text())
        change(metrics)
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if arrays:
        np.savez(folder / "scores.npz", **artefacts.load_npz(folder / "scores.npz", "") | arrays)
    return visualize.load_run(database, "beat")


def words(artist):
    return "\n".join(text.get_text() for text in artist.findobj(Text))


def line(ax, start):
    """The one line of an Axes whose label starts so."""
    found, = [line for line in ax.lines if str(line.get_label()).startswith(start)]
    return found


# --- every picture --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", visualize.FIGURES)
def test_no_text_overlaps_or_leaves_the_figure(name, rendered):
    _, pixels, boxes = rendered(name)
    height, width, _ = pixels.shape
    for text, box in boxes:
        assert box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2, text
    for (one, a), (other, b) in combinations(boxes, 2):
        across = min(a.y1, b.y1) - max(a.y0, b.y0)
        along = min(a.x1, b.x1) - max(a.x0, b.x0)
        assert along < 1 or across < 3, f"{one!r} overlaps {other!r}"


@pytest.mark.parametrize("name", visualize.FIGURES)
def test_axes_have_units_and_legends_tell_n(name, rendered):
    figure, _, _ = rendered(name)
    for ax in figure.axes:
        below = [other for other in figure.axes if other in ax.get_shared_x_axes().get_siblings(ax)][-1]
        for label in [ax.get_ylabel()] + [below.get_xlabel()] * len(ax.get_xticks()):
            assert any(unit in label for unit in UNITS), label
    assert "n = " in words(figure)


def test_simulated_data_is_marked_in_red_and_other_data_is_not(copy, rendered):
    figure = visualize.draw("confusion_matrix.png", edit(copy, lambda m: m.update(simulated=True)))
    marks = [text for text in figure.findobj(Text) if "SIMULATED DATA" in text.get_text()]
    assert len(marks) == 2 and all(to_rgb(mark.get_color()) == (1, 0, 0) for mark in marks)
    assert "SIMULATED" not in words(rendered("confusion_matrix.png")[0])


# --- one by one -----------------------------------------------------------------------------------

def test_history_marks_the_kept_epoch(run, rendered):
    top, bottom = rendered("training_history.png")[0].axes
    loss = run.history["validation_loss"]
    assert line(top, "kept").get_xydata()[0].tolist() == [run.history["epoch"][loss.argmin()], loss.min()]
    assert f"{loss.min():.4g}" in line(top, "kept").get_label() and top.get_yscale() == "log"
    np.testing.assert_array_equal(line(top, "training").get_ydata(), run.history["train_loss"])
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), run.history["learning_rate"])


def test_histograms_sum_to_all_beats_and_split_at_the_threshold(run, rendered):
    ax, = rendered("score_distributions.png")[0].axes
    for bars in ax.containers:
        assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
    assert line(ax, "threshold").get_xdata()[0] == run.threshold and ax.get_xscale() == "linear"
    assert f"AUROC {run.entry['auroc']['value']:.3f}" in ax.get_title()
    assert {to_rgb("#0072B2"), to_rgb("#D55E00")} == {bars[0].get_facecolor()[:3] for bars in ax.containers}


def test_positive_scores_get_a_logarithmic_axis(copy):
    changed = edit(copy, lambda m: m.update(default_score="qrs_error"))
    assert visualize.draw("score_distributions.png", changed).axes[0].get_xscale() == "log"
    ax = visualize.draw("score_by_symbol.png", changed).axes[0]
    assert ax.get_yscale() == "log" and changed.entry["title"] in ax.get_ylabel()


@pytest.mark.parametrize("name, metric", [("roc.png", "auroc"), ("precision_recall.png", "auprc")])
def test_curves_are_few_and_have_the_area_that_they_name(name, metric, run, rendered):
    figure, _, _ = rendered(name)
    ax, = figure.axes
    baselines = run.metrics["baselines"].values()
    best = max(baselines, key=lambda entry: entry["auroc"]["value"])
    scores = run.metrics["scores"]
    shown = [scores[DEFAULT], scores["mse"], scores["combined_same_patient"], best]
    for entry in shown:
        curve = line(ax, entry["title"] + ": ")
        x, y = curve.get_data()
        area = abs(np.diff(x) @ (y[1:] + y[:-1])) / 2
        assert area == pytest.approx(entry[metric]["value"], abs=0.002)
        assert curve.get_label().endswith(": {value:.3f} [{low:.3f}, {high:.3f}]".format(**entry[metric]))
    rows = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(rows) <= 8 and sum("[" in row for row in rows) == len(shown)


def test_operating_points_lie_on_the_curves(run, rendered):
    """Threshold, confusion and curve come from one set of scores, so they meet."""
    flagged = run.score >= run.threshold
    abnormal = run.scores["label"] == 1
    false, sensitivity, ppv = flagged[~abnormal].mean(), flagged[abnormal].mean(), abnormal[flagged].mean()
    for name, point in (("roc.png", (false, sensitivity)), ("precision_recall.png", (sensitivity, ppv))):
        ax, = rendered(name)[0].axes
        assert line(ax, "combined at its").get_xydata()[0] == pytest.approx(point, abs=1e-3)
        assert np.abs(line(ax, "combined: ").get_xydata() - point).sum(axis=1).min() < 0.002
        assert len(ax.collections) == 1 and "95 % band over records" in words(ax.figure)
    assert line(ax, "prevalence").get_ydata()[0] == pytest.approx(abnormal.mean())


def test_numbers_are_those_of_metrics_json(copy):
    """An AUROC that the scores cannot give must appear as written."""
    def change(metrics):
        metrics["scores"][DEFAULT]["auroc"].update(value=0.1234, low=0.1111, high=0.2222)
        metrics["scores"]["mse"]["auroc"].update(value=0.4321, low=None, high=None)
        metrics["scores"][DEFAULT]["confusion"].update(tn=1900, fp=100, fn=30, tp=70)

    changed = edit(copy, change)
    ax, = visualize.draw("roc.png", changed).axes
    assert line(ax, "combined: ").get_label() == "combined: 0.123 [0.111, 0.222]"
    assert line(ax, "plain MSE").get_label().endswith(": 0.432")
    ax, = visualize.draw("confusion_matrix.png", changed).axes
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "1,900\n95.0 %", (1, 0): "100\n5.0 %", (0, 1): "30\n30.0 %", (1, 1): "70\n70.0 %"}


@pytest.mark.parametrize("changes", [{}, {"protocol": "patient"}, {"simulated": True}])
def test_published_point_only_where_comparable(changes, copy):
    ax, = visualize.draw("roc.png", edit(copy, lambda m: m.update(changes))).axes
    if changes:
        assert "published:" not in words(ax.figure)
    else:
        assert line(ax, "published: 0.9721").get_xydata()[0] == pytest.approx((1 - 0.9551, 0.9019))


def test_symbols_show_n_flagged_and_median_in_class_order(run, rendered):
    ax, = rendered("score_by_symbol.png")[0].axes
    ticks = [tick.get_text().split("\n") for tick in ax.get_xticklabels()]
    symbols = [symbol for symbol, _, _ in ticks]
    assert symbols == [s for s in "NLRejAaJSVEF/fQ" if s in run.scores["symbol"]]
    across = [line for line in ax.lines if line.get_color() == "black" and len(line.get_xdata()) == 2]
    medians = [line.get_ydata()[0] for line in across if np.ptp(line.get_xdata()) == pytest.approx(0.62)]
    for (symbol, n, flagged), median in zip(ticks, medians, strict=True):
        score = run.score[run.scores["symbol"] == symbol]
        assert n == f"{len(score):,}" and flagged == f"{(score >= run.threshold).mean():.1%}"
        assert median == pytest.approx(np.median(score), rel=1e-4)
    assert [text.get_text() for text in ax.texts] == list("NSVFQ")
    assert line(ax, "threshold").get_ydata()[0] == run.threshold


def test_records_are_sorted_and_those_left_out_counted(run, rendered):
    ax, = rendered("auroc_by_record.png")[0].axes
    label = run.scores["label"]
    names = [tick.get_text().split()[0] for tick in ax.get_yticklabels()]
    baselines = run.metrics["baselines"]
    best = max(baselines, key=lambda name: baselines[name]["auroc"]["value"])
    for start, score in (("combined", run.score), ("plain MSE", run.scores["score_mse"]),
                         (baselines[best]["title"], run.scores[f"baseline_{best}"])):
        own = [roc_auc_score(label[run.scores["record"] == name], score[run.scores["record"] == name])
               for name in names]
        assert line(ax, start).get_xdata() == pytest.approx(own, abs=1e-5)
    assert (np.diff(line(ax, "combined").get_xdata()) >= 0).all()

    own = label[run.scores["record"] == names[0]]
    assert ax.get_yticklabels()[0].get_text() == f"{names[0]}  ({own.sum():,} / {(1 - own).sum():,})"
    records = np.unique(run.scores["record"])
    none = sum(label[run.scores["record"] == name].sum() == 0 for name in records)
    assert ax.get_title() == (f"Records not shown: {none} without abnormal beats, "
                              f"{len(records) - none - len(names)} with too few")


def test_reconstruction_titles_signal_and_error(run, rendered):
    axes = rendered("reconstructions.png")[0].axes
    scores = run.scores
    assert len(axes) == 2 * len(scores["example_row"])
    for i, row in enumerate(scores["example_row"]):
        top, bottom = axes[2 * i:2 * i + 2]
        seconds = scores["sample"][row] // 360
        sign = "≥" if run.score[row] >= run.threshold else "<"
        assert top.get_title() == (
            f"record {scores['record'][row]}, {seconds // 60:02d}:{seconds % 60:02d}, {scores['symbol'][row]}:  "
            f"score {run.score[row]:.3g} {sign} threshold {run.threshold:.3g}")
        np.testing.assert_array_equal(top.lines[0].get_ydata(), scores["example_signal"][i])
        np.testing.assert_array_equal(top.lines[1].get_ydata(), scores["example_recon"][i])
        assert top.lines[0].get_xdata()[[0, 360]].tolist() == [-1, 0]
        assert top.lines[1].get_color() == ("#D55E00" if scores["label"][row] else "#0072B2")
        error = bottom.collections[0].get_paths()[0].vertices[:, 1].max()
        assert error == pytest.approx(np.abs(scores["example_signal"][i] - scores["example_recon"][i]).max())
        assert 5 < top.bbox.height / bottom.bbox.height < 7


def test_parts_show_the_named_part_and_the_saved_shares(run, rendered):
    *beats, bottom = rendered("parts_of_the_beat.png")[0].axes
    for ax, row, usual in zip(beats, run.scores["part_row"], run.scores["part_usual"], strict=True):
        title = beat_parts.TITLES[beat_parts.PARTS[run.scores["part"][row]]]
        assert f"leads: {title}, {run.scores['part_strength'][row]:.1f} times" in ax.get_title()
        np.testing.assert_array_equal(line(ax, "the record's own").get_ydata(), usual)
    widths = [patch.get_width() for patch in bottom.patches]
    expected = [100 * row[part] for part in beat_parts.PARTS for row in run.metrics["parts"].values()]
    assert widths == pytest.approx(expected)


def test_latent_space_draws_abnormal_over_normal(run, rendered):
    ax, = rendered("latent_space.png")[0].axes
    labels = [points.get_label() for points in ax.collections]
    n = {name: int((run.scores["aami"] == name).sum()) for name in "NSVFQ"}
    assert labels[0].startswith("N, ")
    assert labels[1:] == [f"{name}, n = {n[name]:,}" for name in sorted("SVFQ", key=n.get, reverse=True)]
    for label, share in zip((ax.get_xlabel(), ax.get_ylabel()), run.scores["latent_explained"]):
        assert f"{100 * share:.1f} %" in label


def test_strip_colours_beats_by_the_threshold(run, rendered):
    figure, _, _ = rendered("strip.png")
    strip = {name[6:]: values for name, values in run.scores.items() if name.startswith("strip_")}
    flagged = strip["score"] >= run.threshold
    tested = strip["in_test"]
    for start, expected in (("not in", ~tested), ("below", tested & ~flagged), ("at or above", tested & flagged)):
        drawn = line(figure.axes[0], start)
        assert drawn.get_xdata() == pytest.approx(strip["sample"][expected] / 360)
        assert drawn.get_label().endswith(f"(n = {expected.sum()})")
    symbols = [text for ax in figure.axes for text in ax.texts]
    assert [text.get_text().strip() for text in symbols] == strip["symbol"].tolist()
    assert [text.get_position()[0] for text in symbols] == pytest.approx(strip["sample"] / 360)
    assert [ax.get_xlim()[0] - strip["start"] / 360 for ax in figure.axes[:3]] == pytest.approx([0, 10, 20])
    assert f"Record {strip['record']} from" in figure.axes[0].get_title()


def test_a_split_without_abnormal_beats_has_every_picture(copy):
    """No AUROC, no sensitivity, three examples, and no part to show: nothing of it is drawn."""
    n = len(visualize.load_run(copy, "beat").score)

    def forget(metrics):
        metrics["n"].update(normal=n, abnormal=0)
        for entry in [*metrics["scores"].values(), *metrics["baselines"].values()]:
            for name in ("auroc", "auprc", "sensitivity", "ppv", "f1"):
                entry[name] = dict.fromkeys(("value", "low", "high"))
            for row in entry["by_record"].values():
                row.update(auroc=None, n_abnormal=0)
            entry["by_symbol"] = {"N": entry["by_symbol"]["N"]}
            entry["confusion"].update(fn=0, tp=0)

    examples = visualize.load_run(copy, "beat").scores
    three = {name: examples[name][:3] for name in ("example_row", "example_signal", "example_recon")}
    none = {name: examples[name][:0] for name in ("part_row", "part_signal", "part_usual")}
    run = edit(copy, forget, label=np.zeros(n, np.int8), aami=np.full(n, "N"), symbol=np.full(n, "N"),
               **three, **none)
    shown = {name: words(visualize.draw(name, run)) for name in visualize.FIGURES}
    assert "AUROC not available" in shown["score_distributions.png"]
    assert f"{run.metrics['n']['records']} without abnormal beats" in shown["auroc_by_record.png"]
    assert "n = 3 beats" in shown["reconstructions.png"]


# --- files ----------------------------------------------------------------------------------------

def test_main_writes_the_pictures_and_leaves_those_that_show_the_same(copy, rendered, monkeypatch, capsys):
    names = ["latent_space.png", "confusion_matrix.png"]
    monkeypatch.setattr(visualize, "FIGURES", {name: visualize.FIGURES[name] for name in names})
    folder = copy.plots_dir("beat")
    visualize.main(["--database", "copy"])
    assert "2 pictures of MIT-BIH" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    with Image.open(folder / names[0]) as image:
        # the palette of 256 colours may not lose a rare class, here F
        difference = np.asarray(image.convert("RGB")) - rendered(names[0])[1]
        assert np.abs(difference).max() < 24 and round(image.info["dpi"][0]) == 150
        image.save(folder / names[0], format="PNG", compress_level=0)  # other bytes, the same pixels
    left = (folder / names[0]).read_bytes()
    drawn = (folder / names[1]).read_bytes()
    assert len(drawn) < 100_000
    for damage in (b"no picture", drawn[:len(drawn) // 2], left):
        (folder / names[1]).write_bytes(damage)
        visualize.main(["--database", "copy"])
        assert (folder / names[0]).read_bytes() == left and (folder / names[1]).read_bytes() == drawn


def test_an_interrupted_run_leaves_the_old_picture(run, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("no space left")

    path = tmp_path / "old.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(artefacts.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        figures.save(path, lambda: visualize.draw("confusion_matrix.png", run))
    assert path.read_bytes() == b"old" and [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("name, command", [("metrics.json", "evaluate.py"), ("scores.npz", "evaluate.py"),
                                           ("history.csv", "train_mitbih.py")])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_a_missing_or_damaged_artefact_names_file_and_command(name, command, damage, copy):
    path = copy.results_dir("beat", config.SEED) / name
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2] if damage == "cut" else b"\x80no such thing")
    if damage == "missing":
        path.unlink()
    flaw = "missing" if damage == "missing" else "damaged"
    with pytest.raises(UserError, match=rf"{name}: {flaw}.*python {command} --protocol beat --database copy"):
        visualize.main(["--database", "copy"])
    assert not copy.plots_dir("beat").exists()


def test_artefacts_that_lack_something_or_are_of_two_checkpoints_are_refused(copy):
    with pytest.raises(UserError, match="of different checkpoints.*evaluate.py"):
        edit(copy, weights=np.array("another"))
    with pytest.raises(UserError, match="metrics.json: lacks parts.*evaluate.py"):
        edit(copy, lambda metrics: metrics.pop("parts"))
