import itertools
import json
import time

import numpy as np
import pytest
import torch

from scoring import ec57
import config
from pipeline import settings
import detect
import models
from scaling import shards
import train_mitbih
from pipeline.errors import UserError

PARTS = {"s01": "train", "s02": "train", "s10": "train", "s07": "validation", "s08": "validation", "s11": "test"}


def write_shard(path, columns):
    """As dataset.py --shards writes them: uncompressed, meta as JSON text."""
    meta = {"format": "ecg-shard-1", "settings": settings.snapshot(settings.SEGMENT_SETTINGS), "origin": "0" * 64}
    np.savez(path, meta=np.array(json.dumps(meta)), **columns)


def write_archive(folder, tables, rows_a_shard):
    """Shards and index of {record: (columns, part)}."""
    folder.mkdir(parents=True)
    entries = []
    for name, (columns, part) in tables.items():
        for k, first in enumerate(range(0, len(columns["y"]), rows_a_shard)):
            piece = {c: v[first:first + rows_a_shard] for c, v in columns.items()}
            write_shard(folder / f"{name}-{k:03d}.npz", piece)
            entries.append({"file": f"{name}-{k:03d}.npz", "record": name, "beats": len(piece["y"]),
                            "normal": int((piece["y"] == 0).sum()), "part": part})
    (folder / "index.json").write_text(json.dumps({
        "format": "ecg-shards-1", "settings": settings.snapshot(settings.SEGMENT_SETTINGS), "shards": entries,
        "failed": []}))
    return folder


def opened(folder, least=1):
    return shards.load_archive(folder, least, "shards", False)


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """60 training records of 300 beats, every fifth abnormal; x of a beat holds its number in the archive."""
    tables, number = {}, 0
    for r in range(60):
        x = np.zeros((300, config.WINDOW_SIZE), np.float32)
        x[:, 0], x[:, -1] = np.arange(number, number + 300), r
        columns = {"x": x, "y": (np.arange(300) % 5 == 3).astype(np.int8), "symbol": np.full(300, "N"),
                   "aami": np.full(300, "N"), "record": np.full(300, f"r{r:02d}"), "sample": np.arange(300) * 300,
                   "offset_mv": np.zeros(300, np.float32), "scale_mv": np.ones(300, np.float32),
                   "rr_before_s": np.ones(300, np.float32), "rr_after_s": np.ones(300, np.float32)}
        tables[f"r{r:02d}"] = columns, "train" if r < 58 else "validation"
        number += 300
    return write_archive(tmp_path_factory.mktemp("numbered") / "shards", tables, 130)


def stream_of(folder, seed=0, size=4000, batch=64, rank=0, count=1):
    return shards.Stream(opened(folder), seed, batch, size, rank, count)


def numbers(stream, position, n_batches):
    """(b, batch) numbers of the beats of so many batches from a place of the stream on."""
    return np.array([x[:, 0] for x, _ in itertools.islice(stream.batches(position), n_batches)]).astype(int)


def normal_numbers(n_records):
    return np.array([k for k in range(300 * n_records) if k % 300 % 5 != 3])


# --- the order ----------------------------------------------------------------------------------

def test_every_normal_training_beat_once_a_pass_whole_and_with_its_record(numbered):
    stream, expected = stream_of(numbered), normal_numbers(58)
    assert stream.rows == len(expected) == 58 * 240
    n_batches = 2 * stream.rows // 64
    seen, records = [], []
    for x, record in itertools.islice(stream.batches(0), n_batches):
        assert x.shape == (64, 720) and x.dtype == np.float32 and not x[:, 1:-1].any()
        np.testing.assert_array_equal(np.array(stream.names)[record], [f"r{int(r):02d}" for r in x[:, -1]])
        np.testing.assert_array_equal(x[:, 0] // 300, x[:, -1])
        seen.extend(x[:, 0].astype(int))
    first, second = np.array(seen[:stream.rows]), np.array(seen[stream.rows:2 * stream.rows])
    np.testing.assert_array_equal(np.sort(first), expected)
    assert len(np.unique(second)) == len(second) and np.isin(second, expected).all()
    assert not np.array_equal(first[:len(second)], second)


def test_order_is_set_by_the_seed_and_goes_on_in_the_middle(numbered):
    whole = numbers(stream_of(numbered), 0, 500)  # over two passes
    np.testing.assert_array_equal(whole, numbers(stream_of(numbered), 0, 500))
    assert not np.array_equal(whole[:50], numbers(stream_of(numbered, seed=1), 0, 50))
    for batches_done in (1, 63, 217, 218, 300):
        np.testing.assert_array_equal(numbers(stream_of(numbered), batches_done * 64, 100),
                                      whole[batches_done:batches_done + 100])


@pytest.mark.parametrize("count", (2, 4))
def test_processes_share_each_batch_of_the_same_stream(numbered, count):
    whole = numbers(stream_of(numbered), 64 * 10, 400)
    parts = [numbers(stream_of(numbered, rank=rank, count=count), 64 * 10, 400) for rank in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_batches_are_nearly_as_mixed_as_a_permutation_of_all_makes_them(numbered, monkeypatch):
    """Four chunks a block for each beat of a batch, as with the shipped settings; three blocks an archive."""
    assert config.ARCHIVE_BUFFER >= 4 * shards.CHUNK * config.BATCH_SIZE
    monkeypatch.setattr(shards, "CHUNK", 16)
    stream = stream_of(numbered)
    ours = numbers(stream, 0, stream.rows // 64)
    full = np.random.default_rng(0).permutation(normal_numbers(58))[:ours.size].reshape(ours.shape)
    blind = normal_numbers(58)[:ours.size].reshape(ours.shape)
    records = lambda batches: np.mean([len(np.unique(b // 300)) for b in batches])
    largest = lambda batches: np.mean([np.bincount(b // 300).max() for b in batches])
    assert records(blind) < 2.5 and records(full) > 38
    assert records(ours) > 0.9 * records(full)
    assert largest(ours) < 1.35 * largest(full)


def test_memory_is_two_blocks_however_large_the_archive(numbered, monkeypatch):
    """The thread is one block ahead and no more, and stops with the stream."""
    sizes, real = [], shards.Stream.read
    monkeypatch.setattr(shards.Stream, "read",
                        lambda self, *a: (lambda block: (sizes.append(len(block[0])), block)[1])(real(self, *a)))
    batches = stream_of(numbered).batches(0)
    next(batches)
    time.sleep(0.3)
    assert len(sizes) == 2 and max(sizes) <= 4000 * 1.1
    batches.close()
    time.sleep(0.1)
    assert len(sizes) == 2


# --- what is wrong with an archive ----------------------------------------------------------------

@pytest.fixture
def archive(numbered, tmp_path):
    """A private copy of six of the numbered records, to be spoilt."""
    folder = tmp_path / "shards"
    folder.mkdir()
    index = json.loads((numbered / "index.json").read_text())
    index["shards"] = [e for e in index["shards"] if e["record"] in ("r00", "r01", "r02", "r58")]
    for entry in index["shards"]:
        (folder / entry["file"]).write_bytes((numbered / entry["file"]).read_bytes())
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def change_index(folder, **values):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_missing_and_foreign_index(archive):
    with pytest.raises(UserError, match="nowhere/index.json: missing.*python dataset.py --records .*--shards"):
        opened(archive / "nowhere")
    change_index(archive, format="other")
    with pytest.raises(UserError, match="index.json: not an index of shards.*--shards"):
        opened(archive)
    (archive / "index.json").write_text("[1, 2")
    with pytest.raises(UserError, match="not an index of shards"):
        opened(archive)


def test_other_settings_and_too_few_beats(archive):
    change_index(archive, settings=settings.snapshot(settings.SEGMENT_SETTINGS) | {"FS_HZ": 250})
    with pytest.raises(UserError, match="FS_HZ: 250 then, 360 now.*dataset.py"):
        opened(archive)
    change_index(archive, settings=settings.snapshot(settings.SEGMENT_SETTINGS))
    with pytest.raises(UserError, match="720 normal beats in the train part, expected at least 721"):
        opened(archive, least=721)
    entries = json.loads((archive / "index.json").read_text())["shards"]
    change_index(archive, shards=[e for e in entries if e["part"] == "train"])
    with pytest.raises(UserError, match="0 normal beats in the validation part"):
        opened(archive)


def spoil_missing(path):
    path.unlink()


def spoil_short(path):
    path.write_bytes(path.read_bytes()[:200_000])


def spoil_compressed(path):
    with np.load(path) as stored:
        columns = dict(stored)
    np.savez_compressed(path, **columns)


def spoil_counts(path):
    with np.load(path) as stored:
        columns = {k: stored[k] for k in stored.files if k != "meta"}
    write_shard(path, columns | {"y": np.zeros_like(columns["y"])})


def spoil_settings(path):
    with np.load(path) as stored:
        columns = dict(stored)
    meta = json.loads(str(columns["meta"])) | {"settings": {}}
    np.savez(path, **columns | {"meta": np.array(json.dumps(meta))})


@pytest.mark.parametrize("spoil, words", [
    (spoil_missing, "r01-001.npz: missing"), (spoil_short, "r01-001.npz: damaged"),
    (spoil_compressed, "r01-001.npz: damaged .x is compressed"), (spoil_settings, "r01-001.npz: damaged .*settings"),
    (spoil_counts, "r01-001.npz: damaged .130 normal beats, index.json says 104")])
def test_a_spoilt_shard_ends_training_with_its_name(archive, spoil, words):
    spoil(archive / "r01-001.npz")
    shards.layout.cache_clear()
    with pytest.raises(UserError, match=words + ".*Delete it and make it again with: python dataset.py"):
        numbers(stream_of(archive), 0, 11)


def test_a_shard_cut_off_while_training_ends_it(archive):
    numbers(stream_of(archive), 0, 11)
    spoil_short(archive / "r01-001.npz")  # its layout is known by now
    with pytest.raises(UserError, match="r01-001.npz: damaged .ends in the middle of row"):
        numbers(stream_of(archive), 0, 11)


# --- what is held in memory -----------------------------------------------------------------------

def test_a_sample_is_of_first_beats_of_records_and_keeps_its_records(numbered, monkeypatch):
    monkeypatch.setattr(shards, "LONGEST", 200)
    segments = shards.sample(opened(numbered), {"train": 12000, "validation": 250})
    names, counts = np.unique(segments.rows["record"], return_counts=True)
    train, validation = (segments.part("patient", part) for part in ("train", "validation"))
    assert set(counts) <= {200, 206, 250} and len(segments.x) == sum(counts) <= 12250
    np.testing.assert_array_equal(segments.x[:, 0] % 300, np.concatenate([np.arange(n) for n in counts[
        [names.tolist().index(r) for r in dict.fromkeys(segments.rows["record"])]]]))
    assert not segments.rows["y"][train].any() and segments.rows["y"][validation].any()
    assert set(segments.rows["record"][validation]) <= {"r58", "r59"}
    fewer = shards.sample(opened(numbered), {"train": 2000})
    assert set(fewer.rows["record"]) < set(names) and len(fewer.x) <= 2000


# --- training -------------------------------------------------------------------------------------

def archive_of(table, folder):
    """The small simulated database as shards in `folder`; table: the columns of its segments, x among them."""
    tables = {}
    for name, part in PARTS.items():
        here = table["record"] == name
        tables[name] = {column: table[column][here] for column in ("x", *shards.COLUMNS)}, part
    return write_archive(folder, tables, 50)


@pytest.fixture
def simulated_archive(small, segments, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "MAX_EPOCHS", 2)
    return archive_of({"x": segments.x, **segments.rows}, tmp_path / "archive")


def train(folder, *flags):
    train_mitbih.main(["--simulated", "--shards", str(folder), *flags])
    return models.load_checkpoint(settings.database("simulated").checkpoint_path("archive", config.SEED))


def test_training_from_shards_is_training_from_memory_in_that_order(simulated_archive, segments, monkeypatch):
    monkeypatch.setattr(config, "MAX_EPOCHS", 1)
    _, stored = train(simulated_archive)
    stream = shards.Stream(opened(simulated_archive), config.SEED, config.BATCH_SIZE, config.ARCHIVE_BUFFER)
    run = train_mitbih.Run(config.SEED, stream.rows, 3, torch.device("cpu"))
    where = {row.tobytes(): (k, segments.rows["record"][k]) for k, row in enumerate(segments.x)}
    loss = 0.0
    run.model.train()
    for x, _ in itertools.islice(stream.batches(0), run.steps):
        rows, names = zip(*(where[row.tobytes()] for row in x))
        assert not segments.rows["y"][list(rows)].any() and {PARTS[name] for name in names} == {"train"}
        record = torch.tensor([("s01", "s02", "s10").index(name) for name in names])
        run.optimizer.zero_grad()
        value = train_mitbih.batch_loss(run.model, run.head, torch.from_numpy(segments.x[list(rows)]), record)
        value.backward()
        run.optimizer.step()
        run.schedule.step()
        loss += value.item() / run.steps
    assert stored["history"][0]["train_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_checkpoint_scores_recordings_and_stays(simulated_archive, small, tmp_path, capsys, monkeypatch):
    model, stored = train(simulated_archive)
    assert stored["protocol"] == "archive" and stored["simulated"] and len(stored["history"]) == config.MAX_EPOCHS
    assert set(stored["fitted"]["reference_records"]) == {"s01", "s02", "s10"}
    assert stored["history"][-1]["validation_loss"] < stored["history"][0]["validation_loss"]
    assert "next: python detect.py RECORDING --checkpoint" in capsys.readouterr().out
    path = small.checkpoint_path("archive", config.SEED)
    detect.main([str(small.records_dir() / "s11.hea"), "--checkpoint", str(path), "--out", str(tmp_path / "out")])
    summary = json.loads((tmp_path / "out" / "s11.ecgad.json").read_text())
    assert summary["scored"] > 50
    train(simulated_archive)
    assert "up to date" in capsys.readouterr().out
    monkeypatch.setattr(config, "ARCHIVE_REFERENCES", 50000)
    again, _ = train(simulated_archive)
    assert "fitting the scores anew" in capsys.readouterr().out
    assert models.weights_digest(model) == models.weights_digest(again)
    monkeypatch.setattr(config, "ARCHIVE_BUFFER", 2000)
    assert train_mitbih.stored_weights(path, train_mitbih.stamp_of(opened(simulated_archive), "archive", 0)) is None


def test_a_stopped_run_goes_on_with_the_same_rows(simulated_archive, small, monkeypatch):
    whole, _ = train(simulated_archive)
    real = train_mitbih.train_epoch

    def stops_in_the_second_epoch(run, *rest):
        if len(run.history) == 1:
            raise KeyboardInterrupt
        return real(run, *rest)

    monkeypatch.setattr(train_mitbih, "train_epoch", stops_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(simulated_archive, "--force")
    monkeypatch.setattr(train_mitbih, "train_epoch", real)
    again, _ = train(simulated_archive, "--resume")
    assert models.weights_digest(again) == models.weights_digest(whole)


def test_an_archive_without_labels_trains_and_knows_no_sensitivity(small, segments, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "MAX_EPOCHS", 1)
    unlabelled = {"x": segments.x, **segments.rows} | {"y": np.zeros_like(segments.rows["y"])}
    _, stored = train(archive_of(unlabelled, tmp_path / "archive"))
    assert np.isfinite(ec57.robust_z_at(stored["levels"], "specificity", 0.98))
    with pytest.raises(UserError, match="no beat to know the sensitivity from"):
        ec57.robust_z_at(stored["levels"], "sensitivity", 0.9)


def test_protocol_does_not_go_with_shards(capsys):
    with pytest.raises(SystemExit):
        train_mitbih.parse_args(["--shards", "x", "--protocol", "beat"])
    assert "--protocol goes with data/segments.npz" in capsys.readouterr().err
