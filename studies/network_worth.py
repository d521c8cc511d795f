"""What the network is worth: the same scores on other latents, clean and in recorded noise.

reads   data/segments.npz                  python dataset.py
        checkpoints/patient*.pt            python train_mitbih.py --protocol patient, every seed
        --noise DIR                        bw, em and ma of PhysioNet's nstdb 1.0.0
        --other DIR                        WFDB records of another database with .atr files
writes  results/network_worth.json         a row a network, noise and score; printed too
        evaluation_plots/network_worth.png the same as a picture
        evaluation_plots/denoised.png      noisy beats and what the network draws of them
        checkpoints/ablation-patient-*.pt  the networks that are not shipped

Test patients, annotated R peaks; noise that no training has seen (studies/in_noise.py). A
figure is the mean of the ROC-AUC of a class against the normal beats over the records that have
five of each: the median over the seeds. Intervals are paired, over records, of each record's mean
over the seeds. Next: python -m studies.report --write
"""

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import config
from dataset import load_segments
from evaluate import load_detector
from models import network_sizes, new_network, reconstruct
from pipeline import errors, runtime, settings
from pipeline.artefacts import load_json, write_json
from pipeline.figures import BEST, CURVES, GREY, new_figure, save
from pipeline.tables import readable
from scoring.features import BATCH
from studies import in_noise
from studies.ablation import TRAINED, PrincipalComponents, abnormal_beats
from studies.other_settings import load_or_train, other_settings

SNR_DB = (24, 12, 6, 0)
SNR_DB_OF_OTHER = (6,)
DRAWN = "6 dB"               # the noise of denoised.png
# name: title, how many of config.SEEDS: components have none, the longest training gets one
NETWORKS = {"trained": ("the trained network", len(config.SEEDS)),
            "untrained": ("the same, untrained", 3),
            "components": ("32 principal components", 1),
            "published": ("trained as published", 1),
            "abnormal": ("trained on abnormal beats", 3)}
HEADINGS = {name: name for name in ("data", "noise", "score", "network")}
HEADINGS |= {name: f"{name} (%)" for name in in_noise.CLASSES}


# --- the networks ---------------------------------------------------------------------------------

def network(name, seed, database, segments, device):
    """(model, fitted) of a network: everything but its latents is the same for all of them."""
    train = segments.part("patient", "train")
    if name == "trained":
        model, stored = load_detector(database, "patient", seed, segments)
        return model.to(device), stored["fitted"]

    if name == "untrained":
        torch.manual_seed(seed)
        model = new_network().to(device).eval()
    elif name == "components":
        model = PrincipalComponents(**network_sizes()).fit(segments.x[train]).to(device)
    else:
        beats, validation = train, segments.normal_validation("patient")
        if name == "abnormal":
            beats, validation = abnormal_beats(segments, "patient")
        # of SEED it is the one of studies.ablation
        other = "" if seed == config.SEED else f"-seed{seed}"
        path = database.out / "checkpoints" / f"ablation-patient-{name}{other}.pt"
        with other_settings(**TRAINED[name]):
            model = load_or_train(path, segments, beats, validation, device, seed)

    # normal beats are the reference of each, whatever it was trained on
    return model, in_noise.fit(model, segments, train, segments.part("patient", "validation"),
                               device)


# --- the figures ----------------------------------------------------------------------------------

def differences_of(found):
    """[{data, noise, score, class, network, value, low, high}]: trained less each other network,
    with 95 % intervals over records."""
    keys = ["data", "noise", "score", "class"]
    rows = []
    found = found[found["class"] != in_noise.POOLED]
    for values, part in found.groupby(keys, sort=False):
        records = part.pivot_table("auroc", "record", "network", aggfunc="mean")
        rng = np.random.default_rng(config.BOOTSTRAP_SEED)
        drawn = rng.integers(len(records), size=(config.BOOTSTRAP_RESAMPLES, len(records)))

        for name in records.columns.drop("trained"):
            paired = (records["trained"] - records[name]).to_numpy()
            low, high = np.percentile(paired[drawn].mean(axis=1), (2.5, 97.5))
            rows.append({**dict(zip(keys, values)), "network": name, "records": len(records),
                         "value": paired.mean(), "low": low, "high": high})
    return rows


# --- the picture ----------------------------------------------------------------------------------

def worth_figure(result):
    """A panel a class: the area against the noise, a curve a network; self_reference alone."""
    table = pd.DataFrame(result["table"])
    table = table[(table.data == table.data[0]) & (table.score == in_noise.SCORES[0])]
    origin = (f"test patients, score {in_noise.SCORES[0]}, mean over records, median over seeds; "
              "noise never trained on")
    figure = new_figure(8.3, 3.7, origin, result["simulated"])

    for ax, name in zip(figure.subplots(1, len(in_noise.CLASSES)), in_noise.CLASSES):
        for (network, (title, _)), (colour, dash) in zip(NETWORKS.items(), CURVES):
            own = table[table.network == network]
            ax.plot(own.noise, 100 * own[name], dash, marker="o", markersize=4, color=colour,
                    label=title)
        # three panels leave no room for the unit at each number
        noises = list(dict.fromkeys(table.noise))
        ax.set_xticks(range(len(noises)), [noise.removesuffix(" dB") for noise in noises])
        ax.set(xlabel="signal-to-noise ratio (dB)", ylabel="ROC-AUC (%)", title=f"class {name}")
        ax.grid(True)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def middle_beats(segments):
    """{class: (record, (w,) segment)} of the middle beat of each class: nobody picks an example."""
    found = {}
    for name in (config.NORMAL_CLASS, *in_noise.CLASSES):
        here = np.flatnonzero(segments.rows["aami"] == name)
        if len(here):
            row = here[len(here) // 2]
            found[name] = segments.rows["record"][row], segments.x[row]
    return found


def denoised_figure(model, clean, noisy, simulated, device):
    """A panel a class: what the network saw, what it drew of it, and the beat without noise."""
    figure = new_figure(8.3, 5.6, f"recorded noise at {DRAWN}, never trained on; as the network "
                        "sees beats: times a Gaussian", simulated)
    taper = model.taper.cpu().numpy()
    drawings, _ = reconstruct(model, np.stack([x for _, x in noisy.values()]), BATCH, device)
    time_s = (np.arange(len(taper)) - len(taper) // 2) / config.FS_HZ

    # two rows: in one of four, a beat would be two centimetres wide
    axes = figure.subplots(-(-len(noisy) // 2), 2, sharey=True).ravel()
    for ax, (name, (record, seen)), drawing in zip(axes, noisy.items(), drawings.numpy()):
        ax.plot(time_s, seen * taper, color=GREY, linewidth=0.8, label="seen, with noise")
        ax.plot(time_s, clean[name][1] * taper, color="black", linewidth=1, label="without noise")
        ax.plot(time_s, drawing, color=BEST, linewidth=1.4, label="drawn of the noisy one")
        ax.set(title=f"class {name}, record {record}", xlabel="time from the R peak (s)",
               xlim=(-0.6, 0.6))
        ax.set_ylabel("amplitude (standard\ndeviations)")
    for ax in axes[len(noisy):]:
        ax.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    in_noise.add_arguments(parser)
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    segments = load_segments(database)

    models = {(name, seed): network(name, seed, database, segments, device)
              for name, (_, seeds) in NETWORKS.items() for seed in config.SEEDS[:seeds]}

    conditions = in_noise.conditions(database, database.test, args.other, args.noise, SNR_DB,
                                     SNR_DB_OF_OTHER)
    found, beats = [], {}
    for what, mixed in tqdm(conditions, desc="noise", disable=None):
        found.append(in_noise.measure(models, mixed, what, device))
        # the test patients come first
        beats.setdefault(what["noise"], middle_beats(mixed))
    found = pd.concat(found)
    table = in_noise.table_of(found)
    print(readable(table, HEADINGS).to_string(index=False, na_rep="n/a"))

    path = database.out / "results" / "network_worth.json"
    names = settings.TRAINING_SETTINGS + settings.SCORE_SETTINGS
    write_json(path, {"simulated": database.simulated, "settings": settings.snapshot(names),
                      "networks": NETWORKS, "table": table,
                      "paired": differences_of(found)})

    result = load_json(path, database.command("-m studies.network_worth"))
    picture = database.out / "evaluation_plots" / "network_worth.png"
    save(picture, lambda: worth_figure(result))
    model, _ = models["trained", config.SEED]
    save(picture.with_name("denoised.png"), lambda: denoised_figure(
        model, beats["clean"], beats[DRAWN], database.simulated, device))
    print(f"wrote {path}, {picture.parent}/network_worth.png and denoised.png")
    print("next: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
