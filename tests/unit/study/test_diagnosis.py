"""A run becomes a served model; an image file becomes its input or is refused; logits become an answer."""

import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from medveil.encrypted.compiler.main import compile as compile_network
from medveil.encrypted.dealer import Dealer, fetch_as_hospital, fetch_as_vendor, write_owner
from medveil.encrypted.stores.manifest import Manifest
from medveil.encrypted.vendor import Vendor
from medveil.encrypted.wire.link import Link
from medveil.errors import ConfigError, ImageError, MedveilError, ProtocolError, UnsupportedLayer
from medveil.study import diagnosis, diagnosis_parties, diagnosis_parts
from medveil.study.diagnosis import decode, encode, read_description, read_image, serve_run
from medveil.study.diagnosis_answer import answer, check_told, leakage, shown
from medveil.study.plan import load_plan
from medveil.study.train import train
from tiny_plans import FINISHED, merged

PLAN = merged(
    FINISHED,
    """
name = "served"
[data.source]
subjects = 40
[federation]
rounds = 1
[training]
optimiser = { kind = "sgd", lr = 0.1 }
""",
)
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
            changes = f'task = "{task}"\n[data.source]\ntask = "{task}"\n[model]\n{model}'
            (folder / "plan.toml").write_text(merged(PLAN, changes), encoding="utf-8")
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
    if back is not None:
        coarse = torch.rand(1, 3, 4, 4)
        assert torch.equal(back(coarse), served.compiled.back(coarse))
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
    for wrong in (
        {"reveal_bits": 3},
        {"class_names": ("a", "b", "c")},
        {"task": "segmentation"},
        {"reveal": "label"},
    ):
        with pytest.raises(ProtocolError, match="different things"):
            check_told(served.description.model_copy(update=wrong), program)


@pytest.mark.parametrize("reveal", ["label", "probabilities"])
def test_a_program_that_reveals_other_bits_than_were_told_is_refused(run_of, reveal):
    """More thresholds than were told would show more of the number that is compared."""
    served = serve_run(run_of("cnn"), reveal=reveal, levels=10)
    description, program = served.description, served.compiled.program
    check_told(description, program)
    wrongs = [{"reveal": "logits"}, {"threshold": 0.987}, {"reveal": "label", "levels": 2, "threshold": None}]
    wrongs += [{"levels": 11}, {"reveal": "label"}] if reveal == "probabilities" else [{"reveal": "probabilities"}]
    for wrong in wrongs:
        with pytest.raises(ProtocolError, match="different things"):
            check_told(description.model_copy(update=wrong), program)
    more = replace(program.decision, thresholds=(*program.decision.thresholds, 77))
    with pytest.raises(ProtocolError, match="different things"):
        check_told(description, replace(program, operations=(*program.operations[:-1], more)))


def test_a_mask_alone_is_checked_too(run_of):
    served = serve_run(run_of("unet"), reveal="label")
    check_told(served.description, served.compiled.program)
    assert read_description(json.loads(served.description.model_dump_json())) == served.description
    with pytest.raises(ConfigError, match="probabilities"):
        serve_run(run_of("unet"), reveal="probabilities")


def test_a_mask_that_the_hospital_interpolates_is_refused_with_a_remedy(run_of):
    with pytest.raises(ConfigError, match=r'interpolation.*reveal = "logits"'):
        serve_run(run_of("filterbank"), reveal="label")


def test_a_description_of_another_form_is_refused(run_of):
    content = json.loads(serve_run(run_of("cnn")).description.model_dump_json())
    for wrong in (
        {},
        [],
        content | {"task": "generation"},
        content | {"secret": 1},
        content | {"model": {"kind": "x"}},
        content | {"threshold": -0.1},
        content | {"threshold": 1.1},
        content | {"name": "served\x1b[2J"},
        content | {"name": ""},
        content | {"class_names": ["no", "y\nes"]},
        content | {"class_names": ["no", "y" * 201]},
        content | {"class_names": ["no"]},
        content | {"class_names": ["no"] * 5000},
        content | {"input_shape": [1, 16]},
        content | {"input_shape": [1, 16, 16, 16, 16]},
        content | {"input_shape": [1, 16, 2**40]},
        content | {"input_shape": [1, 16, 0]},
    ):
        with pytest.raises(ProtocolError):
            read_description(wrong)


def test_a_hospital_builds_no_network_that_a_vendor_describes(run_of, monkeypatch):
    """Fixed features alone, of a size that is looked at before they are made; nothing is compiled."""
    contents = {
        name: json.loads(serve_run(run_of(name)).description.model_dump_json()) for name in ("cnn", "scattering")
    }

    def never(*_arguments, **_options):
        raise AssertionError("built")

    for name in ("build", "compile_network"):
        monkeypatch.setattr(diagnosis, name, never)
    assert read_description(contents["scattering"]).parts()[0] is not None
    assert read_description(contents["cnn"]).parts() == (None, None)
    for name in ("ScatteringFront", "FilterbankFront"):
        monkeypatch.setattr(diagnosis_parts, name, never)
    fixed = contents["scattering"]
    for wrong in (
        contents["cnn"] | {"clear": True},
        contents["cnn"]
        | {"clear": True, "model": {"kind": "monai", "name": "UNet", "arguments": {"channels": [9**9]}}},
        fixed | {"input_shape": [1, 2**14, 2**14]},
        fixed | {"input_shape": [2**14, 64, 64]},
        fixed | {"input_shape": [3, 2048, 2048], "model": {"kind": "scattering", "scales": 6, "angles": 16}},
        fixed | {"input_shape": [1, 2**14, 16], "model": {"kind": "filterbank"}},
        fixed | {"input_shape": [256, 512, 512], "model": {"kind": "filterbank"}},
    ):
        with pytest.raises(ProtocolError):
            read_description(wrong)


def test_a_run_with_names_that_no_hospital_accepts_is_not_served(run_of, monkeypatch):
    read = diagnosis.read_json

    def renamed(path):
        content = read(path)
        return content | {"name": "two\nlines"}

    monkeypatch.setattr(diagnosis, "read_json", renamed)
    with pytest.raises(ConfigError, match="name is not valid"):
        serve_run(run_of("cnn"))


@pytest.mark.parametrize("owner", ["", "south", "northern", None])
def test_a_store_that_was_not_dealt_for_the_named_hospital_is_refused(run_of, tmp_path, owner):
    """One without a name would serve every hospital."""

    def run(hospital):
        diagnosis_parties.run_vendor(
            None, run_of("cnn"), tmp_path / "store", dealer=("", 0), at=("", 0), count=1, times=1, say=None,
            hospital=hospital,
        )  # fmt: skip

    (tmp_path / "store").mkdir()
    if owner is not None:
        write_owner(tmp_path / "store", owner)
    with pytest.raises(ConfigError, match="this hospital alone"):
        run("north")
    if owner == "south":  # beyond this check the store is found to be none
        with pytest.raises(MedveilError) as found:
            run("south")
        assert "this hospital alone" not in str(found.value)


class Visits:
    """A listener whose parties come one after the other."""

    def __init__(self):
        self.stopped = []

    @contextmanager
    def accept(self):
        yield self

    def stop(self, reason):
        self.stopped.append(reason)


def test_whatever_one_party_does_the_next_one_is_served():
    faults = [OverflowError("of patient 7"), KeyError("x"), ProtocolError("Too much"), RecursionError(), MemoryError()]
    visits, said, served = Visits(), [], []

    def act(_link):
        if len(said) < len(faults):
            raise faults[len(said)]
        served.append(True)

    diagnosis_parties._serve(visits, act, 2, said.append)
    told = ["OverflowError", "KeyError", "Too much", "RecursionError", "MemoryError"]
    assert [each["refused"].rstrip(".") for each in said] == told
    assert visits.stopped == ["Too much"]
    assert len(served) == 2


def test_a_session_ends_the_same_way_whatever_becomes_of_the_image(run_of, scan, tmp_path, monkeypatch):
    """An image beyond a limit is an evaluation as any other; one that does not fit is none; neither breaks off."""
    monkeypatch.setenv("MEDVEIL_HOME", str(tmp_path / "home"))
    served, dealer, seen = serve_run(run_of("cnn")), Dealer(tmp_path / "dealer"), []
    program = served.description
    made = compile_network(
        served.module, program.input_shape, program.input_range, names=program.class_names, activation_limit=2.0**-7
    )
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small.png")
    in_background(
        dealer.serve_vendor, lambda link: fetch_as_vendor(link, made.program, tmp_path / "v", images=1, count=1)
    )
    run = Manifest.read(tmp_path / "v").run
    in_background(dealer.serve_hospital, lambda link: fetch_as_hospital(link, run, tmp_path / "h"))
    vendor = Vendor(made.program, made.weights, tmp_path / "v", description=program.model_dump(mode="json"))
    for image, match, done in ((tmp_path / "small.png", "another shape", 0), (scan, "drives the network", 1)):

        def ask(link, image=image, match=match):
            monkeypatch.setattr(diagnosis_parties, "connect", lambda *_where, **_how: link)
            with pytest.raises(ImageError, match=match):
                diagnosis_parties.diagnose(None, tmp_path / "h", image, vendor=("", 0))

        seen.append((in_background(vendor.serve, ask), done))
    assert [count for count, _ in seen] == [done for _, done in seen]


def in_background(serve, act):
    """What one side returns while the other acts."""
    ends, found = [Link(end, timeout_s=10) for end in socket.socketpair()], []
    thread = threading.Thread(target=lambda: found.append(serve(ends[0])), daemon=True)
    thread.start()
    act(ends[1])
    thread.join(10)
    ends[0].close()
    ends[1].close()
    return found[0]


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


def likelihoods(logits):
    spread = np.exp(logits - logits.max())
    return spread / spread.sum()


@pytest.mark.parametrize("names", [("no", "yes"), ("a", "b", "c", "d")])
def test_answers_of_bits(run_of, names):
    """Rounded by hand, from random logits."""
    rng = np.random.default_rng(3)
    described = serve_run(run_of("cnn")).description
    described = described.model_copy(
        update={"class_names": names, "threshold": 0.4 if len(names) == 2 else None, "reveal": "probabilities"}
    )
    for _ in range(50):
        logits = rng.normal(0, 2, (1, len(names)))
        likely = likelihoods(logits[0])
        said = answer(shown(torch.from_numpy(logits), described), described)
        place = int(likely[1] >= 0.4) if len(names) == 2 else int(likely.argmax())
        assert said["label"] == names[place]
        found = np.array([said["probabilities"][name] for name in names])
        assert found.sum() == pytest.approx(1)
        if len(names) == 2:
            assert found[1] == pytest.approx(np.floor(likely[1] * 20 + 0.5) / 20)
        else:
            ratios = np.floor(likely / likely.max() * 20 + 0.5) / 20
            np.testing.assert_allclose(found, ratios / ratios.sum())
        label = described.model_copy(update={"reveal": "label"})
        assert answer(shown(torch.from_numpy(logits), label), label) == {"label": names[place]}


@pytest.mark.parametrize("names", [("none", "a"), ("none", "a", "b")])
def test_masks_of_bits(run_of, names):
    logits = np.random.default_rng(4).normal(0, 2, (1, len(names), 5, 4))
    described = serve_run(run_of("unet")).description.model_copy(update={"class_names": names, "reveal": "label"})
    said = answer(shown(torch.from_numpy(logits), described), described)
    assert said["mask"] == logits[0].argmax(0).tolist()
    assert said["pixels"] == {name: int((logits[0].argmax(0) == place).sum()) for place, name in enumerate(names)}


def test_of_classes_that_are_as_good_as_equal_the_first_is_said(run_of):
    described = serve_run(run_of("cnn")).description.model_copy(
        update={"class_names": ("a", "b", "c"), "threshold": None, "reveal": "label"}
    )
    assert answer(torch.tensor([[[0.0, 1.0, 1.0]]]), described) == {"label": "b"}


def test_what_is_revealed_is_told(run_of):
    described = serve_run(run_of("cnn")).description.model_copy(update={"threshold": 0.25})
    first = {
        reveal: leakage(described.model_copy(update={"reveal": reveal}), (2,))["hospital_learns"]
        for reveal in ("logits", "probabilities", "label")
    }
    assert "logits to 16 fraction bits" in first["logits"][0]
    assert "at least 0.25" in first["label"][0]
    assert not any("rounded" in line for line in first["label"])
    assert any("rounded to 1/20" in line for line in first["probabilities"])
