"""The results as tables, written from what the other scripts saved and nothing else.

reads   results/                  python evaluate.py and the studies
writes  docs/results.md           all tables; their text is in studies/templates
        docs/scaling.md           time against size, training from shards
        README.md                 two tables, each between its two marker lines
        evaluation_plots/benchmark.png, scaling.png

`python -m studies.report` prints the tables, `--write` writes them. No number is typed by hand.
"""

import argparse
import re
import statistics
from dataclasses import dataclass

import jinja2

import config
from evaluate import load_metrics, load_seeds
from pipeline import errors, settings, tables
from pipeline.artefacts import load_json, refuse_stale, whole_file
from pipeline.errors import UserError
from pipeline.figures import save
from studies import benchmark_report

BEGIN = "<!-- {}: python -m studies.report --write -->"
END = "<!-- end of {} -->"
BEST_WEIGHTS = 10    # of the candidates tried on validation data
COMPONENTS = "32 principal components"    # a sanity check of studies.ablation begins with it


# --- the templates --------------------------------------------------------------------------------

def median(values):
    """Median of figures, None where one of them is missing."""
    values = list(values)
    return None if None in values else statistics.median(values)


def spread(values):
    """"97.21 (97.10 to 97.30)": median and range in %."""
    values = list(values)

    # a figure that one seed lacks, such as PPV where nothing was flagged, has no range
    low = None if None in values else min(values)
    high = None if None in values else max(values)
    return f"{tables.percent(median(values))} ({tables.percent(low)} to {tables.percent(high)})"


def bounds(figure):
    """"96.10 to 98.02" of a figure with its interval."""
    return f"{tables.percent(figure['low'])} to {tables.percent(figure['high'])}"


def render(template, **values):
    """A file of studies/templates with these values in it; one that is not there is an error."""
    # a line with a block alone leaves no line behind: rows of a table stay together
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(settings.ROOT / "studies" / "templates"),
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": tables.percent, "interval": tables.interval,
                            "median": median, "spread": spread, "bounds": bounds,
                            "thousands": "{:,.0f}".format}

    environment.globals |= {"counts_line": tables.counts_line, "warning": tables.warning}
    return environment.get_template(template).render(values)


# --- what they show -------------------------------------------------------------------------------

@dataclass
class Protocol:
    """Results of one protocol: of SEED, of all seeds, and its part of ablation and selection."""

    name: str
    result: dict
    runs: dict
    ladder: list
    checks: list
    candidates: list

    @property
    def baselines(self):
        """Detectors without a network."""
        return list(self.result.get("baselines", {}).values())

    def check(self, title):
        """The sanity check whose title begins so."""
        return next(row for row in self.checks if row["title"].startswith(title))

    @property
    def best_without_network(self):
        """The row with the highest ROC-AUC of those that need no network."""
        # our scores need one only for its latents: components in its place are a rival as well
        components = self.check(COMPONENTS) | {"title": f"{COMPONENTS}, same scores"}
        return max([*self.baselines, components], key=lambda row: row["auroc"]["value"])

    @property
    def published(self):
        """The published figures, where they are of the same data and split."""
        # its beats are split at random, and those of the simulated database are no patient's
        comparable = self.name == "beat" and not self.result["simulated"]
        return self.result["published"] if comparable else None

    def of_seeds(self, key, score=None):
        """A figure of a score, the default one if none is named, in every seed."""
        return tables.values_of(self.runs, score or self.result["default_score"], key)


def saved(database, name, study):
    """A study's file in results/.

    Raises UserError naming the command if it is missing, damaged or of other settings.
    """
    path = database.out / "results" / name

    command = database.command(f"-m studies.{study}")
    stored = load_json(path, command)

    # the ablation keeps all settings, the selection those of training, timings none
    then = stored.get("settings", stored.get("training_settings", {}))
    refuse_stale(path, settings.differences(then, settings.snapshot(then)), command)
    return stored


def protocols_of(database):
    """The Protocol of each protocol, in the order of config.PROTOCOLS."""
    ablation = saved(database, "ablation.json", "ablation")["protocols"]
    selection = saved(database, "selection.json", "select_score")["protocols"]
    found = []

    for name in config.PROTOCOLS:
        # intervals, classes and thresholds are of one seed, areas of all of them
        folder = database.results_dir(name, config.SEED)
        result = load_metrics(folder, database.stage_command("evaluate.py", name, config.SEED))

        tried = selection[name]["weights"]
        for row in tried:
            row["used"] = row["weights"] == config.WEIGHTS[name]
        best = [row for k, row in enumerate(tried) if k < BEST_WEIGHTS or row["used"]]
        candidates = [selection[name]["settings"], best]
        found.append(Protocol(name, result, load_seeds(database, name), candidates=candidates,
                              **ablation[name]))
    return found


def with_and_without_rule(recordings, noise):
    """[(signal, figures with the rule of unreadable stretches, figures without it)]."""
    pairs = []
    # "all": with --score-all
    if {"test", "test-all"} <= recordings.keys():
        pairs.append(("test records", recordings["test"], recordings["test-all"]))

    # every second ratio: the others lie between
    for row in noise["rows"] if noise else []:
        if row["snr_db"] in (None, 24, 12, 0):
            name = "the stress test's records, no noise"
            if row["noise"]:
                name = f"{row['noise']}, {row['snr_db']} dB"
            pairs.append((name, row, row["without_rule"]))
    return pairs


def speed_values(database):
    """What templates/speed.md shows."""
    speed = saved(database, "benchmark.json", "benchmark")
    return {"speed": speed, "summary": benchmark_report.summary(speed["rows"]),
            "trainings": benchmark_report.trainings(speed["rows"], database), "seed": config.SEED}


def paired_rows(rows):
    """[((data, noise, class), its rows)] in the order of the rows."""
    found = {}
    for row in rows:
        found.setdefault((row["data"], row["noise"], row["class"]), []).append(row)
    return found.items()


def results_document(database):
    """docs/results.md."""
    folder = database.out / "results"
    # detect.py on recordings: the test patients, and folders that somebody has labels of
    recordings = {}
    for path in sorted(folder.glob("recordings-*.json")):
        name = path.stem.removeprefix("recordings-")
        recordings[name] = load_json(path, "python -m studies.expert_labels")

    reviews = {path.stem.removeprefix("review-"): load_json(path, "python -m studies.review")
               for path in sorted(folder.glob("review-*.json"))}

    # not everybody has the recordings and the noise
    noise = None
    if (folder / "noise_stress.json").exists():
        noise = saved(database, "noise_stress.json", "noise_stress")

    # nor these: they are of noise and of other recordings too
    optional = {name: saved(database, f"{study}.json", study)
                if (folder / f"{study}.json").exists() else None
                for name, study in (("worth", "network_worth"), ("recipes", "recipes"),
                                    ("fibrillation", "fibrillation"), ("strips", "strips"))}

    selection = saved(database, "selection.json", "select_score")
    return render("results.md", **optional, paired_rows=paired_rows,
                  protocols=protocols_of(database),
                  ablation=saved(database, "ablation.json", "ablation"),
                  operating_points=selection["operating_points"],
                  recordings=recordings, reviews=reviews, noise=noise,
                  with_and_without_rule=with_and_without_rule(recordings, noise),
                  **speed_values(database))


def detect_values(database):
    """What templates/detect.md shows."""
    timings = saved(database, "detect.json", "benchmark_detect")
    return {"detect": timings, "whole": benchmark_report.whole_recordings(timings)}


def scaling_document(database):
    """docs/scaling.md."""
    size = saved(database, "size.json", "benchmark_scaling")
    streamed = saved(database, "scaling.json", "benchmark_scaling --folder FOLDER")
    stages = benchmark_report.stages_of(size)
    return render("scaling.md", size=size, streamed=streamed, stages=stages,
                  need=benchmark_report.needs_of(size, stages), **detect_values(database))


def readme_blocks(database):
    """{name: what stands in README.md between BEGIN and END of it, these two lines included}."""
    # the template names the protocols
    by_name = {protocol.name: protocol for protocol in protocols_of(database)}
    tables = {"results": render("readme.md", **by_name),
              "worth": render("worth.md", worth=saved(database, "network_worth.json",
                                                      "network_worth"))}
    return {name: f"{BEGIN.format(name)}\n{table}{END.format(name)}"
            for name, table in tables.items()}


def insert_block(text, name, block):
    """README text with the block in place of what stands between the markers of `name`."""
    begin, end = BEGIN.format(name), END.format(name)
    # a function: in a replacement as text, a backslash would be read as a group
    text, n = re.subn(f"{begin}.*?{end}", lambda found: block, text, flags=re.DOTALL)
    if n != 1:
        raise UserError(f"README.md: expected one line {begin!r} and one {end!r} after it. "
                        "Put them back.")
    return text


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true",
                        help="write docs/, README.md and the two pictures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    settings.check()
    database = settings.database()

    documents = {"docs/results.md": results_document(database),
                 "docs/scaling.md": scaling_document(database)}
    blocks = readme_blocks(database)
    if not args.write:
        return print(*blocks.values(), *documents.values(), sep="\n\n")

    # made before anything is written: a missing marker leaves all as it was
    readme = (settings.ROOT / "README.md").read_text()
    for name, block in blocks.items():
        readme = insert_block(readme, name, block)
    documents["README.md"] = readme

    for name, text in documents.items():
        with whole_file(settings.ROOT / name) as part:
            part.write_text(text)
    print(f"wrote {', '.join(documents)}")

    # --- the two pictures of the documents
    speed = saved(database, "benchmark.json", "benchmark")
    stages = benchmark_report.stages_of(saved(database, "size.json", "benchmark_scaling"))
    plots = database.out / "evaluation_plots"
    save(plots / "benchmark.png", lambda: benchmark_report.quality_figure(speed, database))
    save(plots / "scaling.png", lambda: benchmark_report.scaling_figure(stages))
    print(f"wrote benchmark.png and scaling.png into {plots}\nnext: make test")


if __name__ == "__main__":
    errors.run(main)
