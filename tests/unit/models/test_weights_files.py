"""Weights files: what comes back, and what is refused."""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medveil.errors import WeightsError
from medveil.models.cnn import CnnConfig
from medveil.models.registry import build
from medveil.models.weights import load_weights, save_weights

_SECRET = "JANE-DOE-1961"


def _make(seed=0, **fields):
    return build(CnnConfig(**fields), input_shape=(1, 28, 28), num_classes=2, seed=seed)


def _equal(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.fixture
def saved(tmp_path):
    """A good file, in a path that must never show up in a message."""
    path = tmp_path / f"{_SECRET}.safetensors"
    save_weights(_make(seed=1), path, {"architecture": "ab12"})
    return path


def _refused(path, match, model=None):
    """Loading fails with that message, without the file's name, and leaves the model as it was."""
    model = model or _make(seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=match) as caught:
        load_weights(model, path)
    assert _SECRET not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_and_metadata_come_back(saved):
    model = _make(seed=2)
    assert not _equal(model, _make(seed=1))
    assert load_weights(model, saved) == {"architecture": "ab12"}
    assert _equal(model, _make(seed=1))


def test_buffers_come_back_too(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model(torch.randn(4, 1, 5, 5))
    save_weights(model, tmp_path / "w")
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert load_weights(other, tmp_path / "w") == {}
    assert _equal(model, other)


def test_files_are_read_by_the_library_as_they_are(saved):
    found = load_file(saved)
    expected = _make(seed=1).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_files_of_other_origin_have_no_metadata(tmp_path):
    save_file(_make(seed=1).state_dict(), tmp_path / "w", metadata={"format": "pt"})
    model = _make(seed=2)
    assert load_weights(model, tmp_path / "w") == {}
    assert _equal(model, _make(seed=1))


def test_equal_weights_give_equal_bytes(tmp_path):
    metadata = {name: name for name in "abcdefgh"}
    save_weights(_make(), tmp_path / "one", metadata)
    save_weights(_make(), tmp_path / "two", dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    _refused(saved, "damaged")


def test_bytes_after_the_end_are_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    _refused(saved, "damaged")


@pytest.mark.parametrize("content", [b"not weights at all", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(64)])
def test_other_formats_are_refused(saved, content):
    saved.write_bytes(content)
    _refused(saved, "damaged")


class _RunsCode:
    """What a hostile pickle holds."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_refused_and_never_run(saved, tmp_path, protocol):
    trap = tmp_path / "trap"
    hostile = pickle.dumps(_RunsCode(trap), protocol=protocol)
    pickle.loads(hostile)
    assert trap.exists(), "the trap must work"
    trap.unlink()
    saved.write_bytes(hostile)
    _refused(saved, "pickle")
    assert not trap.exists()


def test_files_of_torch_save_are_refused(saved):
    torch.save(_make().state_dict(), saved)
    _refused(saved, "pickle")


def test_a_header_that_points_outside_the_file_is_refused(saved):
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**12]}}).encode()
    saved.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    _refused(saved, "damaged")


def test_files_larger_than_the_network_are_refused_unread(saved):
    os.truncate(saved, 10**9)
    _refused(saved, "larger than the network")


def _rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _first(tensors):
    return min(tensors)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tensors: tensors.pop(_first(tensors)), "lacks tensors"),
        (lambda tensors: tensors.update(extra=torch.zeros(3)), "that the network lacks"),
        (lambda tensors: tensors.update({_first(tensors): torch.zeros(7)}), "another shape"),
        (lambda tensors: tensors.update({_first(tensors): tensors[_first(tensors)].half()}), "another shape or dtype"),
        (lambda tensors: tensors[_first(tensors)].view(-1)[:1].fill_(float("nan")), "NaN or infinite"),
        (lambda tensors: tensors[_first(tensors)].view(-1)[-1:].fill_(float("inf")), "NaN or infinite"),
    ],
    ids=["missing", "unexpected", "shape", "dtype", "nan", "inf"],
)  # fmt: skip
def test_files_of_another_network_are_refused(saved, change, match):
    _rewrite(saved, change)
    _refused(saved, match)


def test_another_architecture_is_refused(saved):
    _refused(saved, "another shape", _make(channels=(16, 32, 64, 65)))
    _refused(saved, "lacks|that the network lacks", _make(norm="group"))


@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', "{", "[" * 100_000])
def test_damaged_metadata_are_refused(saved, text):
    save_file(_make(seed=1).state_dict(), saved, metadata={"medveil": text})
    _refused(saved, "damaged")


def test_missing_files_and_folders_are_refused(tmp_path):
    _refused(tmp_path / _SECRET, "cannot be read")
    (tmp_path / _SECRET).mkdir()
    _refused(tmp_path / _SECRET, "cannot be read")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = _make()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError, match="NaN or infinite"):
        save_weights(model, tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WeightsError, match="cannot be written") as caught:
        save_weights(_make(seed=5), saved)
    assert _SECRET not in str(caught.value)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_does_not_exist_is_a_typed_error(tmp_path):
    with pytest.raises(WeightsError, match="cannot be written"):
        save_weights(_make(), tmp_path / "nowhere" / "w")
