"""What the saved benchmarks say: rows for the tables of studies/report.py, and the two pictures."""

import statistics

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import config
from pipeline.artefacts import load_json
from pipeline.figures import ABNORMAL, BEST, CURVES, DPI, GREY, NORMAL

EARLIEST_S = 0.01    # where a fit that only keeps its beats is drawn
LIBRARIES = {"this project": (NORMAL, "*"), "recipe": (ABNORMAL, "D"), "scikit-learn": (BEST, "s"),
             "PyOD": (GREY, "^")}
SUMMARY = (("training step", "plain"), ("inference", "plain"), ("inference", "matrix product"),
           ("building the segments", "one loop"),
           ("building the segments", "decoding and filtering alone"))
PER_UNIT = {"hours": "an hour", "segments": "a segment"}
DAYS_HOURS = 24e6    # a million recordings of a day


# --- speed ----------------------------------------------------------------------------------------

def summary(rows):
    """[(what, our row, name of the other, its row, how many times as fast ours is)].

    The last is a median over the turns.
    """
    found = {}
    for row in rows:
        # of the batch sizes of inference, the one that is used is "ours"
        name = row["name"].split(",")[0] if "(used)" in row["name"] else row["name"]
        found[row["what"], name] = row

    compared = []
    for what, name in SUMMARY:
        ours = found[what, "ours"]
        other = found[what, name]
        # a whole number of matrix products is nearly, not exactly, as much work
        work = ours["rate"] * ours["median_s"] / (other["rate"] * other["median_s"])
        ratios = [work * b / a for a, b in zip(ours["times_s"], other["times_s"])]
        compared.append((what, ours, name, other, statistics.median(ratios)))
    return compared


def long_runs(database):
    """{protocol: (recipe.json, full.json)}; UserError naming the command where one is missing."""
    runs = {}
    for protocol in config.PROTOCOLS:
        folder = database.results_dir(protocol, config.SEED)
        command = database.command("-m studies.benchmark_training", "--protocol", protocol)
        runs[protocol] = [load_json(folder / f"{run}.json", command) for run in ("recipe", "full")]
    return runs


def trainings(rows, database):
    """A row a whole training: its protocol, name, segments, seconds, validation loss and quality.

    Seconds are segments over the rates in `rows` of benchmark.json: ours for this project, the
    plain network's at the recipe's batch for the recipe. Epochs, losses and quality are those of
    studies.benchmark_training.
    """
    rates = {row["name"]: row["rate"] for row in rows if row["what"] == "training step"}
    # of steps timed in turn on one machine: the long runs may be of another
    rate = {"this project": rates["ours"], "recipe": rates["plain, recipe"]}
    found = []

    for protocol, (recipe, full) in long_runs(database).items():
        shipped = recipe["shipped"]
        runs = [("this project", "shipped", shipped["segments"], shipped,
                 shipped["validation_loss"])]

        # our training, many times as long
        segments = full["n_train"] * len(full["history"])
        losses = [row["validation_loss"] for row in full["history"]]
        runs.append(("this project", f"{segments / shipped['segments']:.0f} times as long",
                     segments, full["quality"], min(losses)))

        # the recipe: to the shipped loss, as far as it went, and all of it
        n = recipe["n_train"]
        losses = [row["validation_loss"] for row in recipe["history"]]
        equal = recipe["equal_epoch"]
        if equal:
            runs.append(("recipe", f"to the loss of shipped: {equal} epochs", equal * n,
                         recipe["quality"]["equal"], losses[equal - 1]))

        end = "its end" if recipe["finished"] else "not its end"
        runs.append(("recipe",
                     f"{len(losses)} epochs ({end}), best {losses.index(min(losses)) + 1}",
                     len(losses) * n, recipe["quality"]["best"], min(losses)))
        # what nobody waited for has a time and no quality
        if not recipe["finished"]:
            runs.append(("recipe", f"all its {recipe['epochs']} epochs (extrapolated)",
                         recipe["epochs"] * n, {"auroc": None, "auprc": None}, None))

        shipped_s = shipped["segments"] / rate["this project"]
        for library, name, segments, quality, loss in runs:
            seconds = segments / rate[library]
            found.append({"protocol": protocol, "library": library, "name": name,
                          "segments": segments, "seconds": seconds,
                          "times_as_long": seconds / shipped_s, "validation_loss": loss,
                          "auroc": quality["auroc"], "auprc": quality["auprc"],
                          "n": shipped["n"]})
    return found


def points_of(speed, database):
    """Trainings and fits with a time and a quality, best first within each protocol."""
    points = [row for row in trainings(speed["rows"], database) if row["auroc"]]
    for row in speed["detectors"]:
        # ours has no fit here: it stands among the trainings
        if row["fit_s"]:
            points.append({**row, "seconds": statistics.median(row["fit_s"])})
    return sorted(points, key=lambda point: -point["auroc"])


def quality_figure(speed, database):
    """What is missing to a ROC-AUC of 100 % against the time of training: a point a method."""
    points = points_of(speed, database)
    figure = Figure(figsize=(8.3, 5.8), dpi=DPI, layout="constrained")
    for ax, protocol in zip(figure.subplots(1, len(config.PROTOCOLS)), config.PROTOCOLS):
        shown = [point for point in points if point["protocol"] == protocol]
        for library, (colour, marker) in LIBRARIES.items():
            draw_library(ax, library, [row for row in shown if row["library"] == library],
                         colour, marker)

        ax.set(title=f"{protocol} protocol, n = {shown[0]['n']:,d} validation beats",
               xscale="log", xlabel="time of training or fit (s)",
               yscale="log", ylabel="100 - ROC-AUC (%)")
        ax.invert_yaxis()  # the best on top
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1,)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        ax.grid(True)
        ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), frameon=False,
                  title="ROC-AUC, time")
    return figure


def draw_library(ax, library, rows, colour, marker):
    """Points of one library, best first: the first two trainings, or the best fit, by name.

    The others are small and named in the table of docs/results.md.
    """
    named = 2 if library in ("this project", "recipe") else 1
    for k, row in enumerate(rows[:named]):
        # on a logarithmic scale, what is missing to 100 % sets good ones apart
        at = (max(row["seconds"], EARLIEST_S), 100 * (1 - row["auroc"]))
        seconds = f"{row['seconds']:,.0f}" if row["seconds"] >= 10 else f"{row['seconds']:.1g}"
        ax.plot(*at, marker, color=colour, markersize=12 if marker == "*" else 7,
                markerfacecolor="white" if k else colour, linestyle="none", zorder=3,
                label=f"{library}, {row['name'].split(' (')[0]}:\n"
                      f"{100 * row['auroc']:.2f} %, {seconds} s")

    others = rows[named:]
    if others:
        ax.plot([max(row["seconds"], EARLIEST_S) for row in others],
                [100 * (1 - row["auroc"]) for row in others], marker, color=colour, alpha=0.45,
                markersize=4.5, linestyle="none", label=f"{library}, {len(others)} others")


# --- whole recordings -----------------------------------------------------------------------------

def whole_recordings(timings):
    """{name: figure} of detect.json for templates/detect.md and scaling.md; "rows": a dict a case
    and version. Ratios are medians over the turns.
    """
    rows = {(row["case"], row["version"]): row for row in timings["rows"]}
    found = []
    for (case, version), row in rows.items():
        before = rows.get((case, "before"))
        faster = None
        if version == "now" and before:
            faster = statistics.median(b / a for a, b in zip(row["seconds"], before["seconds"]))
        found.append({"case": case, "version": version, "turns": len(row["seconds"]),
                      "seconds": statistics.median(row["seconds"]), "peak_mb": row["peak_mb"],
                      "times_as_fast": faster})

    day = rows["a day", "now"]
    days = rows[f"{timings['days']} days", "now"]
    seconds = statistics.median(day["seconds"])
    strips = statistics.median(rows[f"{timings['strips']} strips", "now"]["seconds"])
    workers = [(int(case.split()[-1]), statistics.median(row["seconds"]))
               for (case, _), row in rows.items() if case.startswith("cluster")]
    return {
        "rows": found, "product_s": statistics.median(timings["products_s"]),
        "of_product": statistics.median(a / b for a, b in zip(day["seconds"],
                                                              timings["products_s"])),
        "gflop_per_s": timings["gflop"] / statistics.median(timings["products_s"]),
        "days_in_days": statistics.median(days["seconds"]) / seconds,
        "days_memory": days["peak_mb"] / day["peak_mb"],
        "strips_per_s": timings["strips"] / strips,
        "workers": [{"workers": n, "hours_an_hour": 3600 * timings["cluster_hours"] / s,
                     "times_one": workers[0][1] / s} for n, s in workers],
        "core_hours": seconds * timings["threads"] * DAYS_HOURS / timings["hours"] / 3600,
        "terabytes": timings["bytes_written"] * DAYS_HOURS / timings["hours"] / 1e12,
        "read_mb_per_core_s": timings["bytes_read"] / seconds / timings["threads"] / 1e6,
        "hours_an_hour": timings["hours"] * 3600 / seconds / timings["threads"]}


# --- scaling --------------------------------------------------------------------------------------

def stages_of(size):
    """{stage: its rows and straight line} of size.json, and what a million days need of it."""
    stages = {}
    for name in dict.fromkeys(row["stage"] for row in size["rows"]):
        rows = [row for row in size["rows"] if row["stage"] == name]
        sizes = [row["size"] for row in rows]
        seconds = np.array([statistics.median(row["seconds"]) for row in rows])

        # a straight line by relative error: else the largest size alone would say where it lies
        slope, fixed = np.polyfit(sizes, seconds, 1, w=1 / seconds)
        stages[name] = {"rows": rows, "fixed": fixed, "slope": slope}

        # training writes nothing that grows with the data, and is counted by beats
        if rows[-1]["bytes"]:
            core_s = slope * size["cores"]  # of one core, for an hour of ECG
            written = rows[-1]["bytes"] / rows[-1]["size"]
            stages[name] |= {"core_hours": core_s * DAYS_HOURS / 3600,
                             "terabytes": written * DAYS_HOURS / 1e12,
                             "read_mb_per_s": size["read_bytes_per_hour"] / core_s / 1e6,
                             "written_mb_per_s": written / core_s / 1e6,
                             "hours_an_hour": 3600 / core_s}
    return stages


def needs_of(size, stages):
    """What the text of docs/scaling.md says beside the stages."""
    # as many beats an hour as in MIT-BIH
    beats = size["beats_per_hour"] * DAYS_HOURS
    seconds = stages["epoch"]["slope"]
    return {"beats": beats, "training_core_hours": beats * seconds * size["cores"] / 3600,
            "terabytes_read": size["read_bytes_per_hour"] * DAYS_HOURS / 1e12,
            "training_mb_per_s": 4 * config.WINDOW_SIZE / seconds / 1e6,
            "segments_learnt": config.MAX_EPOCHS * config.EPOCH_SEGMENTS}


def scaling_figure(stages):
    """Seconds against size, a panel a stage, every timing and the line."""
    figure = Figure(figsize=(8.3, 3.6), dpi=DPI, layout="constrained")
    for ax, (name, stage), (colour, _) in zip(figure.subplots(1, len(stages)), stages.items(),
                                              CURVES):
        rows = stage["rows"]
        sizes = [row["size"] for row in rows]
        ax.plot(sizes, [row["seconds"] for row in rows], "o", color=colour, markersize=4)

        unit = rows[0]["unit"]
        slope = stage["slope"]
        rate = f"{slope:.2g} s" if slope >= 1 else f"{1000 * slope:.3g} ms"

        # from 0, where the line shows what a start costs
        ends = np.array([0, sizes[-1]])
        ax.plot(ends, stage["fixed"] + slope * ends, color="black", linewidth=1)
        # in the title: a legend would lie over points
        ax.set(title=f"{name}, n = {len(rows)} sizes\n"
                     f"line: {stage['fixed']:.1f} s + {rate} {PER_UNIT[unit]}",
               xlabel=f"data ({unit})", ylabel="time (s)", xlim=(0, None), ylim=(0, None))
        ax.grid(True)
    return figure
