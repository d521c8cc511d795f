"""From an open recording to its scored beats, flags, groups and episodes, and the summary of them.

The excess of a beat is its score less the median of the recording's own regular beats; from a line
on it is flagged, with the beats that are like it.
"""

import numpy as np
import torch

import config
from models import reconstruct
from pipeline.errors import UserError
from recording import episodes, flags, groups, pieces, quality, review, scan, trust
from recording.beats import APART_S, EXAMPLES, ScoredBeats, joined
from recording.rhythm import rhythm_of
from scoring.detector import excess_at
from scoring.features import BATCH
from scoring.scores import SCORES

# --- one recording --------------------------------------------------------------------------------

def score_recording(recording, model, stored, *, lead=None, given_s=None, causal=False,
                    score_all=False, excess=None, alarms_per_hour=None, sensitivity=None,
                    by_group=True, device="cpu", progress=iter):
    """(summary dict, ScoredBeats) of an open Recording.

    model, stored: of models.load_checkpoint. lead: a name or number, else the best. given_s (k,):
    its R peaks in s where they are known. score_all: nothing is unreadable. The line to flag is one
    of excess, alarms_per_hour and sensitivity, else config's EXCESS_SPECIFICITY, by which, unless
    by_group is False, a group of like beats is flagged or none of it. progress: wraps what is gone
    over, tqdm for example.
    """
    signal = stored["segment_settings"]
    fitted = stored["fitted"]
    model.to(device)

    lead, why = pieces.choose_lead(recording, lead, signal)
    beats = scan.scan(recording, lead, model, signal, fitted["settings"], device, given_s,
                      score_all, progress)
    found = scan.score(beats, fitted, score_name(stored, causal), causal, signal["FS_HZ"])

    # the excess over this recording's regular beats: a line that is good for any
    line, rule = line_to_flag(found.excess, beats.duration_s, stored["excess"], excess,
                              alarms_per_hour, sensitivity)

    # a line that was asked for is one for each beat
    if excess is None and alarms_per_hour is None and sensitivity is None:
        flagged = flags.flags(beats, found, line, causal, by_group)
    else:
        flagged = found.excess >= line
    kind = np.where(flagged, found.kind, np.where(beats.scored, "N", ""))

    # what is flagged, as few questions to a reviewer
    review_group = np.zeros(len(kind), int)
    latents = beats.z[np.flatnonzero(flagged[beats.scored])] / fitted["z_scale"]
    review_group[flagged] = review.review_groups(
        latents, found.early[flagged], found.excess[flagged], kind[flagged])

    stretches = episodes.episodes(beats.time_s, kind, joined(beats), found.without_p)
    stretches += episodes.without_qrs(beats.without_qrs, quality.VERDICT_S, beats.duration_s)
    stretches += episodes.still(beats.swing, beats.unreadable, quality.VERDICT_S, stretches)
    stretches.sort(key=lambda episode: episode["start_s"])

    scored = ScoredBeats(recording.name, recording.leads[lead], lead, recording.fs_hz,
                         recording.start, "mV" if recording.calibrated[lead] else "file's unit",
                         beats, found, flagged, line, kind, review_group, stretches)

    # taken now, from the segments that the network saw: the recording is not read again
    scored.examples = most_abnormal(scored, model, signal["FS_HZ"], device)

    scored.mean_beats = review.mean_beats(review_group[beats.scored], kind[beats.scored] == "N",
                                          beats.segments, signal["FS_HZ"])

    summary = summary_of(scored, recording) | {
        "lead_chosen": why, "excess_rule": rule, "simulated_training": stored["simulated"],
        "r_peaks": "detected (sleepecg)" if given_s is None else "given"}
    summary["warnings"] += trust.inverted(beats, kind, scored.lead, signal["FS_HZ"])
    fast = [episode for episode in stretches if episode["kind"] == "tachycardia"]
    summary["warnings"] += trust.of_its_own(beats.scored, found.group, beats.time_s, fast)
    summary["warnings"] += trust.rate_doubt(beats.time_s, joined(beats))
    return summary, scored


def score_name(stored, causal):
    """The checkpoint's DEFAULT_SCORE, or the same from the past alone; else UserError."""
    name = stored["score_settings"]["DEFAULT_SCORE"]
    if not causal:
        return name

    # the same values, or the same combination, of the past
    for other, score in SCORES.items():
        if score.causal and score.values is SCORES[name].values:
            return other
    raise UserError(f"--causal: the checkpoint's score {name} is not known from the past alone. "
                    "Leave --causal out, or take a checkpoint whose DEFAULT_SCORE is combined.")


def line_to_flag(over, duration_s, curve, excess=None, alarms_per_hour=None, sensitivity=None):
    """(line, where it is from): excess over (n,) NaN where not scored, curve of the validation
    patients.
    """
    if excess is not None:
        return excess, "asked for"

    if alarms_per_hour is not None:
        # just above the first beat too many
        known = np.sort(over[np.isfinite(over)])[::-1]
        allowed = int(alarms_per_hour * duration_s / 3600)
        line = np.nextafter(known[allowed], np.inf) if allowed < len(known) else -np.inf
        return float(line), f"at most {alarms_per_hour:g} flags an hour"

    if sensitivity is not None:
        return (excess_at(curve, "sensitivity", sensitivity),
                f"sensitivity {sensitivity:g} on validation patients")

    specificity = config.EXCESS_SPECIFICITY
    return (excess_at(curve, "specificity", specificity),
            f"specificity {specificity:g}, mean over validation patients")


def summary_of(scored, recording):
    """What NAME.ecgad.json says of the beats and of what could be read."""
    beats = scored.beats
    n_scored = int(beats.scored.sum())
    n_flagged = int(scored.flagged.sum())

    # of time: each window has one verdict, "" where it can be read
    shares = {name: float((beats.unreadable == k).mean()) for k, name in enumerate(quality.REASONS)}

    return {"recording": scored.name, "duration_s": beats.duration_s, "fs_hz": scored.fs_hz,
            "leads": list(recording.leads), "lead": scored.lead,
            "calibrated": bool(recording.calibrated[scored.lead_index]),
            "beats": len(beats.time_s), "scored": n_scored, "flagged": n_flagged,
            "kinds": {letter: int((scored.kind == letter).sum()) for letter in "SVFQ"},
            "excess": scored.line,
            "flagged_share": n_flagged / n_scored if n_scored else None,
            "flagged_per_hour": n_flagged / beats.duration_s * 3600,
            "unreadable_share": 1 - shares.pop(""), "unreadable": shares,
            "groups": groups.rows(scored.found, scored.kind, scored.flagged, beats.time_s),
            "review": review.rows(scored.review_group, scored.found, scored.kind, beats.time_s),
            "episodes": scored.episodes, "rhythm": rhythm_of(scored),
            "warnings": trust.warnings(beats, scored.excess, scored.kind, scored.line),
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}


# --- its most abnormal beats ----------------------------------------------------------------------

def most_abnormal(scored, model, fs_hz, device):
    """[{"time_s", "excess", "kind", "offset_s" (w,), "signal" (w,), "recon" (w,)}] of the highest
    beats, well apart.

    offset_s: time from the R peak of each sample at the network's rate, fs_hz.
    """
    beats = scored.beats
    known = np.flatnonzero(beats.scored)   # a row of the segments each
    chosen = []
    for row in np.argsort(-scored.excess[known], kind="stable"):
        away_s = np.abs(beats.time_s[known[chosen]] - beats.time_s[known[row]])
        if away_s.min(initial=APART_S) >= APART_S:
            chosen.append(row)
        if len(chosen) == EXAMPLES:
            break

    segments = beats.segments[chosen]
    x = segments[:, :-2]
    recon, _ = reconstruct(model, x, BATCH, device)
    offset_s = (np.arange(x.shape[1]) - x.shape[1] // 2) / fs_hz
    examples = []
    for beat, seen, drawn, (mean, scale) in zip(known[chosen], x, recon.numpy(), segments[:, -2:]):
        examples.append({"time_s": beats.time_s[beat], "excess": scored.excess[beat],
                         "kind": scored.kind[beat], "offset_s": offset_s,
                         "signal": seen * scale + mean, "recon": drawn * scale + mean})
    return examples
