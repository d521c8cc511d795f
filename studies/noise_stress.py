"""Noise stress test of detect.py: electrode motion, muscle artefact and baseline wander mixed in.

reads   data/mitdb/                          python dataset.py --download
        --noise DIR                          bw, em and ma of PhysioNet's nstdb 1.0.0
        checkpoints/patient.pt               shipped
writes  results/noise_stress.json            a row a noise and signal-to-noise ratio; printed too
        evaluation_plots/noise_stress.png    the same as a picture

By the definition of Moody, Muldrow & Mark 1984 (the tool `nst`): noise in every other two minutes
after the first five; only those are counted. Records 118 and 119, of the original test, and every
other one of the first twenty test patients. R peaks are detected.
Next: python -m studies.report --write
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb
from joblib import delayed

import config
from pipeline import errors, runtime
from pipeline.artefacts import load_json, write_json
from pipeline.errors import UserError
from pipeline.figures import CURVES, new_figure, save
from pipeline.tables import readable
from preprocess import resample
from recording import pieces, quality, reader
from recording.scored import score_recording
from scoring.ec57 import UNCOUNTED_S
from studies import expert_labels

NOISES = {"bw": "baseline wander", "em": "electrode motion", "ma": "muscle artefact"}
SNR_DB = (24, 18, 12, 6, 0, -6)    # those of the original test
STRETCH_S = 120                    # with noise, then as long without
FIRST_RECORDS = ("118", "119")     # of the original test
FIGURES = ("false_alarms_per_hour", "unreadable_share", "qrs", "classes", "beats", "hours")
ABNORMAL_BEATS = 50                # a record with more of them must not end without a word
WITHOUT_RULE = ("false_alarms_per_hour", "classes", "excess")
LEAST_READABLE = 0.1               # of the time: below it, a figure is of few beats
# of the picture: figure, label, factor
PANELS = (("auroc", "ROC-AUC of readable beats (%)", 100),
          ("false_alarms_per_hour", "false alarms (an hour)", 1),
          ("readable_share", "readable (% of the time)", 100),
          ("readable_beats", "readable beats (number)", 1))
# of the printed table
HEADINGS = {"noise": "noise", "snr_db": "dB", "auroc": "ROC-AUC (%)",
            "false_alarms_per_hour": "false/h", "unreadable_share": "unreadable (%)",
            "qrs.sensitivity_gross": "R peaks (%)", "readable.V": "V flagged (%)",
            "readable.S": "S flagged (%)", "readable.N": "N flagged (%)", "silent": "silent"}


# --- one record -----------------------------------------------------------------------------------

def in_noise(time_s):
    """(n,) bool: whether these times (s) lie in a stretch with noise."""
    return (time_s >= UNCOUNTED_S) & ((time_s - UNCOUNTED_S) // STRETCH_S % 2 == 0)


def mix(signal, noise, normal, snr_db, fs_hz):
    """(n,) signal with noise in its noisy stretches; normal: samples of normal beats."""
    whole = quality.mix_noise(signal, noise, normal, snr_db, fs_hz)
    return np.where(in_noise(np.arange(len(signal)) / fs_hz), whole, signal)


def score_record(path, noise_path, snr_db, model, stored, device):
    """[(rows, record)] of expert_labels, by the rule of what cannot be read and without it; record
    with `said`: how many flags and warnings the recording ended with.

    noise_path None: the record as it is.
    """
    runtime.use_threads(1)
    with reader.open_recording(path) as recording:
        lead, _ = pieces.choose_lead(recording, None, stored["segment_settings"])
        signal = recording.read(lead, 0, recording.n_samples)
        time_s, symbol = expert_labels.expert_beats(path, "atr", recording.fs_hz)

        if noise_path:
            normal = time_s[np.isin(symbol, list(config.AAMI[config.NORMAL_CLASS]))]

            # mixed at the rate of the recording, as an electrode would have added it
            noise = wfdb.rdrecord(str(noise_path), channels=[0])
            noise_mv = resample(noise.p_signal[:, 0], noise.fs, recording.fs_hz)

            signal = mix(signal, noise_mv, np.round(normal * recording.fs_hz).astype(int), snr_db,
                         recording.fs_hz)

        # the recording is read piece by piece, and each piece is now one of the mixed signal
        recording.read = lambda lead, start, stop: signal[start:stop].copy()

        # both on the same mixture: what differs is the rule alone
        found = []
        for score_all in (False, True):
            summary, scored = score_recording(
                recording, model, stored, lead=recording.leads[lead], score_all=score_all,
                device=device)
            rows, record = expert_labels.compare(path.stem, scored, time_s, symbol, in_noise)
            said = summary["flagged"] + len(summary["warnings"])
            found.append((rows, record | {"said": said}))
    return found


# --- table and picture ----------------------------------------------------------------------------

def row_of(noise, snr_db, found):
    """One row of the table: found is what score_record gave for each record."""
    by_rule, without = (expert_labels.figures_of(one) for one in zip(*found))
    return {"noise": noise, "snr_db": snr_db, "auroc": by_rule["excess"]["auroc"],
            **{key: by_rule[key] for key in FIGURES}, **readable_beats([one[0] for one in found]),
            "without_rule": {key: without[key] for key in WITHOUT_RULE}}


def readable_beats(found):
    """{"readable": {class: share of its readable beats that is flagged}, "silent": records with
    more than ABNORMAL_BEATS that end with no flag and no warning} of [(rows, record)].
    """
    rows = pd.concat([own for own, _ in found])
    shares = rows[rows.scored].groupby("aami").flagged.mean()
    silent = [record["record"] for own, record in found
              if (own.aami != config.NORMAL_CLASS).sum() > ABNORMAL_BEATS and not record["said"]]
    return {"readable": {name: shares.get(name) for name in config.AAMI}, "silent": silent}


def readable_count(row):
    """Expert beats that were found in what is readable."""
    classes = row["classes"].values()
    return sum(found["n"] - found["missed"] - found["not_scored"] for found in classes)


def noise_figure(rows, n_records, simulated):
    """ROC-AUC, false alarms, readable share and readable beats against the signal-to-noise ratio.

    Hollow where less than LEAST_READABLE of the time is readable: a figure of few beats.
    """
    origin = ("noise in every other two minutes, only those counted; dotted: the same stretches "
              "without noise")
    figure = new_figure(8.3, 6.6, origin, simulated)
    table = pd.DataFrame(rows)
    table["readable_share"] = 1 - table["unreadable_share"]
    table["readable_beats"] = [readable_count(row) for row in rows]

    for ax, (key, label, scale) in zip(figure.subplots(2, 2).flat, PANELS):
        ax.axhline(scale * table[key][0], color="black", linestyle=":", linewidth=1)
        for (name, title), (colour, dash) in zip(NOISES.items(), CURVES):
            # where nothing is readable there is no area, and no point
            own = table[table["noise"] == name].dropna(subset=key)
            ax.plot(own["snr_db"], scale * own[key], dash, marker="o", markersize=5, color=colour,
                    label=title)
            few = own[own["readable_share"] < LEAST_READABLE]
            ax.plot(few["snr_db"], scale * few[key], "o", markersize=5, color=colour,
                    markerfacecolor="white")

        # from clean to noisy, as one reads
        ax.set(xlabel="signal-to-noise ratio (dB)", ylabel=label, xticks=SNR_DB)
        ax.invert_xaxis()
        ax.grid(True)

    # few beats and many on one axis
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:,g}")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  title=f"n = {n_records} records, {rows[0]['beats']:,} beats, "
                        f"{rows[0]['hours']:.1f} h;  hollow: less than "
                        f"{LEAST_READABLE:.0%} of the time readable")
    return figure


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--noise", type=Path, metavar="DIR",
                      help="folder with bw, em and ma of PhysioNet's nstdb")
    what.add_argument("--draw", action="store_true", help="the picture of saved results alone")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    path = database.out / "results" / "noise_stress.json"
    if not args.draw:
        measure(args, database, device, path)

    # drawn from the file: --draw and a whole run give the same picture
    result = load_json(path, database.command("-m studies.noise_stress", "--noise", "DIR"))
    picture = database.out / "evaluation_plots" / "noise_stress.png"
    save(picture, lambda: noise_figure(result["rows"], len(result["records"]), database.simulated))
    print(f"wrote {picture}\nnext: python -m studies.report --write")


def measure(args, database, device, path):
    """Score all records in all noises; prints the table and writes the file."""
    # the whole test takes long: what is missing is told before it starts
    for name in NOISES:
        header = args.noise / f"{name}.hea"
        if not header.is_file():
            raise UserError(f"{header}: missing; expected bw, em and ma of "
                            "https://physionet.org/content/nstdb/1.0.0/.")

    detector = expert_labels.load_detector(database)
    records = [name for name in FIRST_RECORDS if name in database.records]
    records += database.test[:20:2]

    # the first row, without noise, is what the others are compared with
    rows = []
    for noise, snr_db in [(None, None), *itertools.product(NOISES, SNR_DB)]:
        noise_path = noise and args.noise / noise
        tasks = [delayed(score_record)(database.records_dir() / f"{name}.hea", noise_path, snr_db,
                                       *detector, device) for name in records]
        rows.append(row_of(noise, snr_db, expert_labels.run(tasks, args.threads)))

    shown = [row | {"silent": len(row["silent"])} for row in rows]
    print(readable(shown, HEADINGS).to_string(index=False, na_rep="none"))
    print("of readable beats; silent: records without a word on more than "
          f"{ABNORMAL_BEATS} abnormal beats")
    write_json(path, {"records": records, "rows": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
