"""Training on an archive of shards: order, damage, samples, and against training from memory."""

import itertools
import json

import numpy as np
import pytest
import torch

import config
import detect
import models
import train_mitbih
from conftest import ON_SIMULATED, archive_of, write_archive
from pipeline import settings
from pipeline.errors import UserError
from scaling import shards, train_on_shards


def opened(folder, least=1):
    return shards.load_archive(folder, least, "shards", False)


def write_numbered(folder, records):
    """Records of 300 beats, r58 and r59 for validation, every fifth beat abnormal.

    x begins with the beat's number and ends with that of its record.
    """
    tables = {}
    for r in records:
        x = np.zeros((300, config.WINDOW_SIZE), np.float32)
        x[:, 0] = np.arange(300 * r, 300 * (r + 1))
        x[:, -1] = r
        columns = dict.fromkeys(shards.COLUMNS, np.ones(300, np.float32))
        columns |= {"x": x, "y": (np.arange(300) % 5 == 3).astype(np.int8),
                    "record": np.full(300, f"r{r:02d}")}
        tables[f"r{r:02d}"] = columns, "train" if r < 58 else "validation"
    return write_archive(folder, tables, 130)


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("numbered") / "shards", range(60))


NORMAL = [k for k in range(300 * 58) if k % 5 != 3]


def stream_of(folder, rank=0, count=1):
    return shards.Stream(opened(folder), 64, 4000, rank, count)


def numbers(stream, first_batch, n_batches, seed=0):
    """(b, batch) numbers of the beats of so many batches from one of the stream on."""
    batches = itertools.islice(stream.batches(seed, first_batch, 1, 64), n_batches)
    return np.array([x[:, 0].numpy() for x, _ in batches]).astype(int)


# --- the order ----------------------------------------------------------------------------------

def test_every_normal_training_beat_once_a_pass_whole_and_with_its_record(numbered):
    stream = stream_of(numbered)
    seen = []
    for x, record in itertools.islice(stream.batches(0, 0, 1, 64), 2 * stream.n // 64):
        assert x.shape == (64, 720) and x.dtype == torch.float32 and not x[:, 1:-1].any()
        np.testing.assert_array_equal(x[:, 0] // 300, x[:, -1])
        assert [stream.names[r] for r in record] == [f"r{int(r):02d}" for r in x[:, -1]]
        seen.extend(x[:, 0].int().tolist())
    first, second = np.split(seen, [len(NORMAL)])
    assert sorted(first) == sorted(second) == NORMAL
    assert not np.array_equal(first, second)


def test_order_is_set_by_the_seed_and_goes_on_in_the_middle(numbered):
    stream = stream_of(numbered)
    whole = numbers(stream, 0, 500)  # over two passes
    assert not np.array_equal(whole[:50], numbers(stream, 0, 50, seed=1))
    for done in (1, 63, 217, 218, 300):
        np.testing.assert_array_equal(numbers(stream, done, 100), whole[done:done + 100])
    x, _ = next(stream.batches(0, 7, 10, 640))
    np.testing.assert_array_equal(x[:, 0], whole[70])


def test_memory_is_two_blocks_however_large_the_archive(numbered, monkeypatch):
    """The thread is one block ahead and no more, and stops with the stream."""
    sizes, read = [], shards.Stream.read

    def count(self, *plan):
        block = read(self, *plan)
        sizes.append(len(block["x"]))
        return block

    monkeypatch.setattr(shards.Stream, "read", count)
    batches = stream_of(numbered).batches(0, 0, 1, 64)
    next(batches)
    batches.close()  # waits for what the thread was asked to read
    assert len(sizes) == 2 and max(sizes) <= 4000 * 1.1


# --- what is wrong with an archive ----------------------------------------------------------------

@pytest.fixture
def archive(tmp_path):
    """Few of the numbered records, to be spoilt."""
    return write_numbered(tmp_path / "shards", (0, 1, 2, 58))


@pytest.mark.parametrize("change, least, words", [
    ({"format": "other"}, 1, "not an index of shards"),
    ({"settings": {}}, 1, "FS_HZ: None then, 360 now"),
    ({}, 721, "720 normal beats in the train part, expected at least 721"),
    ({"shards": []}, 0, "0 normal beats in the validation part")])
def test_an_archive_of_no_use_is_refused(archive, change, least, words):
    path = archive / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"index.json: .*{words}.*: python -m scaling.build_shards"):
        opened(archive, least)


def cut(path):
    path.write_bytes(path.read_bytes()[:200_000])


def rewrite(path, save=np.savez, **changes):
    with np.load(path) as stored:
        columns = dict(stored)
    save(path, **columns | changes)


@pytest.mark.parametrize("spoil, words", [
    (lambda path: path.unlink(), "missing"), (cut, "damaged"),
    (lambda path: rewrite(path, np.savez_compressed), "damaged .x is compressed"),
    (lambda path: rewrite(path, x=np.zeros((130, 720))), "damaged .x is float64"),
    (lambda path: rewrite(path, meta=np.array('{"format": "ecg-shard-1", "settings": {}}')),
     "damaged .*settings"),
    (lambda path: rewrite(path, y=np.zeros(130)), "damaged .130 normal beats of 130, .* says 104")])
def test_a_spoilt_shard_ends_training_with_its_name(archive, spoil, words):
    spoil(archive / "r01-001.npz")
    with pytest.raises(UserError, match=f"r01-001.npz: {words}.*again with: python -m scaling"):
        numbers(stream_of(archive), 0, 11)


# --- what is held in memory -----------------------------------------------------------------------

def test_a_sample_is_of_first_beats_of_records_and_keeps_its_records(numbered, monkeypatch):
    monkeypatch.setattr(shards, "LONGEST", 200)
    segments = shards.sample(opened(numbered), {"train": 12000, "validation": 250})
    record = segments.rows["record"]
    names, first, counts = np.unique(record, return_index=True, return_counts=True)
    assert min(counts) == 200 and sum(counts) == len(segments.x) <= 12250
    for start, n in zip(first, counts):
        np.testing.assert_array_equal(segments.x[start:start + n, 0] % 300, np.arange(n))
    train, validation = (segments.part("patient", part) for part in ("train", "validation"))
    assert not segments.rows["y"][train].any() and segments.rows["y"][validation].any()
    assert set(record[validation]) <= {"r58", "r59"}
    fewer = shards.sample(opened(numbered), {"train": 2000})
    assert set(fewer.rows["record"]) < set(names) and len(fewer.x) <= 2000


# --- training -------------------------------------------------------------------------------------

@pytest.fixture
def simulated_archive(small, segments, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "MAX_EPOCHS", 2)
    return archive_of({"x": segments.x, **segments.rows}, tmp_path / "archive")


def train(folder, *flags):
    train_on_shards.main([str(folder), *ON_SIMULATED, *flags])
    path = settings.database("simulated").checkpoint_path("archive", config.SEED)
    return models.load_checkpoint(path, "")


def test_training_is_that_of_train_mitbih_on_normal_beats(simulated_archive, segments, tmp_path):
    model, _ = train(simulated_archive)
    archive = opened(simulated_archive)
    stream = shards.Stream(archive, config.BATCH_SIZE, config.ARCHIVE_BUFFER)

    def normal(*records):
        rows = np.isin(segments.rows["record"], records) & (segments.rows["y"] == 0)
        return segments.x[rows]

    expected, _ = train_mitbih.train(
        stream, torch.from_numpy(normal("s07", "s08")), config.SEED, torch.device("cpu"),
        {name: tmp_path / name for name in ("resume", "history")},
        models.stamp_of(archive, "archive", config.SEED))
    assert models.weights_digest(model) == models.weights_digest(expected)
    x, _ = next(stream.batches(0, 0, 1, 64))
    known = {row.tobytes() for row in normal("s01", "s02", "s10")}
    assert known > {row.numpy().tobytes() for row in x} and stream.n == len(known)


def test_the_checkpoint_scores_recordings_and_stays(simulated_archive, small, tmp_path, capsys,
                                                    monkeypatch):
    model, stored = train(simulated_archive)
    assert stored["protocol"] == "archive" and stored["simulated"]
    assert stored["segment_settings"]["LEADS"] == ["MLII"]
    assert set(stored["fitted"]["reference_records"]) == {"s01", "s02", "s10"}
    path = small.checkpoint_path("archive", config.SEED)
    detect.main([str(small.records_dir() / "s11.hea"), "--checkpoint", str(path),
                 "--out", str(tmp_path)])
    assert json.loads((tmp_path / "s11.ecgad.json").read_text())["scored"] > 50

    train(simulated_archive)
    assert "up to date" in capsys.readouterr().out
    monkeypatch.setattr(config, "ARCHIVE_REFERENCES", 50000)
    again, _ = train(simulated_archive)
    assert "fitting the scores anew" in capsys.readouterr().out
    assert models.weights_digest(model) == models.weights_digest(again)
    monkeypatch.setattr(config, "ARCHIVE_BUFFER", 2000)
    stamp = models.stamp_of(opened(simulated_archive), "archive", config.SEED)
    assert models.stale(stored, stamp) == ["ARCHIVE_BUFFER: 65536 then, 2000 now"]


def test_a_stopped_run_goes_on_with_the_same_rows(simulated_archive, monkeypatch):
    whole, _ = train(simulated_archive)
    write_history = train_mitbih.write_history

    def stop(path, history):
        write_history(path, history)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_mitbih, "write_history", stop)
        train(simulated_archive, "--force")
    again, stored = train(simulated_archive, "--resume")
    assert len(stored["history"]) == 2
    assert models.weights_digest(again) == models.weights_digest(whole)
