"""The results as tables, printed from saved results and nothing else.

`python report.py` prints them; `python report.py --write` puts the headline into README.md
between its two marker lines and all the rest into RESULTS.md. No number in the README is typed by hand.
"""

import argparse
import json
import statistics

from studies import benchmark_report
import config
from pipeline import errors, settings
from pipeline.errors import UserError
from pipeline.artefacts import whole_file
from pipeline.tables import aligned, load_result, markdown, percent

BEGIN, END = "<!-- results: python report.py --write -->", "<!-- end of results -->"
RATES = ("accuracy", "sensitivity", "specificity", "ppv", "f1")
HEADINGS = {"accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity",
            "ppv": "PPV", "f1": "F1"}


def load_metrics(folder):
    """metrics.json of one run; UserError naming the command if it is missing or damaged."""
    path = folder / "metrics.json"
    if not path.exists():
        raise UserError(f"{path}: missing. Make it with: python evaluate.py (same --protocol, --seed, --simulated)")
    try:
        stored = json.loads(path.read_text())
        stored["scores"], stored["origin"]["segments_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}). Make it again with: "
                        "python evaluate.py --force (same --protocol, --seed, --simulated)") from error
    return stored


def load_seeds(database, protocol):
    """{seed: metrics} of every trained seed whose segments and settings are those of SEED's run."""
    runs = {}
    for seed in config.SEEDS:
        folder = database.results_dir(protocol, seed)
        if (folder / "metrics.json").exists():
            runs[seed] = load_metrics(folder)
    origin = runs[config.SEED]["origin"] if config.SEED in runs else next(iter(runs.values()), {}).get("origin", {})
    same = [k for k in origin if k != "weights"]
    return {seed: run for seed, run in runs.items()
            if run["seed"] == seed and all(run["origin"].get(k) == origin[k] for k in same)}


def interval(figure):
    """"97.21 (96.10 to 98.02)" of a figure with its interval."""
    return f"{percent(figure['value'])} ({percent(figure['low'])} to {percent(figure['high'])})"


def spread(runs, name, key):
    """"97.21 (97.10 to 97.30)": median and range over seeds."""
    values = [run["scores"][name][key]["value"] for run in runs.values()]
    return f"{percent(statistics.median(values))} ({percent(min(values))} to {percent(max(values))})"


def warning(result):
    """The line that marks every table of simulated data, else nothing."""
    return ["SIMULATED DATA: no patient, no result. It shows that the pipeline runs."] * result["simulated"]


def median_of(runs, name, key):
    """"97.21": median over seeds."""
    values = [run["scores"][name][key]["value"] for run in runs.values()]
    return percent(statistics.median(values)) if None not in values else "n/a"


def headline_rows(result, runs):
    """One row a score: areas as median and range over seeds with one seed's interval over records,
    and figures at the threshold, medians over seeds. Baselines have no seed."""
    rows = [["score", f"ROC-AUC, median (range) of {len(runs)} seeds",
             f"95 % interval over records, seed {result['seed']}",
             "PR-AUC, median (range)", "95 % interval", "ROC-AUC, mean over records", *HEADINGS.values()]]
    for name, score in result["scores"].items():
        mark = " (default)" if name == result["default_score"] else ""
        rows.append([f"`{name}`{mark}", spread(runs, name, "auroc"), bounds(score["auroc"]),
                     spread(runs, name, "auprc"), bounds(score["auprc"]),
                     *(median_of(runs, name, key) for key in ("auroc_record_mean", *RATES))])
    for name, score in result.get("baselines", {}).items():
        rows.append([score["title"], percent(score["auroc"]["value"]), bounds(score["auroc"]),
                     percent(score["auprc"]["value"]), bounds(score["auprc"]),
                     *(percent(score[key]["value"]) for key in ("auroc_record_mean", *RATES))])
    if result["protocol"] == "beat" and not result["simulated"]:
        published = result["published"]
        rows.append(["published (chosen on test)", percent(published["auroc"]), "", "", "", "",
                     *(percent(published.get(key)) for key in RATES)])
    return rows


def bounds(figure):
    """"96.10 to 98.02" of a figure with its interval."""
    return f"{percent(figure['low'])} to {percent(figure['high'])}"


def difference_rows(result):
    """The default score minus each baseline, on the same resampled records, in points of %."""
    rows = [[f"`{result['default_score']}` minus", "ROC-AUC (95 % interval)", "PR-AUC (95 % interval)"]]
    for score in result["baselines"].values():
        difference = score["default_minus_it"]
        rows.append([score["title"], interval(difference["auroc"]), interval(difference["auprc"])])
    return rows


def class_rows(result):
    """ROC-AUC of each abnormal class against all normals, and its flagged share, a row a score."""
    classes = next(iter(result["scores"].values()))["by_class"]
    rows = [["score", *(f"{c} (n = {v['n']:,d})" for c, v in classes.items())]]
    named = [(f"`{name}`", score) for name, score in result["scores"].items()]
    for name, score in named + [(s["title"], s) for s in result.get("baselines", {}).values()]:
        rows.append([name, *(f"{percent(v['auroc'])} / {percent(v['sensitivity'], 1)}"
                                    for v in score["by_class"].values())])
    return rows


def headline(result, runs):
    """Two sentences: the default score's median over seeds, and the best detector without a network."""
    name = result["default_score"]
    median, low_high = spread(runs, name, "auroc").split(" ", 1)
    against = (f", published {percent(result['published']['auroc'])}"
               if result["protocol"] == "beat" and not result["simulated"] else "")
    text = [f"ROC-AUC of `{name}`: {median} {low_high}, median and range of {len(runs)} seeds{against}; "
            f"of the plain `mse`: {spread(runs, 'mse', 'auroc')}."]
    if result.get("baselines"):
        best = max(result["baselines"].values(), key=lambda b: b["auroc"]["value"])
        text.append(f"Best without a network: {best['title']}, {interval(best['auroc'])}.")
    return " ".join(text)


def counts_line(result):
    n = result["n"]
    return (f"{result['database']}, {result['protocol']} protocol, seed {result['seed']}: {n['test']:,d} test beats "
            f"({n['normal']:,d} normal, {n['abnormal']:,d} abnormal) of {n['records']} records")


def terminal_table(result, runs):
    """What evaluate.py prints."""
    runs = runs or {result["seed"]: result}
    default = result["scores"][result["default_score"]]
    c = default["confusion"]
    lines = [*warning(result), counts_line(result), "", *aligned(headline_rows(result, runs)), "",
             "class ROC-AUC / share flagged [%]", *aligned(class_rows(result)), "",
             *(aligned(difference_rows(result)) + [""] if "baselines" in result else []),
             f"default score {result['default_score']}, threshold {default['threshold']:.4g} chosen on validation: "
             f"TN {c['tn']:,d}  FP {c['fp']:,d}  FN {c['fn']:,d}  TP {c['tp']:,d}", "",
             "by symbol (n, flagged %): " + ", ".join(f"{s} {v['n']:,d} {percent(v['flagged'], 1)}"
                                                      for s, v in default["by_symbol"].items()),
             "by record (ROC-AUC %): " + ", ".join(f"{r} {percent(v['auroc'], 1)}"
                                                   for r, v in default["by_record"].items()), *warning(result)]
    return "\n".join(lines)


def without_rows(result, runs):
    """The default score and the plain error with and without the hardest record."""
    rows = [["score", "all records", "without record 232"]]
    key = ("auroc", "auprc", "auroc_record_mean")
    for name, score in result["scores"].items():
        if score["without_232"]:
            rest = [statistics.median(run["scores"][name]["without_232"][k] for run in runs.values()) for k in key]
            rows.append([f"`{name}`", " / ".join(median_of(runs, name, k) for k in key),
                         " / ".join(map(percent, rest))])
    return rows


def ec57_rows(result):
    """Share flagged by class, gross and average over records; of N it is the false-positive rate."""
    table = result["ec57"]["classes"]
    return [["", *(f"{c} (n = {v['n']:,d}, {v['records']} records)" for c, v in table.items())],
            *([kind, *(percent(v[kind], 1) for v in table.values())] for kind in ("gross", "average"))]


def alarm_rows(runs):
    """False alarms an hour at given sensitivities of the test curve, medians over seeds."""
    rows = [["sensitivity", "specificity", "false alarms an hour"]]
    for k, first in enumerate(next(iter(runs.values()))["false_alarms"]):
        own = [run["false_alarms"][k] for run in runs.values()]
        rows.append([percent(first["sensitivity"], 0), percent(statistics.median(r["specificity"] for r in own)),
                     f"{statistics.median(r['per_hour'] for r in own):.1f}"])
    return rows


def calibration_rows(runs):
    """Specificity asked of the validation part against what the threshold gave on test, medians over seeds."""
    rows = [["asked on validation", "specificity on test: median (range)", "sensitivity on test: median (range)"]]
    for k, first in enumerate(next(iter(runs.values()))["calibration"]):
        columns = [[run["calibration"][k][key] for run in runs.values()] for key in ("specificity", "sensitivity")]
        rows.append([percent(float(first["asked"]), 0), *(f"{percent(statistics.median(c))} ({percent(min(c))} to "
                                                          f"{percent(max(c))})" for c in columns)])
    return rows


def part_rows(result):
    """Which part leads in the flagged beats of each class, in % of them."""
    table = result["parts"]
    names = [p for p in next(iter(table.values())) if p != "n"]
    return [["class", "flagged beats", *names],
            *([c, f"{v['n']:,d}", *(percent(v[p], 1) for p in names)] for c, v in table.items())]


def ablation_rows(rows):
    """One row a variant, with intervals over records."""
    return [["variant", "score", "ROC-AUC (95 % interval)", "PR-AUC (95 % interval)", "ROC-AUC, mean over records"],
            *([r["title"], f"`{r['score']}`", interval(r["auroc"]), interval(r["auprc"]),
               percent(r["auroc_record_mean"]["value"])] for r in rows)]


def selection_rows(rows, best=None):
    """Candidates tried on validation data and their merit."""
    names = {"auroc": "ROC-AUC", "auroc_record_mean": "mean over records", "auprc": "PR-AUC",
             "thinned": "mean of the three, thinned records", "merit": "merit"}
    names = {key: title for key, title in names.items() if key in rows[0]}
    what = lambda r: (f"`{r['setting']} = {r['value']}`{' (used)' if r['used'] else ''}" if "setting" in r else
                      ", ".join(f"{k} {v:g}" for k, v in r["weights"].items()))
    return [["candidate", *names.values()],
            *([what(r), *(percent(r[k]) for k in names)] for r in rows[:best])]


def operating_rows(points):
    """Specificity asked of the threshold and what it gives on the validation beats."""
    names = ("accuracy", "sensitivity", "specificity", "f1")
    return [["asked", *names[:3], "F1", "least margin over the published figures"],
            *([percent(p["asked"]) + " (used)" * p["used"], *(percent(p[k]) for k in names), percent(p["margin"])]
              for p in points)]


def recordings_rows(results):
    """One row a run of `evaluate.py --recordings`: {name: its JSON}."""
    rows = [["recordings", "R peaks", "QRS sensitivity / PPV", "ROC-AUC, pooled / mean", "N flagged, gross / average",
             "S", "V", "F", "false alarms an hour", "unreadable"]]
    for name, r in results.items():
        qrs, level = r["qrs"], r["level"]
        rows.append([f"{name} ({r['records']})", r["r_peaks"],
                     f"{percent(qrs['sensitivity_gross'])} / {percent(qrs['ppv_gross'])}",
                     f"{percent(level['auroc'])} / {percent(level['auroc_record_mean'])}",
                     *(f"{percent(r['classes'][c]['gross'], 1)} / {percent(r['classes'][c]['average'], 1)}"
                       for c in "NSVF"), f"{r['false_alarms_per_hour']:.0f}", percent(r["unreadable_share"], 1)])
    return rows


def noise_rows(result):
    """One row a noise, ROC-AUC / false alarms an hour / unreadable share at each ratio."""
    ratios = sorted({r["snr_db"] for r in result["rows"] if r["noise"]}, reverse=True)
    cell = lambda r: " / ".join((percent(r["auroc"], 1), f"{r['false_alarms_per_hour']:.0f}",
                                 percent(r["unreadable_share"], 0)))
    clean = next(r for r in result["rows"] if not r["noise"])
    names = list(dict.fromkeys(r["noise"] for r in result["rows"] if r["noise"]))
    found = {(r["noise"], r["snr_db"]): r for r in result["rows"]}
    return [["noise", "none", *(f"{snr} dB" for snr in ratios)],
            *([name, cell(clean), *(cell(found[name, snr]) for snr in ratios)] for name in names)]


def rule_rows(runs, noise):
    """What the rule of unreadable stretches costs and saves: flagged share and false alarms with it / without it."""
    rows = [["signal", "false alarms an hour", *(f"{name} flagged" for name in "NSVF"), "beats of N, V not scored"]]
    pairs = [("test records", runs["test"], runs["test-all"])] if {"test", "test-all"} <= runs.keys() else []
    pairs += [(f"{r['noise'] or 'none'}, {r['snr_db']} dB" if r["noise"] else "the stress test's records, no noise",
               r, r["without_rule"]) for r in (noise["rows"] if noise else []) if r["snr_db"] in (None, 24, 12, 0)]
    for name, ruled, free in pairs:
        both = lambda key, digits=1: " / ".join(percent(r["classes"][key]["gross"], digits) for r in (ruled, free))
        lost = lambda key: percent(ruled["classes"][key]["not_scored"] / max(ruled["classes"][key]["n"], 1), 1)
        rows.append([name, " / ".join(f"{r['false_alarms_per_hour']:.0f}" for r in (ruled, free)),
                     *map(both, "NSVF"), f"{lost('N')}, {lost('V')}"])
    return rows


def detect_lines(database):
    """RESULTS.md's part on detect.py, of what has been measured."""
    folder = database.root / "results"
    runs = {path.stem.removeprefix("recordings-"): json.loads(path.read_text())
            for path in sorted(folder.glob("recordings-*.json"))}
    lines = []
    if runs:
        lines += ["", "## detect.py against expert labels", "", "`python evaluate.py --recordings`: its own output, "
                  "nothing refitted; the first five minutes not counted, missed beats count as not flagged. `test`: "
                  "the 22 test patients of MIT-BIH; others are the folder's name.", "",
                  *markdown(recordings_rows(runs))]
    noise = load_result(database, "noise_stress.json", "") if (folder / "noise_stress.json").exists() else None
    rule = rule_rows(runs, noise)
    if len(rule) > 1:
        lines += ["", "### What the rule of unreadable stretches costs and saves", "", "With `quality.py`'s rule / "
                  "without it (`--score-all`). A beat that is not scored counts as not flagged.", "", *markdown(rule)]
    if noise:
        lines += ["", "## detect.py in noise", "", "`python noise_stress.py`: ROC-AUC of the readable beats / "
                  "false alarms an hour / % of the time unreadable, in the noisy stretches.", "",
                  *markdown(noise_rows(noise))]
    return lines


def readme_block(database):
    """The README's results section, Markdown."""
    lines = []
    for protocol in config.PROTOCOLS:
        result = load_metrics(database.results_dir(protocol, config.SEED))
        runs = load_seeds(database, protocol)
        lines += ["", f"### {protocol.capitalize()} protocol", "", headline(result, runs), "",
                  f"{counts_line(result)}. All figures in %.", "",
                  *warning(result), *markdown(headline_rows(result, runs))]
        if "baselines" in result:
            lines += ["", "The default score against each detector without a network, paired over records "
                      "(above 0: the default score is better).", "", *markdown(difference_rows(result))]
    speed = load_result(database, "benchmark.json", "benchmark.py")
    lines += ["", "### Speed", "", f"{speed['threads']} cores, no GPU, `benchmark.py`: medians of turns in one run. `plain` is the "
              "same network in eager layers, `recipe` the published training. All rows in [RESULTS.md](RESULTS.md).", "",
              *markdown(benchmark_report.summary_rows(speed, database))]
    return "\n".join([BEGIN, *lines, "", END])


def results_document(database):
    """RESULTS.md: every table that the README has no room for."""
    ablation = load_result(database, "ablation.json", "ablation.py")
    selection = load_result(database, "selection.json", "select_score.py")
    lines = ["# Results", "", "Printed by `python report.py --write` from `results/`; no number is typed by hand. "
             "All figures in %. Headline tables and baselines: README.md."]
    for protocol in config.PROTOCOLS:
        result = load_metrics(database.results_dir(protocol, config.SEED))
        runs, of = load_seeds(database, protocol), ablation["protocols"][protocol]
        name = f"`{result['default_score']}`"
        left = result["ec57"]["left_out"]
        lines += [
            "", f"## {protocol.capitalize()} protocol", "", headline(result, runs), "", *warning(result),
            "### By class", "", "Each class against the normal beats: ROC-AUC / share flagged at the threshold, seed "
            f"{result['seed']}.", "", *markdown(class_rows(result)), ""]
        if result["scores"][result["default_score"]]["without_232"]:
            lines += ["### With and without record 232", "", "Most S beats of the test records are in it, and more of "
                      "its beats are abnormal than normal. ROC-AUC / PR-AUC / mean ROC-AUC over records, medians over "
                      "seeds.", "", *markdown(without_rows(result, runs)), ""]
        lines += [
            "### EC57-style", "", f"Share flagged by {name} at its threshold: sensitivity of S, V, F, Q and "
            "false-positive rate of N; gross over all beats, average over records. The first five minutes are not "
            f"counted; records with paced beats left out: {', '.join(left) if left else 'none here'}. `e` and `j` are "
            f"normal here (bxb: S); R peaks are the annotated ones. Seed {result['seed']}.", "",
            *markdown(ec57_rows(result)), "",
            "### False alarms", "", f"{result['hours']:.1f} h of test beats; thresholds read off the test curve, to "
            f"show the curve. Medians over {len(runs)} seeds.", "", *markdown(alarm_rows(runs)), "",
            "### What a threshold kept of its promise", "", f"Thresholds of {name} from normal validation beats.",
            "", *markdown(calibration_rows(runs)), "",
            "### Which part of the beat", "", f"Beats flagged by {name}, seed {result['seed']}: share in which each "
            "part deviates most from the record's own regular beats (`attribution.py`).", "",
            *markdown(part_rows(result)), "",
            "### Ablation", "", f"Test split, seed {ablation['seed']}; every row keeps what the rows above added.", "",
            *markdown(ablation_rows(of["ladder"])), "",
            "### Sanity checks", "", "The default score with something broken or replaced.", "",
            *markdown(ablation_rows(of["checks"])), "",
            "### Selection on validation data", "", "`select_score.py`, where the procedure is stated; one setting "
            "varied at a time, then the ten best weights. No test beat is read.", "",
            *markdown(selection_rows(selection["protocols"][protocol]["settings"])), "",
            *markdown(selection_rows(selection["protocols"][protocol]["weights"], 10))]
    speed = load_result(database, "benchmark.json", "benchmark.py")
    lines += ["", *benchmark_report.lines_of(speed, database)]
    lines += ["", "## Specificity asked of the threshold", "", "Beat protocol, validation beats, mean over seeds "
              "(`select_score.py`). Abnormal validation beats have a say here and nowhere else.", "",
              *markdown(operating_rows(selection["operating_points"])), *detect_lines(database)]
    return "\n".join(lines) + "\n"


def written_into(text, block):
    """README text with the block in place of what stands between the markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"README.md: expected one line {BEGIN!r} and one {END!r} after it")
    return text[:text.index(BEGIN)] + block + text[text.index(END) + len(END):]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into README.md and RESULTS.md")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    settings.check()
    block, document = readme_block(settings.database("mitdb")), results_document(settings.database("mitdb"))
    if not args.write:
        return print(f"{block}\n\n{document}")
    readme = settings.ROOT / "README.md"
    with whole_file(readme) as part:
        part.write_text(written_into(readme.read_text(), block))
    with whole_file(settings.ROOT / "RESULTS.md") as part:
        part.write_text(document)
    print(f"wrote the results into {readme} and RESULTS.md")


if __name__ == "__main__":
    errors.run(main)
