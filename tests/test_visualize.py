"""Pictures drawn from invented artefacts: random beats whose metrics scikit-learn computes here."""

import json
import os
from dataclasses import replace
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from scoring import beat_parts
import config
from pipeline import errors, settings
from pipeline import figures
from pipeline import artefacts
import visualize

TITLES = {"mse": "plain mean squared error", "qrs_error": "weighted to the beat", "latent_knn": "nearest latents",
          "combined": "combined"}
SHARE = {"N": 0.62, "L": 0.1, "R": 0.08, "e": 0.004, "j": 0.006, "A": 0.02, "a": 0.006, "J": 0.004,
         "S": 0.002, "V": 0.065, "E": 0.003, "F": 0.01, "/": 0.06, "f": 0.015, "Q": 0.005}
SHIFT = {"N": 0.0, "S": 2.0, "V": 3.2, "F": 1.2, "Q": 3.0}
FS_HZ, WINDOW = 360, 720
RECORDS = settings.database("mitdb").records


def wave(time, kind="N"):
    """One invented beat in mV around its R peak at time 0 [s]."""
    bumps = {"V": ((0, 1.6, 0.05), (0.3, -0.6, 0.09))}.get(
        kind, ((-0.16, 0.12, 0.02), (0, 1.1, 0.011), (0.03, -0.2, 0.012), (0.25, 0.25, 0.04)))
    return sum(height * np.exp(-0.5 * ((time - at) / width) ** 2) for at, height, width in bumps)


def fake_beats(rng, n):
    """Columns of n beats and a score of each name; the last quarter of the records holds no abnormal beat."""
    record = np.sort(rng.choice(RECORDS, n))
    symbol = rng.choice(list(SHARE), n, p=list(SHARE.values()))
    symbol[:len(SHARE)] = list(SHARE)
    symbol[record >= RECORDS[36]] = "N"
    aami = np.array([figures.CLASS_OF[s] for s in symbol])
    columns = {"record": record, "sample": rng.integers(360, 649640, n), "symbol": symbol, "aami": aami,
               "label": (aami != "N").astype(np.int8)}
    hidden = np.array([SHIFT[c] for c in aami]) + rng.normal(0, 0.7, n)
    for i, name in enumerate(TITLES):
        noisy = hidden + rng.normal(0, 1.1 - 0.16 * i, n)
        columns[f"score_{name}"] = (noisy if name == "combined" else 0.01 * np.exp(noisy)).astype(np.float32)
    return columns


def groups(column):
    return [(str(name), column == name) for name in np.unique(column)]


def interval(value):
    return {"value": float(value), "low": float(value) - 0.0123, "high": float(value) + 0.0056}


def fake_metrics(columns, score):
    label, threshold = columns["label"], float(np.quantile(score[columns["label"] == 0], 0.94))
    tn, fp, fn, tp = (int(c) for c in confusion_matrix(label, score >= threshold).ravel())
    flagged, normal = score >= threshold, label == 0
    values = {"auroc": roc_auc_score(label, score), "auprc": average_precision_score(label, score),
              "accuracy": (tn + tp) / len(label), "sensitivity": tp / (tp + fn),
              "specificity": tn / (tn + fp), "ppv": tp / (tp + fp), "f1": 2 * tp / (2 * tp + fp + fn)}

    def auroc(rows):
        return roc_auc_score(label[rows], score[rows]) if 4 < label[rows].sum() < rows.sum() else None

    by_class, by_symbol, by_record = {}, {}, {}
    for name, rows in groups(columns["aami"][label == 1]):
        rows = columns["aami"] == name
        by_class[name] = {"n": int(rows.sum()), "sensitivity": float(flagged[rows].mean()),
                          "auroc": auroc(normal | rows)}
    for name, rows in groups(columns["symbol"]):
        by_symbol[name] = {"n": int(rows.sum()), "flagged": float(flagged[rows].mean()),
                           "median": float(np.median(score[rows]))}
    for name, rows in groups(columns["record"]):
        by_record[name] = {"n_normal": int((rows & normal).sum()), "n_abnormal": int((rows & ~normal).sum()),
                           "auroc": auroc(rows)}
    return {"threshold": threshold, **{k: interval(v) for k, v in values.items()},
            "confusion": {"tn": tn, "fp": fp, "fn": fn, "tp": tp},
            "by_class": by_class, "by_symbol": by_symbol, "by_record": by_record}


def fake_examples(rng, columns):
    row = np.array([np.flatnonzero(columns["symbol"] == s)[0] for s in "NLRAVF/f"])
    time = (np.arange(WINDOW) - WINDOW // 2) / FS_HZ
    signal = np.array([wave(time, columns["aami"][r]) + wave(time - 0.8) + wave(time + 0.8) for r in row])
    recon = np.array([wave(time) + wave(time - 0.8) + wave(time + 0.8)] * len(row)) * 0.9
    signal += rng.normal(0, 0.02, signal.shape)
    return {"example_row": row, "example_signal": signal.astype(np.float32),
            "example_recon": recon.astype(np.float32)}


def fake_parts(rng, columns):
    """Leading parts of all beats, and an example of each abnormal class."""
    row = np.array([np.flatnonzero(columns["aami"] == name)[0] for name in "SVFQ"])
    time = (np.arange(WINDOW) - WINDOW // 2) / FS_HZ
    return {"part": rng.integers(0, 4, len(columns["aami"])).astype(np.int8),
            "part_strength": rng.gamma(2, 3, len(columns["aami"])).astype(np.float32), "part_row": row,
            "part_signal": np.array([wave(time, columns["aami"][r]) for r in row], np.float32),
            "part_usual": np.array([wave(time)] * len(row), np.float32)}


def fake_strip(rng, threshold):
    start = 200_000
    sample = start + 150 + np.cumsum(rng.integers(210, 330, 38))
    sample = sample[sample < start + 30 * FS_HZ]
    symbol = rng.choice(["N", "V", "A"], len(sample), p=(0.8, 0.15, 0.05))
    time = (start + np.arange(30 * FS_HZ)) / FS_HZ
    signal = sum(wave(time - s / FS_HZ, k) for s, k in zip(sample, symbol)).astype(np.float32)
    signal[4000:4300] = np.nan
    score = threshold + np.where(symbol == "N", -1, 1) + rng.normal(0, 0.5, len(sample))
    return {"strip_signal": signal, "strip_start": np.int64(start), "strip_record": np.str_("208"),
            "strip_sample": sample, "strip_symbol": symbol, "strip_score": score.astype(np.float32),
            "strip_in_test": rng.random(len(sample)) < 0.7}


def fake_bands():
    grid = np.linspace(0, 1, 101)
    arrays = {"roc_fpr": grid, "pr_recall": grid}
    for name in TITLES:
        arrays |= {f"roc_tpr_low_{name}": grid ** 0.3 * 0.9, f"roc_tpr_high_{name}": grid ** 0.05,
                   f"pr_precision_low_{name}": 0.8 * (1 - grid ** 4) + 0.1,
                   f"pr_precision_high_{name}": 1 - 0.3 * grid ** 8}
    return arrays


def write_history(path):
    rows = [figures.NEEDED["history.csv"].replace(" ", ",")]
    losses = [0.061, 0.042, 0.033, 0.034, 0.0297, 0.0285, 0.0291]
    for epoch, loss in enumerate(losses, 1):
        rows.append(f"{epoch},{loss * 0.93},{loss},{2e-3 * (1 - epoch / 8)},61.5,1021.4,"
                    f"{int(loss == min(losses[:epoch]))}")
    path.write_text("\n".join(rows) + "\n")


def write_artefacts(folder, n=2500, simulated=False, protocol="beat", seed=0):
    """Consistent artefacts of a run that never was; returns metrics as written."""
    rng = np.random.default_rng(seed)
    columns = fake_beats(rng, n)
    scores = {name: {"title": title, **fake_metrics(columns, columns[f"score_{name}"])}
              for name, title in TITLES.items()}
    database = settings.database("simulated") if simulated else settings.database("mitdb")
    metrics = {"database": database.title, "simulated": simulated, "protocol": protocol, "seed": seed,
               "default_score": "combined", "published": config.PUBLISHED, "scores": scores,
               "baselines": {name: {"title": title, **fake_metrics(columns, columns[f"score_{of}"])}
                             for name, title, of in (("knn", "nearest components", "qrs_error"), ("rr", "RR rule", "mse"))},
               "parts": {c: {"n": 40 + i, "P": 0.1, "QRS": 0.55, "ST-T": 0.15, "timing": 0.2}
                         for i, c in enumerate("NSVFQ")},
               "n": {"test": n, "normal": int((columns["label"] == 0).sum()),
                     "abnormal": int(columns["label"].sum()), "records": len(np.unique(columns["record"]))}}
    latent = rng.normal(0, 1, (n, 2)) + 1.4 * np.array([[SHIFT[c], (c in "QF") * 2] for c in columns["aami"]])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / "scores.npz", **columns, **fake_examples(rng, columns), **fake_bands(),
        **fake_parts(rng, columns), baseline_knn=columns["score_beat"], baseline_rr=columns["score_mse"],
        **fake_strip(rng, scores["combined"]["threshold"]), latent_2d=latent.astype(np.float32),
        latent_explained=np.array([0.412, 0.173], np.float32), fs_hz=np.int64(FS_HZ))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_history(folder / "history.csv")
    return metrics


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_artefacts(folder)
    return folder


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    write_artefacts(folder, n=1200, simulated=True)
    return folder


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    """Paths of all pictures, drawn into a folder that holds a file of the user's."""
    folder = tmp_path_factory.mktemp("plots")
    (folder / "mine.txt").write_text("kept")
    return visualize.draw_all(results, folder)


def draw(name, folder):
    """Figure `name` of the artefacts in `folder`."""
    with matplotlib.rc_context(figures.STYLE):
        return visualize.FIGURES[name](figures.load_artefacts(folder))


def render(name, folder):
    """Pixels of figure `name` and its (text, box) as they are drawn: no tick beyond the axes."""
    drawn, draw_text = [], Text.draw
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(figures.STYLE):
        canvas = FigureCanvasAgg(draw(name, folder))
        canvas.draw()      # settles the layout
        patch.setattr(Text, "draw", lambda text, renderer: (drawn.append(text), draw_text(text, renderer)))
        canvas.draw()
        shown = [text for text in drawn if text.get_visible() and text.get_text().strip()]
        boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
        return np.asarray(canvas.buffer_rgba())[..., :3], boxes


def edit(folder, change):
    """Apply `change` to the metrics.json of `folder` and write it back."""
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def edit_scores(folder, **arrays):
    with np.load(folder / "scores.npz") as file:
        arrays = dict(file) | arrays
    np.savez(folder / "scores.npz", **{name: array for name, array in arrays.items() if array is not None})


def words(figure):
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def line(ax, start):
    """The one line of an Axes whose label starts so."""
    found, = [line for line in ax.lines if str(line.get_label()).startswith(start)]
    return found


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_draw_all_writes_every_figure_small_and_nothing_else(written):
    assert [path.name for path in written] == list(visualize.FIGURES) and len(written) == 11
    assert sorted(os.listdir(written[0].parent)) == sorted([*visualize.FIGURES, "mine.txt"])
    for path in written:
        assert path.stat().st_size < 250_000
        with Image.open(path) as image:
            assert image.format == "PNG" and round(image.info["dpi"][0]) == 150 and image.width > 700


def test_equal_results_give_equal_files(results, written, tmp_path):
    again = visualize.draw_all(results, tmp_path)
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(written, again, strict=True))


def test_saved_colours_are_those_of_the_figure(results, written):
    """The palette of 256 colours may not lose a rare class, here F."""
    path, = (path for path in written if path.name == "latent_space.png")
    pixels, _ = render(path.name, results)
    with Image.open(path) as image:
        difference = np.asarray(image.convert("RGB")).astype(int) - pixels
    assert np.abs(difference).max() < 24


@pytest.mark.parametrize("name", visualize.FIGURES)
def test_no_text_overlaps_or_leaves_the_figure(name, results):
    pixels, boxes = render(name, results)
    height, width, _ = pixels.shape
    for text, box in boxes:
        assert box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2, text
    for (one, a), (other, b) in combinations(boxes, 2):
        across, along = min(a.y1, b.y1) - max(a.y0, b.y0), min(a.x1, b.x1) - max(a.x0, b.x0)
        assert along < 1 or across < 3, f"{one!r} overlaps {other!r}"


@pytest.mark.parametrize("name", visualize.FIGURES)
def test_axes_have_labels_with_units(name, results):
    units = ("(s)", "(mV)", "no unit", "%)", "(%", "beats", "fraction of", "(number)")
    figure = draw(name, results)
    for ax in figure.axes:
        below = [other for other in figure.axes if other in ax.get_shared_x_axes().get_siblings(ax)][-1]
        labels = [ax.get_ylabel()] + [below.get_xlabel()] * len(ax.get_xticks())
        for label in labels:
            assert any(unit in label for unit in units), (name, label)


@pytest.mark.parametrize("name", visualize.FIGURES)
def test_simulated_data_is_marked_in_red_and_other_data_is_not(name, results, simulated):
    marks = [text for text in draw(name, simulated).findobj(Text) if "SIMULATED DATA" in text.get_text()]
    assert len(marks) == 2 and all(to_rgb(mark.get_color()) == (1, 0, 0) for mark in marks)
    assert "SIMULATED" not in words(draw(name, results))


@pytest.mark.parametrize("name, expected", (
    ("latent_space.png", "F, n = "), ("strip.png", "(n = "), ("score_distributions.png", "abnormal, n = "),
    ("reconstructions.png", "n = 8 beats"), ("training_history.png", "n = 7 epochs"),
    ("auroc_by_record.png", "n = {records} records"),
    ("roc.png", "n = {normal:,} normal, {abnormal:,} abnormal"),
    ("precision_recall.png", "n = {normal:,} normal, {abnormal:,} abnormal"),
    ("score_by_symbol.png", "n = {normal:,} normal, {abnormal:,} abnormal")))
def test_legends_tell_n(name, expected, results):
    metrics = metrics_of(results)
    by_record = metrics["scores"]["combined"]["by_record"].values()
    n = metrics["n"] | {"records": sum(row["auroc"] is not None for row in by_record)}
    figure = draw(name, results)
    legends = figure.legends + [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    assert expected.format(**n) in "\n".join(words(legend) for legend in legends)


def test_roc_shows_the_numbers_of_metrics_json_not_its_own(results, tmp_path):
    """An AUROC that the scores cannot give must appear as written."""
    metrics = write_artefacts(tmp_path)
    edit(tmp_path, lambda m: m["scores"]["combined"]["auroc"].update(value=0.1234, low=0.1111, high=0.2222))
    edit(tmp_path, lambda m: m["scores"]["mse"]["auroc"].update(value=0.4321, low=None, high=None))
    ax, = draw("roc.png", tmp_path).axes
    assert line(ax, "combined: ").get_label() == "combined: 0.123 [0.111, 0.222]"
    assert line(ax, "plain mean").get_label() == "plain mean squared error: 0.432"
    entry = metrics["scores"]["combined"]
    x, y = line(ax, "combined at its threshold").get_xydata()[0]
    assert (x, y) == pytest.approx((1 - entry["specificity"]["value"], entry["sensitivity"]["value"]))
    chance = line(ax, "chance")
    assert chance.get_xydata().tolist() == [[0, 0], [1, 1]] and chance.get_linestyle() == "--"


def test_roc_operating_point_lies_on_the_curve(results):
    """Threshold, confusion and curve come from one set of scores, so they meet."""
    ax, = draw("roc.png", results).axes
    x, y = line(ax, "combined at its threshold").get_xydata()[0]
    curve = line(ax, "combined: ").get_xydata()
    assert np.abs(curve - (x, y)).sum(axis=1).min() < 0.01


@pytest.mark.parametrize("protocol, simulated, shown",
                         (("beat", False, True), ("patient", False, False), ("beat", True, False)))
def test_published_point_only_where_comparable(protocol, simulated, shown, tmp_path):
    write_artefacts(tmp_path, n=1200, protocol=protocol, simulated=simulated)
    ax, = draw("roc.png", tmp_path).axes
    published = [line for line in ax.lines if str(line.get_label()).startswith("published")]
    assert bool(published) == shown
    if shown:
        assert published[0].get_xydata()[0] == pytest.approx((1 - 0.9551, 0.9019))
        assert "0.9721" in published[0].get_label() and published[0].get_linestyle() == "None"


def test_precision_recall_prevalence_point_and_band(results):
    metrics, (ax,) = metrics_of(results), draw("precision_recall.png", results).axes
    entry, n = metrics["scores"]["combined"], metrics["n"]
    assert line(ax, "prevalence").get_ydata()[0] == pytest.approx(n["abnormal"] / n["test"])
    assert line(ax, "combined at").get_xydata()[0] == pytest.approx(
        (entry["sensitivity"]["value"], entry["ppv"]["value"]))
    assert f"combined: {entry['auprc']['value']:.3f} [" in words(ax.figure)
    assert "combined: 95 % band over records" in words(ax.figure)
    assert len(ax.collections) == 1


def test_confusion_matrix_counts_and_row_percentages(tmp_path):
    write_artefacts(tmp_path, n=1200)
    edit(tmp_path, lambda m: m["scores"]["combined"]["confusion"].update(tn=1900, fp=100, fn=30, tp=70))
    ax, = draw("confusion_matrix.png", tmp_path).axes
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "1,900\n95.0 %", (1, 0): "100\n5.0 %",
                     (0, 1): "30\n30.0 %", (1, 1): "70\n70.0 %"}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["below threshold", "flagged"]


def test_histograms_sum_to_all_beats_and_split_at_the_threshold(results):
    metrics, (ax,) = metrics_of(results), draw("score_distributions.png", results).axes
    for container in ax.containers:
        assert sum(bar.get_height() for bar in container) == pytest.approx(100)
    threshold = metrics["scores"]["combined"]["threshold"]
    assert line(ax, "threshold").get_xdata()[0] == threshold
    assert ax.get_xscale() == "linear"          # `combined` has scores below zero
    assert f"AUROC {metrics['scores']['combined']['auroc']['value']:.3f}" in ax.get_title()
    assert {to_rgb("#0072B2"), to_rgb("#D55E00")} == {bar[0].get_facecolor()[:3] for bar in ax.containers}


def test_positive_scores_get_a_logarithmic_axis(tmp_path):
    write_artefacts(tmp_path, n=1200)
    edit(tmp_path, lambda m: m.update(default_score="qrs_error"))
    assert draw("score_distributions.png", tmp_path).axes[0].get_xscale() == "log"
    ax = draw("score_by_symbol.png", tmp_path).axes[0]
    assert ax.get_yscale() == "log" and "weighted to the beat" in ax.get_ylabel()


def test_symbols_show_n_flagged_and_median_in_class_order(results):
    entry, (ax,) = metrics_of(results)["scores"]["combined"], draw("score_by_symbol.png", results).axes
    ticks = [tick.get_text().split("\n") for tick in ax.get_xticklabels()]
    assert [symbol for symbol, _, _ in ticks] == list("NLRejAaJSVEF/fQ")
    across = [line for line in ax.lines if line.get_color() == "black" and len(line.get_xdata()) == 2]
    medians = [line.get_ydata()[0] for line in across if np.ptp(line.get_xdata()) == pytest.approx(0.62)]
    for (symbol, n, flagged), median in zip(ticks, medians, strict=True):
        assert int(n.replace(",", "")) == entry["by_symbol"][symbol]["n"]
        assert flagged == f"{entry['by_symbol'][symbol]['flagged']:.1%}"
        assert median == pytest.approx(entry["by_symbol"][symbol]["median"], rel=1e-4)
    assert [text.get_text() for text in ax.texts] == list("NSVFQ")
    assert line(ax, "threshold").get_ydata()[0] == entry["threshold"]


def test_records_are_sorted_and_those_left_out_counted(tmp_path):
    write_artefacts(tmp_path, n=12000)
    edit(tmp_path, lambda m: m["scores"]["combined"]["by_record"]["100"].update(auroc=None))
    scores, (ax,) = metrics_of(tmp_path)["scores"], draw("auroc_by_record.png", tmp_path).axes
    ticks = [tick.get_text().split() for tick in ax.get_yticklabels()]
    names = [name for name, *_ in ticks]
    assert len(names) == 35 and "100" not in names
    row = scores["combined"]["by_record"][names[0]]
    assert " ".join(ticks[0]) == f"{names[0]} ({row['n_abnormal']:,} / {row['n_normal']:,})"
    drawn = line(ax, "combined").get_xdata()
    assert drawn == pytest.approx([scores["combined"]["by_record"][name]["auroc"] for name in names])
    assert (np.diff(drawn) >= 0).all()
    plain = [scores["mse"]["by_record"][name]["auroc"] for name in names]
    assert line(ax, "plain").get_xdata() == pytest.approx(plain)
    assert ax.get_title() == "Records not shown: 12 without abnormal beats, 1 with too few"


def test_reconstruction_titles_signal_and_error(results):
    with np.load(results / "scores.npz") as file:
        scores = dict(file)
    figure = draw("reconstructions.png", results)
    threshold = metrics_of(results)["scores"]["combined"]["threshold"]
    assert len(figure.axes) == 16
    for i, row in enumerate(scores["example_row"]):
        top, bottom = figure.axes[2 * i:2 * i + 2]
        seconds, score = scores["sample"][row] // 360, scores["score_combined"][row]
        when = f"{seconds // 60:02d}:{seconds % 60:02d}"
        assert top.get_title() == (
            f"record {scores['record'][row]}, {when}, {scores['symbol'][row]}:  "
            f"score {score:.3g} {'≥' if score >= threshold else '<'} threshold {threshold:.3g}")
        assert np.array_equal(top.lines[0].get_ydata(), scores["example_signal"][i])
        assert np.array_equal(top.lines[1].get_ydata(), scores["example_recon"][i])
        assert top.lines[0].get_xdata()[360] == 0 and top.lines[0].get_xdata()[0] == -1
        assert top.lines[1].get_color() == ("#D55E00" if scores["label"][row] else "#0072B2")
        error = bottom.collections[0].get_paths()[0].vertices[:, 1].max()
        assert error == pytest.approx(np.abs(scores["example_signal"][i] - scores["example_recon"][i]).max())
        assert 5 < top.bbox.height / bottom.bbox.height < 7


def test_an_odd_number_of_examples(results, tmp_path):
    write_artefacts(tmp_path, n=1200)
    with np.load(tmp_path / "scores.npz") as file:
        five = {name: file[name][:5] for name in ("example_row", "example_signal", "example_recon")}
    edit_scores(tmp_path, **five)
    assert len(draw("reconstructions.png", tmp_path).axes) == 10


def test_latent_space_draws_abnormal_over_normal(results):
    ax, = draw("latent_space.png", results).axes
    with np.load(results / "scores.npz") as file:
        aami = file["aami"]
    labels = [points.get_label() for points in ax.collections]
    assert labels[0].startswith("N, ")
    assert sorted(labels) == sorted(f"{name}, n = {(aami == name).sum():,}" for name in "NSVFQ")
    assert "41.2 %" in ax.get_xlabel() and "17.3 %" in ax.get_ylabel()


def test_strip_colours_beats_by_the_threshold(results):
    with np.load(results / "scores.npz") as file:
        strip = {name[6:]: file[name] for name in file.files if name.startswith("strip_")}
    figure, threshold = draw("strip.png", results), metrics_of(results)["scores"]["combined"]["threshold"]
    flagged, tested = strip["score"] >= threshold, strip["in_test"]
    kinds = ("not in", ~tested), ("below", tested & ~flagged), ("at or above", tested & flagged)
    for start, expected in kinds:
        drawn = line(figure.axes[0], start)
        assert drawn.get_xdata() == pytest.approx(strip["sample"][expected] / 360)
        assert drawn.get_label().endswith(f"(n = {expected.sum()})")
    symbols = [text for ax in figure.axes for text in ax.texts]
    assert [text.get_text().strip() for text in symbols] == strip["symbol"].tolist()
    assert [text.get_position()[0] for text in symbols] == pytest.approx(strip["sample"] / 360)
    assert [ax.get_xlim()[0] - strip["start"] / 360 for ax in figure.axes[:3]] == pytest.approx([0, 10, 20])
    assert "Record 208 from 09:15" in figure.axes[0].get_title()


def test_history_marks_the_kept_epoch(results):
    top, bottom = draw("training_history.png", results).axes
    assert line(top, "kept").get_xydata()[0].tolist() == [6, 0.0285]
    assert "epoch 6, 0.0285" in line(top, "kept").get_label() and top.get_yscale() == "log"
    assert line(top, "training").get_ydata()[0] == pytest.approx(0.061 * 0.93)
    assert bottom.lines[0].get_ydata()[0] == pytest.approx(2e-3 * 7 / 8)


def test_nulls_are_drawn_as_nothing(tmp_path):
    """A split without abnormal beats: no AUROC, no sensitivity, yet every picture."""
    write_artefacts(tmp_path, n=1200)

    def forget(metrics):
        metrics["n"].update(normal=1200, abnormal=0)
        for entry in metrics["scores"].values():
            for name in ("auroc", "auprc", "sensitivity", "ppv", "f1"):
                entry[name] = {"value": None, "low": None, "high": None}
            for row in [*entry["by_record"].values(), *entry["by_class"].values()]:
                row["auroc"] = None
            for row in entry["by_record"].values():
                row["n_abnormal"] = 0
            entry["by_symbol"] = {"N": entry["by_symbol"]["N"]}
            entry["confusion"].update(fn=0, tp=0)

    edit(tmp_path, forget)
    edit_scores(tmp_path, label=np.zeros(1200, np.int8), aami=np.full(1200, "N"), symbol=np.full(1200, "N"))
    assert len(visualize.draw_all(tmp_path, tmp_path / "plots")) == len(visualize.FIGURES)
    assert "AUROC not available" in words(draw("score_distributions.png", tmp_path))
    assert "48 without abnormal beats" in words(draw("auroc_by_record.png", tmp_path))


@pytest.mark.parametrize("name, command", (("metrics.json", "evaluate.py"), ("scores.npz", "evaluate.py"),
                                           ("history.csv", "train_mitbih.py")))
@pytest.mark.parametrize("damage", ("missing", "empty", "cut", "garbage"))
def test_a_missing_or_damaged_artefact_names_file_and_command(name, command, damage, tmp_path):
    write_artefacts(tmp_path, n=1200)
    content = (tmp_path / name).read_bytes()
    damaged = {"empty": b"", "cut": content[:len(content) // 2], "garbage": b"\x80no such thing"}
    (tmp_path / name).unlink()
    if damage != "missing":
        (tmp_path / name).write_bytes(damaged[damage])
    flaw = "is missing" if damage == "missing" else "cannot be read"
    with pytest.raises(errors.UserError, match=flaw) as caught:
        visualize.draw_all(tmp_path, tmp_path / "plots")
    assert name in str(caught.value) and f"python {command}" in str(caught.value)
    assert not (tmp_path / "plots").exists()


def test_a_lacking_array_and_a_pickle_are_refused(tmp_path):
    write_artefacts(tmp_path, n=1200)
    edit_scores(tmp_path, score_mse=None)
    with pytest.raises(errors.UserError, match="lacks score_mse"):
        figures.load_artefacts(tmp_path)
    edit_scores(tmp_path, score_mse=np.array([{}], dtype=object))
    with pytest.raises(errors.UserError, match="cannot be read.*allow_pickle"):
        figures.load_artefacts(tmp_path)


def test_artefacts_of_different_runs_are_refused(tmp_path):
    write_artefacts(tmp_path, n=1200)
    edit(tmp_path, lambda m: m["n"].update(test=1201))
    with pytest.raises(errors.UserError, match="scores.npz and metrics.json"):
        figures.load_artefacts(tmp_path)


def test_main_draws_the_protocol_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "SIMULATED", replace(settings.database("simulated"), root=tmp_path / "simdb"))
    monkeypatch.setattr(config, "MITDB", replace(settings.database("mitdb"), root=tmp_path / "mitdb"))
    folder = settings.database("simulated").results_dir("patient", config.SEED)
    write_artefacts(folder, n=1200, simulated=True, protocol="patient")
    visualize.main(["--protocol", "patient", "--simulated"])
    assert len(list(settings.database("simulated").plots_dir("patient").glob("*.png"))) == len(visualize.FIGURES)
    assert f"{len(visualize.FIGURES)} pictures" in capsys.readouterr().out
    with pytest.raises(errors.UserError, match="mitdb"):
        visualize.main(["--protocol", "patient"])
    with pytest.raises(SystemExit):
        visualize.main(["--protocol", "patients"])


def test_an_interrupted_run_leaves_the_old_pictures(results, tmp_path, monkeypatch):
    first = next(iter(visualize.FIGURES))
    (tmp_path / first).write_bytes(b"old")

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(artefacts.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        visualize.draw_all(results, tmp_path)
    assert (tmp_path / first).read_bytes() == b"old"


def test_baselines_are_curves_and_the_best_stands_beside_the_records(results):
    ax, = draw("roc.png", results).axes
    for name, entry in metrics_of(results)["baselines"].items():
        curve = line(ax, entry["title"])
        assert curve.get_label() == f"{entry['title']}: {figures.estimate(entry['auroc'])}", name
    by_record = metrics_of(results)["baselines"]["knn"]["by_record"]
    dots = line(draw("auroc_by_record.png", results).axes[0], "nearest components")
    assert sorted(dots.get_xdata()) == pytest.approx(sorted(v["auroc"] for v in by_record.values()
                                                            if v["auroc"] is not None))


def test_parts_show_the_named_part_and_the_saved_shares(results):
    figure = draw("parts_of_the_beat.png", results)
    with np.load(results / "scores.npz") as scores:
        for ax, row in zip(figure.axes, scores["part_row"]):
            title = beat_parts.TITLES[beat_parts.PARTS[scores["part"][row]]]
            assert f"leads: {title}, {scores['part_strength'][row]:.1f} times" in ax.get_title()
    widths = {patch.get_width() for patch in figure.axes[4].patches}
    assert {round(w, 6) for w in widths} == {10, 55, 15, 20}


def fake_ablation(path):
    row = {"title": "an element of the detector with a long name", "score": "combined",
           **{key: {"value": 0.9, "low": 0.85, "high": 0.93} for key in ("auroc", "auprc", "auroc_record_mean")}}
    table = {"ladder": [row] * 9, "checks": [row] * 5}
    path.write_text(json.dumps({"simulated": False, "seed": 0, "protocols": {"beat": table, "patient": table}}))


def test_ablation_picture_shows_every_variant_with_its_interval(tmp_path):
    fake_ablation(tmp_path / "ablation.json")
    path = visualize.draw_ablation(tmp_path / "ablation.json", tmp_path)
    with Image.open(path) as image:
        assert image.text["artefacts"] and image.width > 1000
    figure = visualize.ablation_figure(json.loads((tmp_path / "ablation.json").read_text()))
    for ax in figure.axes:
        assert len(ax.get_yticklabels()) == 14
        assert ax.lines[0].get_xdata() == pytest.approx(np.full(14, 90))


@pytest.mark.parametrize("content", (None, "{", "{}"))
def test_ablation_picture_without_results_names_the_command(content, tmp_path):
    if content is not None:
        (tmp_path / "ablation.json").write_text(content)
    with pytest.raises(errors.UserError, match="python ablation.py"):
        visualize.draw_ablation(tmp_path / "ablation.json", tmp_path)
