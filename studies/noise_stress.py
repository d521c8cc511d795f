"""Noise stress test of detect.py: recordings with electrode motion, muscle artefact and baseline wander mixed in.

reads   data/mitdb/                   python dataset.py --download
        --noise DIR                   bw, em and ma of the MIT-BIH Noise Stress Test Database 1.0.0 (PhysioNet nstdb)
        checkpoints/patient.pt        shipped
writes  results/noise_stress.json     a row a noise and signal-to-noise ratio; the table is printed
        evaluation_plots/noise_stress.png

By the definition of Moody, Muldrow & Mark 1984 (the tool `nst`): noise in every other two minutes after
the first five; only those are counted. Records 118 and 119, of the original test, and every other
one of DS2, ten of them. R peaks are detected.
"""

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import wfdb
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from tqdm import tqdm

import config
from pipeline import errors, settings
import detect
from recording import quality
from recording import reader
from studies import expert_labels
from scoring.ec57 import UNCOUNTED_S
from pipeline.errors import UserError
from pipeline.figures import CURVES, save
from pipeline.artefacts import write_json
from pipeline.runtime import machine_parser, parsed, use_threads
from pipeline.tables import aligned

NOISES = {"bw": "baseline wander", "em": "electrode motion", "ma": "muscle artefact"}
SNR_DB = (24, 18, 12, 6, 0, -6)
STRETCH_S = 120
RECORDS = ("118", "119", *settings.database("mitdb").test[:20:2])


class Mixed:
    """One lead of a recording with noise mixed in, as a Recording."""

    def __init__(self, recording, lead, signal):
        self.name, self.fs_hz, self.start = recording.name, recording.fs_hz, recording.start
        self.leads, self.calibrated = [recording.leads[lead]], [recording.calibrated[lead]]
        self.signal, self.n_samples = signal, len(signal)

    def read(self, lead, start, stop):
        """(stop - start,) mV"""
        return self.signal[start:stop].copy()


def noisy(time_s):
    """(n,) bool: whether these times (s) lie in a stretch with noise."""
    time_s = np.asarray(time_s)
    return (time_s >= UNCOUNTED_S) & (((time_s - UNCOUNTED_S) // STRETCH_S) % 2 == 0)


def mixed(signal, noise, normal, snr_db, fs_hz):
    """(n,) signal with noise in its noisy stretches; normal: samples of normal beats."""
    whole = quality.mix_noise(signal, noise, normal, snr_db, fs_hz)
    return np.where(noisy(np.arange(len(signal)) / fs_hz), whole, signal)


def one(path, noise_path, snr_db, checkpoint_args):
    """[(rows, record)] of one record with one noise, by the rule of what cannot be read and without it.

    snr_db None: the record as it is.
    """
    use_threads(1)
    model, stored = detect.load(checkpoint_args)
    with reader.open_recording(path) as recording:
        lead, _ = detect.choose_lead(recording, None)
        signal = recording.read(lead, 0, recording.n_samples)
        time_s, symbol = expert_labels.expert_beats(path, "atr", recording.fs_hz)
        if snr_db is not None:
            normal = np.round(time_s[np.isin(symbol, list(config.AAMI["N"]))] * recording.fs_hz).astype(int)
            noise = wfdb.rdrecord(str(noise_path), channels=[0]).p_signal[:, 0]
            signal = mixed(signal, noise, normal, snr_db, recording.fs_hz)
        result = []
        for score_all in (False, True):
            flags = Namespace(**vars(checkpoint_args), score_all=score_all)
            _, findings = detect.examine(Mixed(recording, lead, signal), None, flags, model, stored)
            result.append(expert_labels.compared(path.stem, findings.lead, findings, time_s, symbol, noisy))
    return result


def figure(rows):
    """ROC-AUC, false alarms and unreadable share against the signal-to-noise ratio."""
    picture = Figure(figsize=(11, 3.8), dpi=150, layout="constrained")
    picture.suptitle(f"{len(RECORDS)} records, noise in every other two minutes, only those counted; "
                     "dotted: the same stretches without noise", fontsize=9)
    panels = (("auroc", "ROC-AUC of readable beats (%)", 100), ("false_alarms_per_hour", "false alarms an hour", 1),
              ("unreadable_share", "unreadable (% of the time)", 100))
    clean = next(r for r in rows if r["noise"] is None)
    for ax, (key, label, scale) in zip(picture.subplots(1, 3), panels):
        ax.axhline(scale * clean[key], color="black", linestyle=":", linewidth=1)
        for (name, title), (colour, dash) in zip(NOISES.items(), CURVES):
            own = [r for r in rows if r["noise"] == name and r[key] is not None]
            ax.plot([r["snr_db"] for r in own], [scale * r[key] for r in own], dash, marker="o", markersize=4,
                    color=colour, label=title)
        ax.set(xlabel="signal-to-noise ratio (dB)", ylabel=label)
        ax.invert_xaxis()
        ax.grid(True)
    picture.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return picture


def pooled(found):
    """recordings_report's figures of [(rows, record)] together."""
    rows = {name: np.concatenate([r[name] for r, _ in found]) for name in found[0][0]}
    return expert_labels.figures(rows, [record for _, record in found])


def row(noise, snr_db, found):
    """What the table shows of one condition: found [[(rows, record), the same without the rule] a record]."""
    by_rule, without = ([record[k] for record in found] for k in (0, 1))
    figures = pooled(by_rule)
    return {"without_rule": {key: value for key, value in pooled(without).items()
                             if key in ("classes", "false_alarms_per_hour", "level")},
            "noise": noise, "snr_db": snr_db, "auroc": figures["level"]["auroc"], "qrs": figures["qrs"],
            "false_alarms_per_hour": figures["false_alarms_per_hour"], "unreadable_share": figures["unreadable_share"],
            "classes": figures["classes"], "beats": figures["beats"], "hours": figures["hours"]}


def parse_args(argv=None):
    parser = machine_parser(__doc__)
    parser.add_argument("--noise", required=True, metavar="DIR", help="folder with bw, em and ma of PhysioNet's nstdb")
    return parsed(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    headers = [Path(args.noise) / f"{name}.hea" for name in NOISES]
    missing = [path for path in headers if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: missing; expected bw, em and ma of https://physionet.org/content/nstdb/1.0.0/.")
    flags = Namespace(checkpoint=None, simulated=False, lead=None, causal=False, level=None, alarms_per_hour=None,
                      sensitivity=None, device=args.device)
    conditions = [(None, None), *((name, snr) for name in NOISES for snr in SNR_DB)]
    paths = [settings.database("mitdb").records_dir() / f"{name}.hea" for name in RECORDS]
    work = Parallel(n_jobs=args.threads or os.cpu_count(), return_as="generator")(
        delayed(one)(path, Path(args.noise) / (noise or "bw"), snr, flags)
        for noise, snr in conditions for path in paths)
    found = list(tqdm(work, total=len(conditions) * len(paths), desc="noise", disable=None))
    table = [row(*condition, found[k * len(paths):(k + 1) * len(paths)]) for k, condition in enumerate(conditions)]
    percent = lambda v: "n/a" if v is None else f"{100 * v:.2f}"
    heading = ["noise", "dB", "ROC-AUC %", "false alarms/h", "unreadable %", "QRS sensitivity %"]
    print("\n".join(aligned([heading, *(
        [NOISES.get(r["noise"], "none"), str(r["snr_db"] if r["noise"] else ""), percent(r["auroc"]),
         f"{r['false_alarms_per_hour']:.1f}", percent(r["unreadable_share"]), percent(r["qrs"]["sensitivity_gross"])]
        for r in table)])))
    path = settings.database("mitdb").root / "results" / "noise_stress.json"
    write_json(path, {"records": RECORDS, "rows": table})
    picture = settings.database("mitdb").root / "evaluation_plots" / "noise_stress.png"
    save(picture, lambda: figure(table))
    print(f"wrote {path}, {picture}")


if __name__ == "__main__":
    errors.run(main)
