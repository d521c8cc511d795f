"""Checkpoints of strangers: nothing is unpickled, nothing is allocated because they say so."""

import io
import resource
import zipfile

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from test_fuzz import spoilt

import models
from pipeline.errors import UserError


def stored_of(**changed):
    model = models.ConvAutoencoder(160, 4)
    return {"format": models.FORMAT, "network": "ConvAutoencoder",
            "network_code": models.network_code(models.ConvAutoencoder),
            "model_args": model.model_args, "state_dict": model.state_dict()} | changed


def bytes_of(stored):
    file = io.BytesIO()
    torch.save(stored, file)
    return file.getvalue()


def refused(path, word):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=word) as caught:
        models.load_checkpoint(path, "make it", ())
    assert str(path) in str(caught.value) and len(str(caught.value)) < 2000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000   # kB


@pytest.mark.parametrize("sizes", [
    {"latent_dim": 2 * 10**5}, {"latent_dim": 10**12}, {"window_size": 16 * 10**11},
    {"latent_dim": -1}, {"window_size": float("nan")}, {"window_size": "160"},
    {"taper_samples": 1e300}, {"lowpass": "x"}, {"more": 1}])
def test_sizes_are_those_of_the_weights(tmp_path, sizes):
    path = tmp_path / "a.pt"
    torch.save(stored_of(model_args=stored_of()["model_args"] | sizes), path)
    refused(path, "a.pt")


def test_a_tensor_that_is_larger_than_its_bytes(tmp_path):
    """One number, repeated: of any shape that is asked for."""
    weights = stored_of()["state_dict"]
    args = {"window_size": 160, "latent_dim": 10**6}
    with torch.device("meta"):
        shapes = models.ConvAutoencoder(**args).state_dict()
    wide = {key: torch.zeros(1).expand(value.shape) if value.dim() else weights[key]
            for key, value in shapes.items()}
    torch.save(stored_of(model_args=args | {"taper_samples": None}, state_dict=wide),
               tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "weights do not fit")


def test_a_file_that_unpacks_to_more_than_it_is(tmp_path):
    path = tmp_path / "a.pt"
    with (zipfile.ZipFile(io.BytesIO(bytes_of(stored_of() | {"x": torch.zeros(10**7)}))) as whole,
          zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    refused(path, "not a readable checkpoint")


@pytest.mark.parametrize("field, value", [("state_dict", [1]), ("state_dict", {"a": 1}),
                                          ("model_args", None), ("network", ["x"])])
def test_fields_of_another_kind(tmp_path, field, value):
    torch.save(stored_of(**{field: value}), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "a.pt")


WHOLE = bytes_of(stored_of())


@settings(max_examples=2 * settings().max_examples)
@given(st.one_of(spoilt([WHOLE]), st.binary(max_size=300)))
def test_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "a.pt"
    path.write_bytes(data)
    try:
        models.load_checkpoint(path, "make it", ())
    except UserError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
