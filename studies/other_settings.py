"""How a study trains what config.py does not describe: other settings, networks of its own."""

import hashlib
from contextlib import contextmanager

import torch

import config
import train_mitbih
from models import load_checkpoint, save_checkpoint, stale, stamp_of
from pipeline import settings
from pipeline.errors import UserError


@contextmanager
def other_settings(**values):
    """Give config.py these values, and its own again at the end, also after an error.

    Raises AttributeError, and changes nothing, for a name that is no setting.
    """
    before = {name: getattr(config, name) for name in values}

    vars(config).update(values)
    try:
        yield
    finally:
        vars(config).update(before)


def load_or_train(path, segments, rows, validation, device, seed=config.SEED,
                  beats_of=train_mitbih.BeatsInMemory, **others):
    """The network of the checkpoint `path`; trained and kept there where it was made otherwise.

    rows: row numbers of its training beats; validation: of the beats that choose the epoch;
    beats_of: what makes batches of them;
    others: more for train_mitbih.train, which the name of the file must tell.
    """
    # with other rows, as when the folds change, a network may know the beats it is to be tried on
    used = {"rows": hashlib.sha256(rows.tobytes() + validation.tobytes()).hexdigest()}
    stamp = stamp_of(segments, path.stem, seed) | used
    try:
        model, stored = load_checkpoint(path, "", stamp)
        if not stale(stored, stamp) and not settings.differences(stored, used):
            return model.to(device)
    except UserError:
        pass  # missing or damaged: it is made again

    paths = {"resume": path.with_suffix(".resume.pt"), "history": path.with_suffix(".csv")}
    beats = beats_of(segments, rows, device)
    x_validation = torch.from_numpy(segments.x[validation]).to(device)
    model, _ = train_mitbih.train(beats, x_validation, seed, device, paths, stamp,
                                  **others)
    save_checkpoint(path, model, **stamp)

    # a finished run leaves its network alone
    for leftover in paths.values():
        leftover.unlink(missing_ok=True)
    return model
