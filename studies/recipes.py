"""What the network is taught, one change at a time, on patients of DS1 and on another database.

reads   data/segments.npz              python dataset.py
        --noise DIR                    bw, em and ma of PhysioNet's nstdb 1.0.0
        --other DIR                    WFDB records of another database with .atr files
writes  results/recipes.json           a row a recipe, data and noise, as each is done; printed too
        checkpoints/recipe-*.pt        the networks, not shipped

Each network is trained on eleven patients of DS1, and tried on the ten others, among whom are
abnormal beats of all classes: no record of DS2 is touched. One seed. Figures are means over records
of the ROC-AUC of a class against normal beats (studies/in_noise.py); beside them stands the drawing
of clean normal beats: its error, and its power above FUZZ_HZ over that of the beats.
Next: python -m studies.report --write
"""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import config
import train_mitbih
from dataset import load_segments
from models import reconstruct
from pipeline import errors, runtime
from pipeline.artefacts import write_json
from pipeline.corruption import Corruption, unit
from pipeline.tables import readable
from scoring.features import BATCH
from studies import in_noise
from studies.ablation import TRAINED
from studies.other_settings import load_or_train, other_settings

HELD_OUT = ("106", "118", "119", "203", "205", "208", "209", "215", "220", "223")
SNR_DB = (12, 6)
DRAWN = 5                # every so many of the held-out normal beats are drawn
FUZZ_HZ = 45.0
OTHER_LOSS = 0.02        # weight of a further loss
HEADINGS = {name: name for name in ("network", "data", "noise", "score")}
HEADINGS |= {name: f"{name} (%)" for name in in_noise.CLASSES}


# --- other corruptions and losses -----------------------------------------------------------------

def recorded_noise(tracks):
    """A Corruption whose noise is taken from tracks (3, n), one of them a beat."""
    class RecordedNoise(Corruption):
        def add_noise(self, x, draw):
            start = draw.whole(0, tracks.shape[1] - x.shape[1])
            kind = draw.whole(0, len(tracks) - 1)
            noise = unit(torch.from_numpy(tracks).float()[kind, start + self.sample])
            size = 10 ** (-draw.uniform(*config.NOISE_SNR_DB) / 20) * x.std(1, keepdim=True)
            return x + noise * size * draw.share(config.NOISE_SHARE)
    return RecordedNoise


def either_polarity(model, head, seen, clean, record):
    """Half of the beats upside down."""
    sign = 2.0 * torch.randint(0, 2, (len(seen), 1), device=seen.device) - 1
    return train_mitbih.batch_loss(model, head, sign * seen, sign * clean, record)


def blended(model, head, seen, clean, record):
    """Half of the beats mixed with up to as much of another one: shapes between two hearts."""
    other = torch.randperm(len(seen), device=seen.device)
    share = 0.5 * torch.rand(len(seen), 1, device=seen.device)
    share = share * (torch.rand_like(share) < 0.5)
    seen, clean = ((1 - share) * x + share * x[other] for x in (seen, clean))
    return train_mitbih.batch_loss(model, head, seen, clean, record)


def alike(model, head, seen, clean, record):
    """Latents of a beat and of the same corrupted pulled together."""
    loss = train_mitbih.batch_loss(model, head, seen, clean, record)
    pair = model.encode(torch.cat([seen, clean]).unsqueeze(1)).chunk(2)
    return loss + OTHER_LOSS * (pair[0] - pair[1]).square().mean() / pair[1].detach().var()


def altered_apart(model, head, seen, clean, record):
    """Beats made abnormal pushed farther from their originals than corrupted ones are."""
    loss = train_mitbih.batch_loss(model, head, seen, clean, record)
    three = model.encode(torch.cat([clean, seen, altered(seen)]).unsqueeze(1)).chunk(3)
    near, far = ((three[0] - other).square().mean(1) / three[0].detach().var() + 1e-3
                 for other in three[1:])
    return loss + OTHER_LOSS * F.softplus(near.log() - far.log() + 1).mean()


def altered(x):
    """x (n, w) with the QRS complex widened, the P wave dropped, or the T wave turned over."""
    n, width = x.shape
    away = torch.arange(width, device=x.device) - width // 2

    def wave(middle_s, sigma_s):
        return torch.exp(-0.5 * ((away / config.FS_HZ - middle_s) / sigma_s) ** 2)

    # slower by up to 2.6 round the R peak: the place that each sample is taken from
    slower = 1.4 + 1.2 * torch.rand(n, 1, device=x.device)
    half = 30 * slower
    place = torch.where(away.abs() < half, away / slower, away - away.sign() * (half - 30))
    wide = x.gather(1, (place.round().long() + width // 2).clamp(0, width - 1))

    without_p = x * (1 - wave(-0.17, 0.06) * (away < -18))
    turned_t = x * (1 - 1.6 * wave(0.3, 0.1) * (away > 20))
    kind = torch.randint(0, 3, (n, 1), device=x.device)
    return torch.where(kind == 0, wide, torch.where(kind == 1, without_p, turned_t))


def recipes(noise):
    """{name: (title, settings, arguments of train_mitbih.train)}; noise: folder of nstdb."""
    recorded = recorded_noise(in_noise.load_noise(noise, half=0))
    return {
        "shipped": ("as shipped", {}, {}),
        "published": ("as published", TRAINED["published"], {}),
        "clean": ("clean beats alone, as before", TRAINED["clean"], {}),
        "all-corrupted": ("every beat corrupted", {"CORRUPTED_SHARE": 1.0}, {}),
        "noise-alone": ("noise alone", {"SHIFT_S": 0.0, "BAND_SHARE": 0.0, "MODULATION": 0.0}, {}),
        "no-band": ("noise and shift alone", {"BAND_SHARE": 0.0, "MODULATION": 0.0}, {}),
        "recorded": ("recorded noise", {}, {"corruption": recorded}),
        "no-records": ("records not told apart", {"RECORD_LOSS": 0.0}, {}),
        "longer": ("twice as long", {"MAX_EPOCHS": 2 * config.MAX_EPOCHS}, {}),
        "polarity": ("either polarity", {}, {"loss_of_batch": either_polarity}),
        "blended": ("blends of two beats", {}, {"loss_of_batch": blended}),
        "alike": ("latents of corrupted beats alike", {}, {"loss_of_batch": alike}),
        "altered": ("made abnormal beats apart", {}, {"loss_of_batch": altered_apart})}


# --- figures --------------------------------------------------------------------------------------

def drawing(model, x, device):
    """{"error", "fuzz"} of what a network draws of clean x (n, w)."""
    recon, _ = reconstruct(model, x, BATCH, device)
    tapered = x * model.taper.cpu().numpy()
    hz = np.fft.rfftfreq(x.shape[1], 1 / config.FS_HZ)

    def power(signal):
        return (np.abs(np.fft.rfft(signal)[:, hz > FUZZ_HZ]) ** 2).sum()

    return {"error": float(np.square(recon.numpy() - tapered).mean()),
            "fuzz": float(power(recon.numpy()) / power(tapered))}


def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    in_noise.add_arguments(parser)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these recipes")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    segments = load_segments(database)

    record = segments.rows["record"]
    normal = segments.rows["y"] == 0
    patients = np.isin(record, (*database.train, *database.validation))
    held_out = np.isin(record, HELD_OUT)
    train = np.flatnonzero(patients & ~held_out & normal)
    validation = np.flatnonzero(held_out & normal)[::DRAWN]

    # the noisy records are read once, for all networks
    conditions = list(in_noise.conditions(database, HELD_OUT, args.other, args.noise, SNR_DB,
                                          SNR_DB))

    table, drawings = [], []
    path = database.out / "results" / "recipes.json"
    for name, (title, changed, others) in tqdm(recipes(args.noise).items(), disable=None):
        if args.only and name not in args.only:
            continue
        with other_settings(**changed):
            checkpoint = database.out / "checkpoints" / f"recipe-{name}.pt"
            model = load_or_train(checkpoint, segments, train, validation, device, **others)

        fitted = in_noise.fit(model, segments, train, validation, device)
        for what, mixed in conditions:
            found = in_noise.measure({(title, config.SEED): (model, fitted)}, mixed, what, device)
            table += in_noise.table_of(found)
        drawings.append({"network": title, **drawing(model, segments.x[validation], device)})
        # after each network: whoever stops the study has what is done
        write_json(path, {"simulated": database.simulated, "table": table, "drawings": drawings})

    print(readable(table, HEADINGS).to_string(index=False, na_rep="n/a"))
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
