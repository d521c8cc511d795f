"""Training on an archive of shards: order, damage, samples, and against training from memory."""

import itertools
import json
import time

import numpy as np
import pytest
import torch

import config
import detect
import models
import train_mitbih
from conftest import ARCHIVE_PARTS, ON_SIMULATED, archive_of, write_archive
from pipeline import settings
from pipeline.errors import UserError
from scaling import shards, train_on_shards
from scoring import detector


def opened(folder, least=1):
    return shards.load_archive(folder, least, "shards", False)


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """60 records of 300 beats, two of them for validation, every fifth beat abnormal.

    x begins with the beat's number and ends with that of its record.
    """
    tables = {}
    for r in range(60):
        x = np.zeros((300, config.WINDOW_SIZE), np.float32)
        x[:, 0] = np.arange(300 * r, 300 * (r + 1))
        x[:, -1] = r
        columns = dict.fromkeys(shards.COLUMNS, np.ones(300, np.float32))
        columns |= {"x": x, "y": (np.arange(300) % 5 == 3).astype(np.int8),
                    "record": np.full(300, f"r{r:02d}")}
        tables[f"r{r:02d}"] = columns, "train" if r < 58 else "validation"
    return write_archive(tmp_path_factory.mktemp("numbered") / "shards", tables, 130)


def stream_of(folder, rank=0, count=1):
    return shards.Stream(opened(folder), 64, 4000, rank, count)


def numbers(stream, first_batch, n_batches, seed=0):
    """(b, batch) numbers of the beats of so many batches from one of the stream on."""
    batches = itertools.islice(stream.batches(seed, first_batch, 1, 64), n_batches)
    return np.array([x[:, 0].numpy() for x, _ in batches]).astype(int)


def normal_numbers(n_records):
    return np.array([k for k in range(300 * n_records) if k % 300 % 5 != 3])


# --- the order ----------------------------------------------------------------------------------

def test_every_normal_training_beat_once_a_pass_whole_and_with_its_record(numbered):
    stream, expected = stream_of(numbered), normal_numbers(58)
    assert stream.n == len(expected) == 58 * 240
    seen = []
    for x, record in itertools.islice(stream.batches(0, 0, 1, 64), 2 * stream.n // 64):
        assert x.shape == (64, 720) and x.dtype == torch.float32 and not x[:, 1:-1].any()
        assert [stream.names[r] for r in record] == [f"r{int(r):02d}" for r in x[:, -1]]
        np.testing.assert_array_equal(x[:, 0] // 300, x[:, -1])
        seen.extend(x[:, 0].int().tolist())
    first, second = np.array(seen[:stream.n]), np.array(seen[stream.n:2 * stream.n])
    np.testing.assert_array_equal(np.sort(first), expected)
    assert len(np.unique(second)) == len(second) and np.isin(second, expected).all()
    assert not np.array_equal(first[:len(second)], second)


def test_order_is_set_by_the_seed_and_goes_on_in_the_middle(numbered):
    whole = numbers(stream_of(numbered), 0, 500)  # over two passes
    assert not np.array_equal(whole[:50], numbers(stream_of(numbered), 0, 50, seed=1))
    for done in (0, 1, 63, 217, 218, 300):
        part = numbers(stream_of(numbered), done, 100)
        np.testing.assert_array_equal(part, whole[done:done + 100])
    x, _ = next(stream_of(numbered).batches(0, 7, 10, 640))
    np.testing.assert_array_equal(x[:, 0], whole[70])


@pytest.mark.parametrize("count", (2, 4))
def test_processes_share_each_batch_of_the_same_stream(numbered, count):
    whole = numbers(stream_of(numbered), 10, 400)
    parts = [numbers(stream_of(numbered, rank, count), 10, 400) for rank in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_batches_are_nearly_as_mixed_as_a_permutation_of_all(numbered, monkeypatch):
    """Four chunks a block for each beat of a batch, as shipped; three blocks an archive."""
    assert config.ARCHIVE_BUFFER >= 4 * shards.CHUNK * config.BATCH_SIZE
    monkeypatch.setattr(shards, "CHUNK", 16)
    stream = stream_of(numbered)
    ours = numbers(stream, 0, stream.n // 64)
    full = np.random.default_rng(0).permutation(normal_numbers(58))[:ours.size].reshape(ours.shape)
    records = lambda batches: np.mean([len(np.unique(b // 300)) for b in batches])
    largest = lambda batches: np.mean([np.bincount(b // 300).max() for b in batches])
    assert records(full) > 38 and records(ours) > 0.9 * records(full)
    assert largest(ours) < 1.35 * largest(full)


def test_memory_is_two_blocks_however_large_the_archive(numbered, monkeypatch):
    """The thread is one block ahead and no more, and stops with the stream."""
    sizes, read = [], shards.Stream.read

    def counted(self, *plan):
        block = read(self, *plan)
        sizes.append(len(block[0]))
        return block

    monkeypatch.setattr(shards.Stream, "read", counted)
    batches = stream_of(numbered).batches(0, 0, 1, 64)
    next(batches)
    while len(sizes) < 2:
        time.sleep(0.01)
    time.sleep(0.2)
    batches.close()
    time.sleep(0.2)
    assert len(sizes) == 2 and max(sizes) <= 4000 * 1.1


# --- what is wrong with an archive ----------------------------------------------------------------

@pytest.fixture
def archive(numbered, tmp_path):
    """A private copy of four of the numbered records, to be spoilt."""
    folder = tmp_path / "shards"
    folder.mkdir()
    index = json.loads((numbered / "index.json").read_text())
    index["shards"] = [e for e in index["shards"] if e["record"] in ("r00", "r01", "r02", "r58")]
    for entry in index["shards"]:
        (folder / entry["file"]).write_bytes((numbered / entry["file"]).read_bytes())
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("change, least, words", [
    ({"format": "other"}, 1, "not an index of shards"),
    ({"shards": [{"file": "x"}]}, 1, "not an index of shards"),
    ({"settings": {}}, 1, "FS_HZ: None then, 360 now"),
    ({}, 721, "720 normal beats in the train part, expected at least 721"),
    ({"shards": []}, 0, "0 normal beats in the validation part")])
def test_an_archive_of_no_use_is_refused(archive, change, least, words):
    path = archive / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"index.json: .*{words}.*: python -m scaling.build_shards"):
        opened(archive, least)


def test_an_archive_without_index_is_refused(tmp_path):
    with pytest.raises(UserError, match="index.json: missing.*scaling.build_shards RECORD ... --o"):
        opened(tmp_path)


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
    shards.layout.cache_clear()
    with pytest.raises(UserError, match=f"r01-001.npz: {words}.*again with: python -m scaling"):
        numbers(stream_of(archive), 0, 11)


def test_a_shard_cut_off_while_training_ends_it(archive):
    numbers(stream_of(archive), 0, 11)
    cut(archive / "r01-001.npz")  # its layout is known by now
    with pytest.raises(UserError, match="r01-001.npz: damaged .ends in the middle of row"):
        numbers(stream_of(archive), 0, 11)


# --- what is held in memory -----------------------------------------------------------------------

def test_a_sample_is_of_first_beats_of_records_and_keeps_its_records(numbered, monkeypatch):
    monkeypatch.setattr(shards, "LONGEST", 200)
    segments = shards.sample(opened(numbered), {"train": 12000, "validation": 250})
    record = segments.rows["record"]
    names, first, counts = np.unique(record, return_index=True, return_counts=True)
    train, validation = (segments.part("patient", part) for part in ("train", "validation"))
    assert set(counts) <= {200, 206, 250} and len(segments.x) == sum(counts) <= 12250
    for start, n in zip(first, counts):
        np.testing.assert_array_equal(segments.x[start:start + n, 0] % 300, np.arange(n))
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


class FromMemory(shards.Stream):
    """The rows of a Stream, in its order, taken from segments in memory."""

    def __init__(self, archive, segments):
        super().__init__(archive, config.BATCH_SIZE, config.ARCHIVE_BUFFER)
        self.segments = segments

    def batches(self, *where):
        row_of = {row.tobytes(): k for k, row in enumerate(self.segments.x)}
        for x, _ in super().batches(*where):
            rows = [row_of[row.numpy().tobytes()] for row in x]
            names = self.segments.rows["record"][rows]
            assert not self.segments.rows["y"][rows].any()
            assert {ARCHIVE_PARTS[name] for name in names} == {"train"}
            record = [("s01", "s02", "s10").index(name) for name in names]
            yield torch.from_numpy(self.segments.x[rows]), torch.tensor(record)


def test_training_is_training_from_memory_in_that_order(simulated_archive, segments, tmp_path):
    model, _ = train(simulated_archive)
    archive = opened(simulated_archive)
    validation = np.isin(segments.rows["record"], ("s07", "s08")) & (segments.rows["y"] == 0)
    expected, _ = train_mitbih.train(
        FromMemory(archive, segments), torch.from_numpy(segments.x[validation]), config.SEED,
        torch.device("cpu"), {name: tmp_path / name for name in ("resume", "history")},
        models.stamp_of(archive, "archive", config.SEED))
    assert models.weights_digest(model) == models.weights_digest(expected)


def test_the_checkpoint_scores_recordings_and_stays(simulated_archive, small, tmp_path, capsys,
                                                    monkeypatch):
    model, stored = train(simulated_archive)
    assert stored["protocol"] == "archive" and stored["simulated"]
    assert stored["segment_settings"]["LEADS"] == ["MLII"]
    assert set(stored["fitted"]["reference_records"]) == {"s01", "s02", "s10"}
    first, last = stored["history"]
    assert last["validation_loss"] < first["validation_loss"]
    assert "next: python detect.py RECORDING --checkpoint" in capsys.readouterr().out
    path = small.checkpoint_path("archive", config.SEED)
    detect.main([str(small.records_dir() / "s11.hea"), "--checkpoint", str(path),
                 "--out", str(tmp_path / "out")])
    summary = json.loads((tmp_path / "out" / "s11.ecgad.json").read_text())
    assert summary["scored"] > 50
    capsys.readouterr()

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

    def stop_after_the_first_epoch(path, history):
        write_history(path, history)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_mitbih, "write_history", stop_after_the_first_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(simulated_archive, "--force")
    again, stored = train(simulated_archive, "--resume")
    assert len(stored["history"]) == 2
    assert models.weights_digest(again) == models.weights_digest(whole)


def test_an_archive_without_labels_knows_no_sensitivity(small, segments, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "MAX_EPOCHS", 1)
    unlabelled = {"x": segments.x, **segments.rows} | {"y": np.zeros_like(segments.rows["y"])}
    _, stored = train(archive_of(unlabelled, tmp_path / "archive"))
    assert np.isfinite(detector.robust_z_at(stored["robust_z"], "specificity", 0.98))
    with pytest.raises(UserError, match="no beat to know the sensitivity from"):
        detector.robust_z_at(stored["robust_z"], "sensitivity", 0.9)
