"""What each element of the detector is worth, and whether the table knows a broken one.

reads   data/segments.npz                  python dataset.py
        checkpoints/beat.pt, patient.pt    python train_mitbih.py --protocol beat (and patient)
        results/*/scores.npz               python evaluate.py, every seed: the row of all together
writes  results/ablation.json              one row a variant and protocol: test split, one seed
        evaluation_plots/ablation.png      the same as a picture
        checkpoints/ablation-*.pt          the networks of the variants, not shipped

Nothing is chosen here: the elements were fixed by studies.select_score and the validation split.
Next: python -m studies.report --write
"""

import functools
import textwrap

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import nn

import config
from dataset import load_segments
from evaluate import load_detector, origin_of, stored_result
from models import network_sizes, new_network
from pipeline import errors, runtime, settings
from pipeline.artefacts import load_json, load_npz, write_json
from pipeline.errors import UserError
from pipeline.figures import BEST, new_figure, save
from pipeline.tables import percent
from preprocess import gaussian
from scoring import detector, metrics
from scoring.features import BeatFeatures
from studies.other_settings import load_or_train, other_settings

FIGURES = ("auroc", "auprc", "auroc_record_mean")   # of scoring/metrics.py, with their intervals
# networks that are trained here, and the settings they are trained with
CLEAN = {"CORRUPTED_SHARE": 0.0}
TRAINED = {"published": {"TAPER_SIGMA_S": None, "LOWPASS_HZ": None, "RECORD_LOSS": 0.0, **CLEAN},
           "clean": CLEAN,
           "abnormal": {}}
# (what is added, network, score, score settings): each row keeps what the rows above added.
# A setting changed here must be one that the scores read and the fit does not.
FIRST_STEPS = (("published: reconstruction error of the segment", "published", "mse", {}),
               ("error weighted to the QRS", "published", "qrs_error", {}),
               ("distance in latent space instead of an error", "published", "latent_knn", {}),
               ("+ tapered beat, records told apart", "clean", "latent_knn", {}),
               ("+ what it sees is corrupted in training", "full", "latent_knn", {}),
               ("+ timing beside the latents", "full", "nearest", {"DENSITY_POWER": 0.0}))
LADDER = {
    "beat": (*FIRST_STEPS,
             ("+ distance relative to density", "full", "nearest", {}),
             ("+ weights of the default score", "full", "combined", {}),
             ("+ own training beats as reference", "full", "combined_same_patient", {})),
    "patient": (*FIRST_STEPS,
                ("own unlabelled beats as reference, all", "full", "self_reference",
                 {"SELF_IRREGULARITY": np.inf}),
                ("+ only the regular ones", "full", "self_reference", {}),
                ("+ weights of the default score", "full", "combined", {}),
                ("the same from the past alone", "full", "combined_causal", {}))}
# the default score of another network
CHECKS = (("network untrained", "untrained"),
          ("network trained on abnormal beats, its reference too", "abnormal"),
          ("32 principal components in place of the network", "pca"))


# --- the networks ---------------------------------------------------------------------------------

class PrincipalComponents(nn.Module):
    """The tapered beat on its leading principal components, behind the network's interface."""

    def __init__(self, window_size, latent_dim, taper_samples, lowpass):
        super().__init__()
        self.model_args = {"window_size": window_size, "latent_dim": latent_dim,
                           "taper_samples": taper_samples, "lowpass": lowpass}
        taper = torch.from_numpy(gaussian(window_size, taper_samples)).float()
        self.register_buffer("taper", taper)
        self.mean = nn.Parameter(torch.zeros(window_size))
        self.axes = nn.Parameter(torch.zeros(latent_dim, window_size))

    @torch.no_grad()
    def fit(self, x):
        """Take mean and axes of segments x (n, w); returns itself."""
        # seeded: for middling numbers of beats the solver draws at random
        pca = PCA(len(self.axes), random_state=0).fit(x * self.taper.numpy())
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.axes.copy_(torch.from_numpy(pca.components_))
        return self

    def encode(self, x):
        """x (n, 1, w) -> (n, latent_dim)"""
        return (x.squeeze(1) * self.taper - self.mean) @ self.axes.T

    def decode(self, z):
        """z (n, latent_dim) -> (n, 1, w)"""
        return (z @ self.axes + self.mean).unsqueeze(1)


def network(kind, database, protocol, segments, device):
    """(model, rows of the beats it was trained on) of a variant that is not shipped."""
    train = segments.part(protocol, "train")
    validation = segments.normal_validation(protocol)
    if kind == "untrained":
        # as the trained one began: what differs is the training
        torch.manual_seed(config.SEED)
        return new_network().to(device).eval(), train

    if kind == "pca":
        return PrincipalComponents(**network_sizes()).fit(segments.x[train]).to(device), train

    if kind == "abnormal":
        train, validation = abnormal_beats(segments, protocol)

    with other_settings(**TRAINED[kind]):
        return load_or_train(database.out / "checkpoints" / f"ablation-{protocol}-{kind}.pt",
                             segments, train, validation, device), train


def abnormal_beats(segments, protocol):
    """(train, validation): row numbers of abnormal beats of the records that training may use."""
    record = segments.rows["record"]
    abnormal = segments.rows["y"] == 1

    # none of the test split
    unused = segments.part(protocol, "unused")
    known = np.isin(record[unused], record[segments.part(protocol, "train")])
    validation = segments.part(protocol, "validation")
    return unused[abnormal[unused] & known], validation[abnormal[validation]]


def detector_of(kind, database, protocol, segments, device):
    """(features of the test beats, fitted) of a variant of the network."""
    if kind == "full":
        model, stored = load_detector(database, protocol, config.SEED, segments)
        fitted = stored["fitted"]
        model.to(device)
    else:
        # references, scale and spread of the latents are those of the variant itself
        model, train = network(kind, database, protocol, segments, device)
        fitted = detector.fit(model, segments, train, segments.part(protocol, "validation"),
                              config.WEIGHTS[protocol],
                              settings.snapshot(settings.SCORE_SETTINGS), config.FS_HZ, device)

    return BeatFeatures.of(model, segments, segments.part(protocol, "test"), fitted["settings"],
                           config.FS_HZ, device, keep_recon=False), fitted


# --- the table ------------------------------------------------------------------------------------

def ablate(database, protocol, segments, device):
    """{"ladder", "checks"}: lists of {"title", "score", FIGURES with their intervals}."""
    test = segments.part(protocol, "test")
    y = segments.rows["y"][test]
    record = segments.rows["record"][test]
    table = {"ladder": [], "checks": []}

    @functools.cache  # rows of the same network share its fit and its pass over the test beats
    def seen_by(kind):
        return detector_of(kind, database, protocol, segments, device)

    def scores_of(kind, name, changed):
        features, fitted = seen_by(kind)
        fitted = fitted | {"settings": fitted["settings"] | changed}
        return detector.scores_of(features, fitted, [name])[name]

    def add(part, title, name, scores, labels):
        # areas need no threshold, and a variant has none of its own
        own = metrics.by_record(scores, labels, record)
        drawn, _ = metrics.resampled(scores, labels, record, own, np.inf,
                                     config.BOOTSTRAP_RESAMPLES, config.BOOTSTRAP_SEED)
        figures = {key: metrics.interval(drawn[key]) for key in FIGURES}
        table[part].append({"title": title, "score": name, **figures})
        print(f"{protocol}: ROC-AUC {percent(figures['auroc']['value'])}  {title}", flush=True)

    for title, kind, name, changed in LADDER[protocol]:
        add("ladder", title, name, scores_of(kind, name, changed), y)

    # shuffled labels must give chance; the others say what the network itself is worth
    default = config.DEFAULT_SCORE
    add("checks", "labels of the test beats shuffled", default, scores_of("full", default, {}),
        np.random.default_rng(0).permutation(y))
    for title, kind in CHECKS:
        add("checks", title, default, scores_of(kind, default, {}), y)

    add("checks", f"{len(config.SEEDS)} networks together, mean of their scores", default,
        ensemble(database, protocol, segments), y)
    return table


def ensemble(database, protocol, segments):
    """(n,) mean of the default score of all seeds on the test beats, as evaluate.py saved them.

    Raises UserError where those of a seed are missing or were made otherwise.
    """
    scores = []
    for seed in config.SEEDS:
        folder = database.results_dir(protocol, seed)
        command = database.stage_command("evaluate.py", protocol, seed)
        _, stored = load_detector(database, protocol, seed, segments)

        # only a seed that was evaluated with the weights it has today may be in the mean
        if not stored_result(folder, origin_of(stored)):
            raise UserError(f"{folder}: the results are missing or not of today's checkpoint. "
                            f"Make them with: {command}")

        table = load_npz(folder / "scores.npz", command)
        scores.append(table[f"score_{config.DEFAULT_SCORE}"].astype(float))
    return np.mean(scores, axis=0)


# --- the picture ----------------------------------------------------------------------------------

def draw_protocol(ax, protocol, table):
    """Every variant with its 95 % interval over records: the ladder above, the checks below."""
    rows = table["ladder"] + table["checks"]
    height = np.arange(len(rows))
    for key, name, marker, colour, shift in (("auroc", "ROC-AUC", "o", BEST, -0.14),
                                             ("auprc", "PR-AUC", "s", "#E69F00", 0.14)):
        value, low, high = 100 * pd.DataFrame([row[key] for row in rows]).to_numpy().T
        # an interval of resampled records need not hold the value itself
        bars = np.clip([value - low, high - value], 0, None)
        ax.errorbar(value, height + shift, xerr=bars, fmt=marker, color=colour, markersize=4.5,
                    capsize=2, linewidth=1, label=name)

    # the line between what is added and what is broken
    ax.axhline(len(table["ladder"]) - 0.5, color="black", linewidth=0.8)
    ax.set_yticks(height, [textwrap.fill(row["title"], 52) for row in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlim=(0, 101), xlabel="% [95 % interval over records]", title=f"{protocol} protocol")
    ax.grid(axis="x")


def ablation_figure(result):
    """The picture of ablation.json, a panel a protocol."""
    figure = new_figure(
        8.3, 9.6, f"test split, seed {result['seed']}; each row keeps what the rows above added; "
        "below the line:\nthe default score with something broken or replaced",
        result["simulated"])
    # one above the other: side by side the titles leave little room for the intervals
    for ax, (protocol, table) in zip(figure.subplots(2, 1), result["protocols"].items()):
        draw_protocol(ax, protocol, table)

    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    parser.add_argument("--draw", action="store_true", help="the picture of saved results alone")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    path = database.out / "results" / "ablation.json"
    if not args.draw:
        segments = load_segments(database)
        names = settings.TRAINING_SETTINGS + settings.SCORE_SETTINGS
        result = {"segments_id": segments.meta["id"], "simulated": database.simulated,
                  "seed": config.SEED, "settings": settings.snapshot(names), "protocols": {}}
        for protocol in config.PROTOCOLS:
            result["protocols"][protocol] = ablate(database, protocol, segments, device)
        write_json(path, result)
        print(f"wrote {path}")

    # drawn from the file: --draw and a whole run give the same picture
    result = load_json(path, database.command("-m studies.ablation"))
    picture = database.out / "evaluation_plots" / "ablation.png"
    save(picture, lambda: ablation_figure(result))
    print(f"wrote {picture}\nnext: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
