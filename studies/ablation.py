"""What each element of the detector is worth, and whether the table knows a broken one: test split, one seed.

reads   data/segments.npz                    python dataset.py
        checkpoints/beat.pt, patient.pt      python train_mitbih.py --protocol beat (and patient)
        results/*/scores.npz                 python evaluate.py, every seed: for the row of all together
writes  results/ablation.json                one row a variant and protocol; report.py prints it
        evaluation_plots/ablation.png        the same as a picture
        checkpoints/ablation-*.pt            the networks of the variants, not shipped

Nothing is chosen here: the elements were fixed by select_score.py and the validation split.
"""

from contextlib import contextmanager

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn

import config
from pipeline import errors, settings
from scoring import metrics
from scoring import detector
import train_mitbih
import visualize
from pipeline.errors import UserError
from dataset import load_npz
from pipeline.artefacts import write_json
from models import ConvAutoencoder
from preprocess import gaussian
from studies.report import load_metrics
from pipeline.runtime import FINISHED, machine_parser, normal_validation, parsed, prepare, read_checkpoint, run_command

PUBLISHED = {"TAPER_SIGMA_S": None, "RECORD_LOSS": 0.0}
TAPERED = {"RECORD_LOSS": 0.0}
# (what is added, network, score, score settings): each row keeps what the rows above added
LADDER = {
    "beat": (("published: reconstruction error of the segment", "published", "mse", {}),
             ("error weighted to the QRS", "published", "qrs_error", {}),
             ("distance in latent space instead of an error", "published", "latent_knn", {}),
             ("+ network sees a tapered beat", "tapered", "latent_knn", {}),
             ("+ latents tell records apart in training", "full", "latent_knn", {}),
             ("+ timing beside the latents", "full", "nearest", {"DENSITY_POWER": 0.0}),
             ("+ distance relative to density", "full", "nearest", {}),
             ("+ weights of the default score", "full", "combined", {}),
             ("+ own normal training beats as reference", "full", "combined_same_patient", {})),
    "patient": (("published: reconstruction error of the segment", "published", "mse", {}),
                ("error weighted to the QRS", "published", "qrs_error", {}),
                ("distance in latent space instead of an error", "published", "latent_knn", {}),
                ("+ network sees a tapered beat", "tapered", "latent_knn", {}),
                ("+ latents tell records apart in training", "full", "latent_knn", {}),
                ("+ timing beside the latents", "full", "nearest", {"DENSITY_POWER": 0.0}),
                ("own unlabelled beats as reference instead, all of them", "full", "self_reference",
                 {"SELF_IRREGULARITY": np.inf}),
                ("+ only the regular ones", "full", "self_reference", {}),
                ("+ weights of the default score", "full", "combined", {}),
                ("the same from the past alone", "full", "combined_causal", {}))}
# the default score, with something broken or replaced
CHECKS = (("labels of the test beats shuffled", "full"),
          ("network untrained", "untrained"),
          ("network trained on abnormal beats, which are its reference too", "abnormal"),
          ("32 principal components in place of the network", "pca"))


class PrincipalComponents(nn.Module):
    """The tapered beat on its leading principal components, behind the network's interface."""

    def __init__(self, x, latent_dim, taper_samples):
        super().__init__()
        self.model_args = {"window_size": x.shape[1], "latent_dim": latent_dim, "taper_samples": taper_samples}
        taper = gaussian(x.shape[1], taper_samples).astype(np.float32)
        pca = PCA(latent_dim, random_state=0).fit(x * taper)
        self.register_buffer("taper", torch.from_numpy(taper))
        self.register_buffer("mean", torch.from_numpy(pca.mean_.astype(np.float32)))
        self.register_buffer("axes", torch.from_numpy(pca.components_.astype(np.float32)))

    def encode(self, x):
        """x (n, 1, w) -> (n, latent_dim)"""
        return (x.squeeze(1) * self.taper - self.mean) @ self.axes.T

    def decode(self, z):
        """z (n, latent_dim) -> (n, 1, w)"""
        return (z @ self.axes + self.mean).unsqueeze(1)


@contextmanager
def settings(**values):
    """config.py with other values for a while."""
    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


# --- the networks ---------------------------------------------------------------------------------

def network(kind, database, protocol, segments, train, device):
    """(model, training rows) of a variant; trained networks are kept as checkpoints/ablation-*.pt."""
    seed = config.SEED
    taper = config.TAPER_SIGMA_S and config.TAPER_SIGMA_S * config.FS_HZ
    if kind == "full":
        command = run_command(database, "train_mitbih.py", protocol, seed)
        model, stored = read_checkpoint(database.checkpoint_path(protocol, seed), command, FINISHED)
        if stored["training_settings"] != settings.snapshot(settings.TRAINING_SETTINGS):
            raise UserError(f"the {protocol} checkpoint is of other settings. Make it with: {command}")
        return model.to(device), train
    if kind == "untrained":
        torch.manual_seed(seed)
        return ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM, taper).to(device).eval(), train
    if kind == "pca":
        return PrincipalComponents(segments.x[train], config.LATENT_DIM, taper).to(device), train
    rows, normal = train, normal_validation(segments, protocol)
    if kind == "abnormal":  # of the records or beats that training may use, the abnormal ones
        record, y = segments.rows["record"], segments.rows["y"]
        allowed = segments.part(protocol, "unused")
        rows = allowed[(y[allowed] == 1) & np.isin(record[allowed], np.unique(record[train]))]
        validation = segments.part(protocol, "validation")
        normal = validation[y[validation] == 1]
    with settings(**{"published": PUBLISHED, "tapered": TAPERED, "abnormal": {}}[kind]):
        path = database.root / "checkpoints" / f"ablation-{protocol}-{kind}.pt"
        stamp = {"segments_id": segments.meta["id"], "training_settings": settings.snapshot(settings.TRAINING_SETTINGS)}
        try:
            model, stored = read_checkpoint(path, "", tuple(stamp))
            if any(stored[key] != value for key, value in stamp.items()):
                raise UserError("of other settings")
        except UserError:
            paths = {"resume": path.with_suffix(".resume.pt"), "history": path.with_suffix(".csv")}
            model, _ = train_mitbih.fresh_weights(segments, rows, normal, seed, device, paths, stamp)
            train_mitbih.save_checkpoint(path, model, **stamp)
            for leftover in paths.values():
                leftover.unlink(missing_ok=True)
    return model.to(device), rows


# --- the table ------------------------------------------------------------------------------------

def figures(scores, rows, labels=None):
    """ROC-AUC and PR-AUC with intervals over records, and the mean over records."""
    y = rows["y"] if labels is None else labels
    result, _ = metrics.with_intervals(scores, y, rows["record"], np.inf, config.BOOTSTRAP_RESAMPLES,
                                       config.BOOTSTRAP_SEED)
    return {key: result[key] for key in ("auroc", "auprc", "auroc_record_mean")}


class Variants:
    """Test scores of every variant; each network is trained, fitted and run over the test beats once."""

    def __init__(self, database, protocol, segments, device):
        self.database, self.protocol, self.segments, self.device = database, protocol, segments, device
        self.fitted, self.scores = {}, {}

    def _detector(self, kind):
        if kind not in self.fitted:
            train = self.segments.part(self.protocol, "train")
            model, used = network(kind, self.database, self.protocol, self.segments, train, self.device)
            fitted = detector.fit(model, self.segments, used, self.segments.part(self.protocol, "validation"),
                                 config.WEIGHTS[self.protocol], settings.snapshot(settings.SCORE_SETTINGS),
                                 config.FS_HZ, self.device)
            self.fitted[kind] = model, fitted
        return self.fitted[kind]

    def score(self, kind, name, changed):
        """(n,) scores of the test rows by network `kind`, with some score settings changed."""
        key = kind, tuple(changed.items())
        if key not in self.scores:
            model, fitted = self._detector(kind)
            wanted = {n for _, k, n, c in LADDER[self.protocol] if (k, tuple(c.items())) == key}
            wanted |= {config.DEFAULT_SCORE} if not changed and kind in dict(CHECKS).values() else set()
            self.scores[key], _ = detector.score(
                model, fitted | {"settings": fitted["settings"] | changed}, self.segments,
                self.segments.part(self.protocol, "test"), sorted(wanted), config.FS_HZ, self.device)
        return self.scores[key][name]


def ablate(database, protocol, segments, device):
    """[{"title", "score", figures}] of the ladder and of the checks."""
    variants, table = Variants(database, protocol, segments, device), {"ladder": [], "checks": []}
    rows = {k: v[segments.part(protocol, "test")] for k, v in segments.rows.items()}

    def add(where, title, name, scores, labels=None):
        table[where].append({"title": title, "score": name, **figures(scores, rows, labels)})
        print(line(protocol, table[where][-1]), flush=True)

    for title, kind, name, changed in LADDER[protocol]:
        add("ladder", title, name, variants.score(kind, name, changed))
    for title, kind in CHECKS:
        shuffled = np.random.default_rng(0).permutation(rows["y"]) if "shuffled" in title else None
        add("checks", title, config.DEFAULT_SCORE, variants.score(kind, config.DEFAULT_SCORE, {}), shuffled)
    add("checks", f"{len(config.SEEDS)} networks together, mean of their scores", config.DEFAULT_SCORE,
        ensemble(database, protocol, rows))
    return table


def ensemble(database, protocol, rows):
    """Mean of the default score of all seeds on the test rows, as evaluate.py saved them."""
    scores = []
    for seed in config.SEEDS:
        command = run_command(database, "evaluate.py", protocol, seed)
        folder = database.results_dir(protocol, seed)
        table, origin = load_npz(folder / "scores.npz", command), load_metrics(folder)["origin"]
        why = settings.differences(origin["training_settings"], settings.TRAINING_SETTINGS)
        why += settings.differences(origin["score_settings"], settings.SCORE_SETTINGS)
        why += [] if np.array_equal(table["sample"], rows["sample"]) else ["other beats"]
        why += [] if str(table["weights"]) == origin["weights"] else ["other weights than metrics.json"]
        if why:
            raise UserError(f"{folder / 'scores.npz'}: out of date ({'; '.join(why)}). "
                            f"Make it again with: {command} --force")
        scores.append(table[f"score_{config.DEFAULT_SCORE}"].astype(float))
    return np.mean(scores, axis=0)


def line(protocol, row):
    return (f"{protocol}: ROC-AUC {100 * row['auroc']['value']:.2f}, PR-AUC {100 * row['auprc']['value']:.2f}, "
            f"mean over records {100 * row['auroc_record_mean']['value']:.2f}  {row['title']}")


def parse_args(argv=None):
    return parsed(machine_parser(__doc__), argv)


def main(argv=None):
    args = parse_args(argv)
    database, device, segments = prepare(args)
    result = {"segments_id": segments.meta["id"], "simulated": segments.meta["simulated"], "seed": config.SEED,
              "settings": settings.snapshot(settings.TRAINING_SETTINGS + settings.SCORE_SETTINGS),
              "protocols": {p: ablate(database, p, segments, device) for p in config.PROTOCOLS}}
    path = database.root / "results" / "ablation.json"
    write_json(path, result)
    picture = visualize.draw_ablation(path, database.root / "evaluation_plots")
    print(f"wrote {path}, {picture}")


if __name__ == "__main__":
    errors.run(main)
