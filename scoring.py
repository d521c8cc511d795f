"""From a reconstruction to one anomaly score a beat, and from scores to a threshold.

Higher is more abnormal. Nothing that is fitted here sees an abnormal beat. The scores:

    mse       mean squared error of the whole segment: the published one
    beat      squared error weighted by a Gaussian on the R peak: the beat itself
    latent    mean distance in latent space to the nearest reference beats, all normal
    combined  mean of the logarithms of `beat` and `latent`, each standardised on normal
              validation beats: one sees what cannot be drawn, the other what is drawn rarely
"""

import numpy as np
import torch

from models import reconstruct
from preprocess import beat_weights

BATCH = 512         # segments a forward pass: larger ones leave the cache and are slower on a CPU
QUERY_BATCH = 1024  # latent distances at once: 1024 x 20,000 float32 are 80 MB
TITLES = {"mse": "plain MSE (published score)", "beat": "error weighted to the beat",
          "latent": "latent distance to normal beats", "combined": "combined: beat error and latent distance"}


def fit(model, x_train, x_validation_normal, settings, fs_hz, seed, device):
    """What the scores need from training, as a dict that a checkpoint can hold.

    x_train (n, w), x_validation_normal (m, w): normal segments, float32. `settings` holds
    SCORE_SIGMA_S, LATENT_REFERENCES and NEIGHBOURS.
    """
    n = min(settings["LATENT_REFERENCES"], len(x_train))
    chosen = np.sort(np.random.default_rng(seed).choice(len(x_train), n, replace=False))
    _, z = reconstruct(model, x_train[chosen], BATCH, device)
    fitted = {"references": z.half(), "neighbours": min(settings["NEIGHBOURS"], n),
              "sigma_samples": settings["SCORE_SIGMA_S"] * fs_hz}
    parts, _, _ = _part_scores(model, fitted, x_validation_normal, device)
    fitted["log_mean"] = {k: float(np.log(parts[k]).mean()) for k in ("beat", "latent")}
    fitted["log_std"] = {k: float(max(np.log(parts[k]).std(), 1e-6)) for k in ("beat", "latent")}
    return fitted


def score(model, fitted, x, device):
    """x (n, w) float32 -> ({name: (n,) float64}, recon (n, w) array, z (n, latent_dim) array)."""
    scores, recon, z = _part_scores(model, fitted, x, device)
    standard = [(np.log(scores[k]) - fitted["log_mean"][k]) / fitted["log_std"][k] for k in ("beat", "latent")]
    scores["combined"] = np.mean(standard, axis=0)
    return scores, recon, z


def _part_scores(model, fitted, x, device):
    recon, z = reconstruct(model, x, BATCH, device)
    recon, error = recon.numpy(), np.square(x - recon.numpy())
    weights = beat_weights(x.shape[1], fitted["sigma_samples"], 0.0).astype(np.float32)
    scores = {"mse": error.mean(axis=1), "beat": error @ weights / len(weights),
              "latent": nearest_distance(z, fitted["references"].float(), fitted["neighbours"])}
    tiny = 1e-12  # a score of exactly 0 (a copy of a reference) must keep a logarithm
    return {k: np.maximum(v.astype(np.float64), tiny) for k, v in scores.items()}, recon, z.numpy()


def nearest_distance(z, references, k):
    """Mean Euclidean distance to the k nearest references: z (n, d), references (r, d) -> (n,)."""
    centre = references.mean(0)  # the expansion |a|^2 - 2ab + |b|^2 below loses digits far from the origin
    parts = [torch.cdist(batch - centre, references - centre, compute_mode="use_mm_for_euclid_dist")
             .topk(k, largest=False).values.mean(1) for batch in z.split(QUERY_BATCH)]
    return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)


def threshold_at_specificity(normal_scores, specificity):
    """The lowest score that flags at most 1 - specificity of these beats; flagged is score >= threshold.

    normal_scores (n,) of normal validation beats: no abnormal beat has a say in the threshold.
    Raises ValueError where there are none.
    """
    if not len(normal_scores):
        raise ValueError("a threshold needs normal beats in the validation part")
    allowed = int(np.floor((1 - specificity) * len(normal_scores) + 1e-9))
    ranked = np.sort(normal_scores)[::-1]
    return float(np.nextafter(ranked[min(allowed, len(ranked) - 1)], np.inf))
