"""What the network is taught, one change at a time, on patients of DS1 and on another database.

reads   data/segments.npz              python dataset.py
        --noise DIR                    bw, em and ma of PhysioNet's nstdb 1.0.0
        --other DIR                    WFDB records of another database with .atr files
writes  results/recipes.json           a row a recipe, data and noise, as each is done; printed too
        checkpoints/recipe-*.pt        the networks, not shipped

Each network is trained on eleven patients of DS1, and tried on the ten others, among whom are
abnormal beats of all classes; their normal beats choose the epoch too. No record of DS2 is touched.
One seed. Figures are means over records of the ROC-AUC of a class against normal beats
(studies/in_noise.py); beside them stands the drawing of clean normal beats: its error, and its
power above FUZZ_HZ over that of the beats. The shipped recipe's network is tried in other ways too,
which need no training of their own.
Next: python -m studies.report --write
"""

import copy
import functools
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import config
import train_mitbih
from dataset import load_segments
from models import latents, reconstruct
from pipeline import errors, processes, runtime
from pipeline.artefacts import write_json
from pipeline.corruption import Corruption, unit
from pipeline.tables import readable
from scoring import detector
from scoring.features import BATCH
from scoring.scores import self_references
from studies import in_noise
from studies.ablation import TRAINED
from studies.other_settings import load_or_train, other_settings

SHIPPED = "shipped"
HELD_OUT = ("106", "118", "119", "203", "205", "208", "209", "215", "220", "223")
SNR_DB = (12, 6)
DRAWN = 5                # every so many of the held-out normal beats are drawn
FUZZ_HZ = 45.0
OTHER_LOSS = 0.02        # weight of a further loss
TEMPERATURE = 0.1        # cosine similarities are divided by it: CLOCS
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


def next_beat(model, head, seen, clean, record):
    """Which beat comes next is told from the others by latents: contrastive predictive coding.

    seen, clean (2 b, w): b beats and, in the same order, the beats after them (PairsInMemory). The
    loss is InfoNCE (van den Oord, Li & Vinyals 2018, arXiv:1807.03748) over the b next beats, those
    of the same record among them. No linear map predicts: the optimiser of train_mitbih.train
    reaches network and head alone. The prediction is the beat's own latent, by cosine similarity,
    as between neighbouring segments in CLOCS (Kiyasseh, Zhu & Clifton, ICML 2021).
    """
    error, z = train_mitbih.reconstruction_loss(model, seen, clean)
    z = z.float()
    told = config.RECORD_LOSS * F.cross_entropy(head(z), record)

    before, after = F.normalize(z).chunk(2)
    similarity = before @ after.T / TEMPERATURE          # (b, b), of pairs on the diagonal
    its_own = torch.arange(len(before), device=z.device)
    return error + told + OTHER_LOSS * F.cross_entropy(similarity, its_own)


class PairsInMemory(train_mitbih.BeatsInMemory):
    """The same beats in pairs that follow each other in a record, with no abnormal one between."""

    def __init__(self, segments, rows, device):
        super().__init__(segments, rows, device)
        # a record's beats stand in time in the segments: neighbouring rows are neighbouring beats
        record = segments.rows["record"][rows]
        follows = (np.diff(rows) == 1) & (record[1:] == record[:-1])
        self.before = np.flatnonzero(follows)

    def batches(self, seed, first_epoch, steps, size):
        """Endless (x (b, w), record (b,)): the first beats of the pairs, then the second ones.

        As many beats a batch as in BeatsInMemory, so half as many pairs.
        """
        for epoch in itertools.count(first_epoch):
            order = train_mitbih.epoch_order(seed, epoch, len(self.before), size // 2)
            for step in range(steps):
                start = step * (config.BATCH_SIZE // 2)
                before = self.before[order[start:start + config.BATCH_SIZE // 2]]
                before = processes.share(torch.from_numpy(before))
                rows = torch.cat([before, before + 1])
                yield self.x[rows], self.record[rows]


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
    """{name: (title, settings, arguments of load_or_train)}; noise: folder of nstdb."""
    recorded = recorded_noise(in_noise.load_noise(noise, half=0))
    return {
        "next-beat": ("next beat told from others", {},
                      {"loss_of_batch": next_beat, "beats_of": PairsInMemory}),
        SHIPPED: ("as shipped", {}, {}),
        "clean": ("clean beats alone, as before", TRAINED["clean"], {}),
        "all-corrupted": ("every beat corrupted", {"CORRUPTED_SHARE": 1.0}, {}),
        "longer": ("twice as long", {"MAX_EPOCHS": 2 * config.MAX_EPOCHS}, {}),
        "recorded": ("recorded noise", {}, {"corruption": recorded}),
        "altered": ("made abnormal beats apart", {}, {"loss_of_batch": altered_apart}),
        "blended": ("blends of two beats", {}, {"loss_of_batch": blended}),
        "no-records": ("records not told apart", {"RECORD_LOSS": 0.0}, {}),
        "noise-alone": ("noise alone", {"SHIFT_S": 0.0, "BAND_SHARE": 0.0, "MODULATION": 0.0}, {}),
        "no-band": ("noise and shift alone", {"BAND_SHARE": 0.0, "MODULATION": 0.0}, {}),
        "alike": ("latents of corrupted beats alike", {}, {"loss_of_batch": alike}),
        "polarity": ("either polarity", {}, {"loss_of_batch": either_polarity}),
        # last: it trains longest
        "published": ("as published", TRAINED["published"], {})}


# --- other ways to score with the shipped recipe's network ----------------------------------------

def scores_adapted(model, fitted, segments, device):
    """{score: (n,)} of a network adapted to each record: AdaBN (Li et al. 2016, arXiv:1603.04779).

    Its batch norms take mean and variance of the record's own regular beats, which rhythm alone
    chooses: no label is read.
    """
    features = in_noise.features_of(model, fitted, segments, device)
    spread = detector.spread_within_records(features)
    for here, regular in self_references(features, fitted, causal=False):
        own = adapted(model, segments.x[here[regular]], device)
        features.z[here] = latents(own, segments.x[here], BATCH, device)

    # latents beside timing weigh what they did before: adapted, they spread by a quarter more
    features.z *= spread / detector.spread_within_records(features)
    return detector.scores_of(features, fitted, in_noise.SCORES)


@torch.no_grad()
def adapted(model, x, device):
    """A copy of the network whose encoder's batch norms have mean and variance of beats x (n, w).

    The decoder's stay: no score here reads a drawing.
    """
    own = copy.deepcopy(model).train()
    for layer in own.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.momentum = 1.0   # the statistics of the one batch that follows, and no others

    own.encode(torch.from_numpy(x).unsqueeze(1).to(device))
    return own.eval()


def scores_of_both_leads(model, fitted, segments, device, second, join):
    """{score: (n,)} of both leads by the same network, joined by `join` ((n,), (n,)) -> (n,).

    second: Segments of the same beats on the other lead.
    """
    of_first = in_noise.scores_of(model, fitted, segments, device)
    of_second = in_noise.scores_of(model, fitted, second, device)
    return {name: join(of_first[name], of_second[name]) for name in of_first}


def ways_of(name, title, second):
    """{title: scores function of in_noise.measure} that a recipe's network is tried with.

    second: Segments of the other lead.
    """
    ways = {title: in_noise.scores_of}
    if name == SHIPPED:
        both = functools.partial(scores_of_both_leads, second=second)
        ways["adapted to each record"] = scores_adapted
        ways["both leads, the smaller score"] = functools.partial(both, join=np.minimum)
        ways["both leads, their mean"] = functools.partial(
            both, join=lambda *scores: np.mean(scores, axis=0))
    return ways


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
    both_leads = [in_noise.conditions(database, HELD_OUT, args.other, args.noise, SNR_DB, SNR_DB,
                                      second) for second in (False, True)]
    conditions = [(what, mixed, second) for (what, mixed), (_, second) in zip(*both_leads)]

    table, drawings = [], []
    path = database.out / "results" / "recipes.json"
    for name, (title, changed, others) in tqdm(recipes(args.noise).items(), disable=None):
        if args.only and name not in args.only:
            continue
        with other_settings(**changed):
            checkpoint = database.out / "checkpoints" / f"recipe-{name}.pt"
            model = load_or_train(checkpoint, segments, train, validation, device, **others)

        fitted = in_noise.fit(model, segments, train, validation, device)
        for what, mixed, second in conditions:
            for way, score in ways_of(name, title, second).items():
                models = {(way, config.SEED): (model, fitted)}
                found = in_noise.measure(models, mixed, what, device, score)
                table += in_noise.table_of(found)
        drawings.append({"network": title, **drawing(model, segments.x[validation], device)})
        # after each network: whoever stops the study has what is done
        write_json(path, {"simulated": database.simulated, "table": table, "drawings": drawings})

    print(readable(table, HEADINGS).to_string(index=False, na_rep="n/a"))
    print(f"wrote {path}\nnext: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
