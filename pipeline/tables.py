"""Rows of strings as text, and what evaluate.py prints of its results."""

import statistics

import pandas as pd


def percent(figure, digits=2):
    """"97.21" of 0.9721, or "n/a"."""
    return "n/a" if figure is None else f"{100 * figure:.{digits}f}"


def align_columns(rows):
    """Rows of strings as text columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells))
    return lines


def readable(rows, headings):
    """DataFrame of strings and numbers for people, of dicts as a JSON file has them.

    headings: {name in the file: heading}, "a.b" for b within a; names that are not there are left
    out. What stands under a heading with a % is a fraction: it becomes percent with two digits.
    """
    table = pd.json_normalize(rows).filter(list(headings)).rename(columns=headings)
    shares = [heading for heading in table if "%" in heading]
    percents = 100 * table[shares].astype(float)
    return table.assign(**percents.map("{:.2f}".format, na_action="ignore")).round(2)


def interval(figure):
    """"97.21 (96.10 to 98.02)" of a figure with its interval."""
    value, low, high = (percent(figure[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def values_of(runs, name, key):
    """Values of a figure of one score over the seeds."""
    return [run["scores"][name][key]["value"] for run in runs.values()]


def median_of(runs, name, key):
    """"97.21": median over seeds."""
    values = values_of(runs, name, key)
    return percent(None if None in values else statistics.median(values))


def warning(result):
    """The line that marks every table of simulated data, else nothing."""
    return ["SIMULATED DATA: no patient, no result. It shows that the pipeline runs."
            ] if result["simulated"] else []


def counts_line(result):
    """Database, protocol, seed and numbers of beats, in two lines."""
    n = result["n"]
    return (f"{result['database']}, {result['protocol']} protocol, seed {result['seed']}:\n"
            f"{n['test']:,d} test beats ({n['normal']:,d} normal, {n['abnormal']:,d} abnormal) "
            f"of {n['records']} records")


def of_result(result, runs):
    """The results of evaluate.py as text, at most 120 columns wide; runs {seed: metrics}: the
    seeds beside it."""
    runs = runs or {result["seed"]: result}

    # --- a row a score, and a row a detector without a network
    figures = ("auprc", "auroc_record_mean", "sensitivity", "specificity", "ppv", "f1")
    rows = [["score, in %", "ROC-AUC", f"median of {len(runs)}", "PR-AUC", "by record",
             "sens.", "spec.", "PPV", "F1"]]  # short: the table is then 120 columns wide
    for name, score in (result["scores"] | result.get("baselines", {})).items():
        ours = name in result["scores"]
        mark = " *" if name == result["default_score"] else ""
        rows.append([name + mark if ours else f"no network: {name}", interval(score["auroc"]),
                     median_of(runs, name, "auroc") if ours else "",
                     *(percent(score[key]["value"]) for key in figures)])

    # --- the default score by class, and its four counts
    default = result["scores"][result["default_score"]]
    counts = default["confusion"]
    classes = [["* by class", "beats", "ROC-AUC", "flagged"]]
    for name, row in default["by_class"].items():
        classes.append([name, f"{row['n']:,d}", percent(row["auroc"]),
                        percent(row["sensitivity"], 1)])
    return "\n".join([
        *warning(result),
        counts_line(result), "", *align_columns(rows), "", *align_columns(classes), "",
        f"* at the threshold {default['threshold']:.4g} chosen on validation: "
        f"TN {counts['tn']:,d}  FP {counts['fp']:,d}  FN {counts['fn']:,d}  TP {counts['tp']:,d}",
        "Intervals are 95 %, from resampling records.", *warning(result)
    ])
