"""The results as tables, printed from saved metrics.json files and nothing else.

`python report.py` prints the README's results; `python report.py --write` puts them into
README.md between its two marker lines. No number in the README is typed by hand.
"""

import argparse
import json
import statistics

import config
from config import UserError
from files import whole_file

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
        folder = config.results_dir(database, protocol, seed)
        if (folder / "metrics.json").exists():
            runs[seed] = load_metrics(folder)
    origin = runs[config.SEED]["origin"] if config.SEED in runs else next(iter(runs.values()), {}).get("origin", {})
    same = [k for k in origin if k != "weights"]
    return {seed: run for seed, run in runs.items()
            if run["seed"] == seed and all(run["origin"].get(k) == origin[k] for k in same)}


def percent(figure, digits=2):
    """"97.21" of 0.9721, or "n/a"."""
    return "n/a" if figure is None else f"{100 * figure:.{digits}f}"


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


def aligned(rows):
    """Rows of strings as text columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
            for row in rows]


def markdown(rows):
    """Rows of strings as a Markdown table, the first its heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def headline_rows(result, runs):
    """One row a score: areas with intervals over records, median over seeds, figures at the threshold."""
    seeds = f"ROC-AUC over seeds {', '.join(map(str, sorted(runs)))}: median (range)"
    rows = [["score", "ROC-AUC (95 % interval)", seeds, "PR-AUC (95 % interval)",
             "ROC-AUC, mean over records", *HEADINGS.values()]]
    for name, score in result["scores"].items():
        mark = " (default)" if name == result["default_score"] else ""
        rows.append([f"`{name}`{mark}", interval(score["auroc"]), spread(runs, name, "auroc"),
                     interval(score["auprc"]), percent(score["auroc_record_mean"]["value"]),
                     *(percent(score[key]["value"]) for key in RATES)])
    for name, score in result.get("baselines", {}).items():
        rows.append([score["title"], interval(score["auroc"]), "no seed", interval(score["auprc"]),
                     percent(score["auroc_record_mean"]["value"]), *(percent(score[k]["value"]) for k in RATES)])
    if result["protocol"] == "beat" and not result["simulated"]:
        published = result["published"]
        rows.append(["published (chosen on test)", percent(published["auroc"]), "", "", "",
                     *(percent(published.get(key)) for key in RATES)])
    return rows


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


def readme_block(database):
    """The README's results section, Markdown."""
    lines = []
    for protocol in config.PROTOCOLS:
        result = load_metrics(config.results_dir(database, protocol, config.SEED))
        runs = load_seeds(database, protocol)
        lines += ["", f"### {protocol.capitalize()} protocol", "", headline(result, runs), "",
                  f"{counts_line(result)}. All figures in %.", "",
                  *warning(result), *markdown(headline_rows(result, runs)), "",
                  "Class against normal beats: ROC-AUC / share flagged at the threshold.", "",
                  *markdown(class_rows(result))]
        if "baselines" in result:
            lines += ["", "The default score against each detector without a network, paired over records "
                      "(above 0: the default score is better).", "", *markdown(difference_rows(result))]
    return "\n".join([BEGIN, *lines, "", END])


def written_into(text, block):
    """README text with the block in place of what stands between the markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"README.md: expected one line {BEGIN!r} and one {END!r} after it")
    return text[:text.index(BEGIN)] + block + text[text.index(END) + len(END):]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    config.check()
    block = readme_block(config.MITDB)
    if not args.write:
        return print(block)
    readme = config.ROOT / "README.md"
    with whole_file(readme) as part:
        part.write_text(written_into(readme.read_text(), block))
    print(f"wrote the results into {readme}")


if __name__ == "__main__":
    config.run(main)
