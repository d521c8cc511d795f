"""Train on an archive of shards larger than memory: step 2 for any number of records.

reads   FOLDER/index.json, FOLDER/*.npz   python -m scaling.build_shards RECORD ... --out FOLDER
writes  checkpoints/archive.pt            as train_mitbih.py does; archive-seed1.pt of other seeds
        results/archive/history.csv       one row an epoch, as it happens

Training streams from the disk; a sample of the archive, held in memory, chooses the epoch and fits
the scores. A run that was killed goes on with --resume. Several processes, each with its share of
every batch: torchrun --nproc-per-node=4 -m scaling.train_on_shards FOLDER
Next: python detect.py RECORDING --checkpoint checkpoints/archive.pt
"""

import torch

import config
import train_mitbih
from models import stamp_of
from pipeline import errors, processes, runtime, settings
from scaling import shards

FITTED_WITH = ("ARCHIVE_REFERENCES",)   # what scores depend on beside SCORE_SETTINGS


def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="of scaling.build_shards")
    parser.add_argument("--seed", type=int, default=config.SEED,
                        help="another seed, another checkpoint file")
    parser.add_argument("--resume", action="store_true",
                        help="go on with a stopped run, if there is one")
    parser.add_argument("--force", action="store_true",
                        help="train even if the checkpoint is up to date")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    from scoring import fit   # scikit-learn takes a second to load: a wrong flag is told before
    processes.silence_others()
    fit.check_names("patient")   # an archive is split by patient, as that protocol is

    database, device = runtime.prepare(args)
    title = f"shards in {args.folder}"
    if database.simulated:
        title += " (SIMULATED ECG, no patient)"
    archive = shards.load_archive(args.folder, config.BATCH_SIZE, title, database.simulated)

    stamp = stamp_of(archive, "archive", args.seed)
    seed_flag = ["--seed", args.seed] if args.seed != config.SEED else []
    command = database.command("-m scaling.train_on_shards", args.folder, *seed_flag)
    paths = train_mitbih.paths_of(database.checkpoint_path("archive", args.seed),
                                  database.results_dir("archive", args.seed))

    found = None if args.force else train_mitbih.stored_weights(paths, stamp, args.resume)
    if found and train_mitbih.scores_up_to_date(found, paths, FITTED_WITH):
        return
    if found:
        model, history = found[0], found[1]["history"]
    else:
        print(title)
        resume = train_mitbih.stopped_run(paths["resume"], stamp, command) if args.resume else None

        # the epoch is chosen on normal beats of validation records, as many as memory holds
        held = shards.sample(archive, {"validation": config.ARCHIVE_VALIDATION})
        x_validation = torch.from_numpy(held.x[held.normal_validation("patient")]).to(device)

        # Stream asks which of the processes this is: they must have found each other
        with train_mitbih.training_group(device, command):
            stream = shards.Stream(archive, config.BATCH_SIZE, config.ARCHIVE_BUFFER,
                                   processes.rank(), processes.count())
            model, history = train_mitbih.train(stream, x_validation, args.seed, device, paths,
                                                stamp, resume)

    if runtime.is_first():  # several processes train together, one fits and writes
        held = shards.sample(archive, {"train": config.ARCHIVE_REFERENCES,
                                       "validation": config.ARCHIVE_VALIDATION})
        scores = fit.fit_scores(model.to(device), held, "patient", device)
        scores["score_settings"] |= settings.snapshot(FITTED_WITH)
        train_mitbih.finish(paths, model, history, stamp, scores)
        print(f"next: python detect.py RECORDING --checkpoint {paths['checkpoint']}")


if __name__ == "__main__":
    errors.run(main)
