"""Tables and picture of results/benchmark.json, with the long runs of benchmark_training.py beside it."""

import statistics

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

import config
from pipeline.figures import ABNORMAL, BEST, GREY, NORMAL
from pipeline.tables import load_result, markdown, percent

EARLIEST_S = 0.01    # where a fit that only keeps its beats is drawn
LIBRARIES = {"this project": (NORMAL, "*"), "recipe": (ABNORMAL, "D"), "scikit-learn": (BEST, "s"), "PyOD": (GREY, "^")}


def speed_rows(rows):
    """One row a timing."""
    return [["", "", "median s", "rate", "times as fast"],
            *([r["what"], r["name"], f"{r['median_s']:.2f}", f"{r['rate']:,.0f} {r['unit']}",
               f"{r['times_as_fast']:.2f} (as {r['against']})"] for r in rows)]


def stage_rows(found):
    """One row a command."""
    return [["command", "s", "peak memory, MB"],
            *([f"`python {s['command']}`", f"{s['seconds']:.0f}", f"{s['peak_mb']:,.0f}"] for s in found)]


def long_runs(database):
    """{protocol: (recipe.json, full.json)}; UserError naming the command where one is missing."""
    return {protocol: tuple(load_result(database, f"{protocol}/{name}.json", f"benchmark_training.py --protocol {protocol}")
                            for name in ("recipe", "full")) for protocol in config.PROTOCOLS}


def trainings(saved, database):
    """[{"protocol", "library", "name", "segments", "seconds", "validation_loss", "auroc", "auprc"}] of whole trainings.

    Seconds are segments over the rate of benchmark.json: ours for this project, the plain network's at the recipe's
    batch for the recipe. Epochs, losses and quality are those of benchmark_training.py.
    """
    rate = {r["name"]: r["rate"] for r in saved["rows"] if r["what"] == "training step"}
    rows = []
    for protocol, (recipe, full) in long_runs(database).items():
        long = full["n_train"] * len(full["history"])
        lowest = lambda run: min(run["history"], key=lambda r: r["validation_loss"])
        last, best = len(recipe["history"]), lowest(recipe)["epoch"]
        end = "its end" if recipe["finished"] else "not its end"
        found = [("this project", "shipped", recipe["shipped"]["segments"], recipe["shipped"],
                  recipe["shipped"]["validation_loss"]),
                 ("this project", f"{long / recipe['shipped']['segments']:.0f} times as long", long, full["quality"],
                  lowest(full)["validation_loss"]),
                 ("recipe", f"{last} epochs ({end}), best {best}", last * recipe["n_train"], recipe["quality"]["best"],
                  recipe["history"][best - 1]["validation_loss"])]
        if recipe["equal_epoch"]:
            at = recipe["equal_epoch"]
            found.insert(2, ("recipe", f"to the loss of shipped: {at} epochs", at * recipe["n_train"],
                             recipe["quality"]["equal"], recipe["history"][at - 1]["validation_loss"]))
        if not recipe["finished"]:
            found.append(("recipe", f"all its {recipe['epochs']} epochs (extrapolated)", recipe["epochs"] * recipe["n_train"],
                          {"auroc": None, "auprc": None, "n": recipe["shipped"]["n"]}, None))
        rows += [{"protocol": protocol, "library": library, "name": name, "segments": n, "validation_loss": loss,
                  "seconds": n / rate["plain, recipe" if library == "recipe" else "ours"],
                  "auroc": figures["auroc"], "auprc": figures["auprc"], "n": figures["n"]}
                 for library, name, n, figures, loss in found]
    return rows


def training_rows(rows):
    """One row a training; `times as long` as the shipped one of its protocol."""
    lines = [["protocol", "training", "segments", "s", "times as long", "validation loss", "ROC-AUC", "PR-AUC"]]
    for r in rows:
        shipped = next(o for o in rows if o["protocol"] == r["protocol"])
        loss = f"{r['validation_loss']:.5f}" if r["validation_loss"] else "n/a"
        lines.append([r["protocol"], f"{r['library']}, {r['name']}", f"{r['segments']:,d}", f"{r['seconds']:,.0f}",
                      f"{r['seconds'] / shipped['seconds']:.1f}", loss, percent(r["auroc"]), percent(r["auprc"])])
    return lines


def detector_rows(rows):
    """One row a detector, best first; the fit of the network is its training."""
    lines = [["protocol", "detector", "library", "fit, s", "score, s", "ROC-AUC", "PR-AUC"]]
    for protocol in config.PROTOCOLS:
        own = sorted((r for r in rows if r["protocol"] == protocol), key=lambda r: -r["auroc"])
        lines += [[protocol, r["name"], r["library"],
                   f"{statistics.median(r['fit_s']):.2f}" if r["fit_s"] else "training above",
                   f"{statistics.median(r['score_s']):.2f}", percent(r["auroc"]), percent(r["auprc"])] for r in own]
    return lines


def qrs_rows(rows):
    """One row a QRS detector."""
    return [["QRS detector", "s an hour of ECG", "sensitivity", "PPV"],
            *([r["name"], f"{statistics.median(r['seconds']) / r['hours']:.2f}", percent(r["sensitivity"]),
               percent(r["ppv"])] for r in rows)]


def turn_by_turn(row, other):
    """Median over the turns of one rate divided by the other."""
    amount = [r["rate"] * r["median_s"] for r in (row, other)]
    return statistics.median(amount[0] / a / (amount[1] / b) for a, b in zip(row["times_s"], other["times_s"]))


def summary_rows(saved, database):
    """The README's table: this project, what it is compared with, how many times as fast."""
    row = {(r["what"], r["name"].split(",")[0] if "used" in r["name"] else r["name"]): r for r in saved["rows"]}
    lines = [["", "this project", "beside it", "times as fast"]]
    for what, other in (("training step", "plain"), ("inference", "plain"), ("inference", "matrix product"),
                        ("building the segments", "one loop"), ("building the segments", "decoding and filtering alone")):
        a, b = row[what, "ours"], row[what, other]
        lines.append([what, f"{a['rate']:,.0f} {a['unit']}", f"{other}: {b['rate']:,.0f} {b['unit']}",
                      f"{turn_by_turn(a, b):.2f}"])
    for protocol in config.PROTOCOLS:
        own = [r for r in trainings(saved, database) if r["protocol"] == protocol]
        for other in own[1:]:
            lines.append([f"training, {protocol} protocol (ROC-AUC, validation)",
                          f"{own[0]['seconds']:,.0f} s ({percent(own[0]['auroc'])})",
                          f"{other['library'].replace('this project', 'ours')}, {other['name']}: {other['seconds']:,.0f} s "
                          f"({percent(other['auroc'])})", f"{other['seconds'] / own[0]['seconds']:.1f}"])
    return lines


def lines_of(saved, database):
    """The section of RESULTS.md."""
    long = trainings(saved, database)
    n = {r["protocol"]: f"{r['n']:,d}" for r in long}
    return ["## Speed", "", f"`benchmark.py`: {saved['threads']} threads, candidates in turn within one run, each in "
            f"a process of its own, medians. A training step is of {saved['batch']} segments; scoring is of the "
            f"{saved['n_test']:,d} test beats of the patient protocol.", "", *markdown(speed_rows(saved["rows"])), "",
            "Each command by itself, processes of its own included:", "", *markdown(stage_rows(saved["stages"])), "",
            "### Training less", "", "Segments and losses from `benchmark_training.py`, seconds by the rates above (steps "
            "alone: validation and the fit of the scores count in no row). The recipe is the published one: all normal "
            f"beats, batches of {saved['recipe_batch']}, AdamW at 1e-3, reduced on a plateau, up to 100 epochs, "
            "reconstruction alone, of the same tapered beat. ROC-AUC and PR-AUC of the default score on validation beats "
            f"({' and '.join(f'{p} {k}' for p, k in n.items())}), seed {config.SEED}.", "", *markdown(training_rows(long)),
            "", "![Quality against training time](evaluation_plots/benchmark.png)", "",
            "### Other detectors", "", "Fit on normal training beats (those whose cost grows faster than linear: on "
            "20,000), score of the same validation beats, from the windowed beat's principal components on; for this "
            "project from the segment on. None of the others knows the record a beat is from, which is what counts in the patient "
            "protocol; those that do are among the baselines above.", "", *markdown(detector_rows(saved["detectors"])), "",
            f"QRS detectors on the validation patients ({saved['qrs'][0]['hours']:.1f} h), within 150 ms:", "",
            *markdown(qrs_rows(saved["qrs"]))]


def figure(saved, database):
    """What is missing to a ROC-AUC of 100 % against the time of training or fit, a numbered point a method."""
    points = [r for r in trainings(saved, database) if r["auroc"]] + [
        {**r, "seconds": statistics.median(r["fit_s"])} for r in saved["detectors"] if r["fit_s"]]
    picture = Figure(figsize=(13, 5), dpi=150, layout="constrained")
    for ax, protocol in zip(picture.subplots(1, len(config.PROTOCOLS)), config.PROTOCOLS):
        own = sorted((p for p in points if p["protocol"] == protocol), key=lambda p: -p["auroc"])
        for k, p in enumerate(own, 1):
            colour, marker = LIBRARIES[p["library"]]
            at = max(p["seconds"], EARLIEST_S), 100 * (1 - p["auroc"])
            ax.plot(*at, marker, color=colour, label=f"{k}  {p['library']}: {p['name'].split(' (')[0]}",
                    markersize=10 if marker == "*" else 6)
            ax.annotate(str(k), at, xytext=(5, 4), textcoords="offset points", fontsize=7)
        ax.set(title=f"{protocol} protocol, {own[0]['n']:,d} validation beats", xscale="log", yscale="log",
               xlabel="time of training or fit (s)", ylabel="100 - ROC-AUC (%)")
        ax.invert_yaxis()  # the best on top
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        ax.grid(True)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
    return picture
