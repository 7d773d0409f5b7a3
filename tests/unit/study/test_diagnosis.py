"""A run becomes a served model; an image file becomes its input or is refused; logits become an answer."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from medveil.errors import ImageError, ProtocolError, UnsupportedLayer
from medveil.study.diagnosis import answer, decode, encode, leakage, read_description, read_image, serve_run
from medveil.study.diagnosis_parties import check_told
from medveil.study.plan import load_plan
from medveil.study.train import train

PLAN = """
name = "served"
task = "{task}"
seed = 1
[data]
partition = {{ kind = "iid", sites = 2 }}
splits = {{ kind = "random", test = 0.3, validation = 0.2 }}
[data.source]
kind = "phantom"
task = "{task}"
subjects = 40
size = [16, 16]
[model]
{model}
[federation]
rounds = 1
algorithm = {{ kind = "fedavg", local_steps = 2 }}
[training]
batch_size = 8
optimiser = {{ kind = "sgd", lr = 0.1 }}
[evaluation]
bootstrap = {{ resamples = 5 }}
[references]
central = false
local_only = false
[performance]
workers = 1
"""
MODELS = {
    "cnn": ("classification", 'kind = "cnn"\nchannels = [4, 8]\nstrides = [2, 2]'),
    "scattering": ("classification", 'kind = "scattering"\norder = 1\npositions = [3, 3]'),
    "unet": ("segmentation", 'kind = "unet"\nwidth = 4'),
    "filterbank": ("segmentation", 'kind = "filterbank"'),
    "group": ("classification", 'kind = "cnn"\nchannels = [4, 8]\nstrides = [2, 2]\nnorm = "group"'),
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            task, model = MODELS[name]
            (folder / "plan.toml").write_text(PLAN.format(task=task, model=model), encoding="utf-8")
            train(load_plan(folder / "plan.toml"), folder / "run")
            made[name] = folder / "run"
        return made[name]

    return make


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 255, (16, 16), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["cnn", "scattering", "unet", "filterbank"])
def test_what_the_hospital_computes_in_the_clear_and_what_is_evaluated_make_the_network(run_of, scan, name):
    """With the linear program in place of the parties, for those that have nothing else; else shapes and ranges."""
    served = serve_run(run_of(name))
    description = read_description(json.loads(served.description.model_dump_json()))
    assert description == served.description
    front, back = description.parts()
    assert (front is None, back is None) == (served.compiled.front is None, served.compiled.back is None)
    images = read_image(scan, description)
    values = encode(images, served.compiled.program, front)
    assert values.shape == (1, *served.compiled.program.input.shape)
    assert np.abs(values).max() <= served.compiled.program.input.bound * 2.0**served.compiled.program.input.scale
    if front is not None:
        assert torch.equal(front(images), served.compiled.front(images))
    zeros = np.zeros((1, *served.compiled.program.output.shape))
    assert decode(zeros, back).shape == served.module(images).shape


def test_a_network_that_cannot_be_evaluated_is_refused_by_name(run_of):
    with pytest.raises(UnsupportedLayer, match='norm = "ws"'):
        serve_run(run_of("group"))


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((17, 16), np.uint8), np.zeros((16, 16, 3), np.uint8)],
    ids=["another size", "colour"],
)
def test_an_image_of_another_kind_is_refused(run_of, tmp_path, pixels):
    path = tmp_path / "other.png"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ImageError):
        read_image(path, serve_run(run_of("cnn")).description)


@pytest.mark.parametrize("name", ["scan.png", "scan.dcm", "scan.nii.gz"])
def test_a_file_that_is_no_image_is_refused(run_of, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"no image at all")
    with pytest.raises(ImageError):
        read_image(path, serve_run(run_of("cnn")).description)


def test_a_description_that_is_not_the_programs_is_refused(run_of):
    served = serve_run(run_of("cnn"))
    program = served.compiled.program
    check_told(served.description, program)
    for wrong in ({"reveal_bits": 3}, {"class_names": ("a", "b", "c")}, {"task": "segmentation"}):
        with pytest.raises(ProtocolError, match="different things"):
            check_told(served.description.model_copy(update=wrong), program)


def test_a_description_of_another_form_is_refused(run_of):
    content = json.loads(serve_run(run_of("cnn")).description.model_dump_json())
    for wrong in (
        {},
        [],
        content | {"task": "generation"},
        content | {"secret": 1},
        content | {"model": {"kind": "x"}},
    ):
        with pytest.raises(ProtocolError):
            read_description(wrong)


def test_answers(run_of):
    described = serve_run(run_of("cnn")).description
    names = described.class_names
    sure = torch.tensor([[-3.0, 3.0]], dtype=torch.float64)
    said = answer(sure, described.model_copy(update={"threshold": 0.99}))
    assert said["probabilities"][names[1]] == pytest.approx(1 / (1 + np.exp(-6.0)))
    assert said["label"] == names[1]
    assert answer(sure, described.model_copy(update={"threshold": 0.999}))["label"] == names[0]
    mask = torch.zeros(1, 3, 2, 2)
    mask[0, 2, 0, 1] = 1.0
    segmenting = described.model_copy(update={"task": "segmentation", "class_names": ("none", "a", "b")})
    said = answer(mask, segmenting)
    assert said == {"mask": [[0, 2], [0, 0]], "pixels": {"none": 3, "a": 0, "b": 1}}
    told = leakage(described, (2,))
    assert any("dealer and vendor" in line for line in told["breaks_if"])
