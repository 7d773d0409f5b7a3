"""Gradient inversion of real images: what must come back without protection, and must not under it."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from medveil.attacks import inversion_trial
from medveil.attacks.inversion import choose_victims, recipe_distance
from medveil.attacks.inversion_engine import Recipe
from medveil.attacks.inversion_trial import Bench, Variant
from medveil.attacks.measures import rate
from medveil.attacks.noise_levels import rank1_bound
from medveil.attacks.release import protected_sum
from medveil.attacks.scene import Scene
from medveil.models.cnn import CnnConfig
from medveil.models.registry import build
from medveil.models.resnet import Resnet9Config
from medveil.models.unet import UnetConfig
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import concatenate, prepare
from medveil.study.privacy import bind_plan
from medveil.training.arrays import InputScale
from medveil.training.objectives import CrossEntropy, DiceCrossEntropy, per_example_loss
from medveil.training.settings import Training

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

SEEDS = Seeds(6)


@pytest.fixture(scope="module")
def chest():
    """Test images as victims, among them and 2,000 more; the other training images are public."""
    prepared = prepare(load_plan("pneumonia-28"))
    test, train = prepared.test.data, concatenate([site.train for site in prepared.sites])
    images = torch.cat([test.images, train.images[:2000]]).float() / 255
    victims = np.arange(len(test))

    def scene(config):
        model = build(config, input_shape=(1, 28, 28), num_classes=2, seed=0)
        return Scene(
            model=model,
            trained=model,
            loss=lambda logits, targets: per_example_loss(logits, targets, CrossEntropy()),
            scale=InputScale(),
            task="classification",
            num_classes=2,
            images=images,
            targets=torch.cat([test.targets, train.targets[:2000]]),
            subject=np.arange(len(images)),
            public=train.images[2000:].float() / 255,
            public_targets=train.targets[2000:],
            public_subject=np.arange(2000, len(train)),
        )

    return scene, SEEDS.child("victims").numpy().permutation(victims)


@pytest.fixture(scope="module")
def hippocampus():
    """Slices of test patients at 32 x 32."""
    prepared = prepare(load_plan("hippocampus-2d"))
    test, train = prepared.test.data, concatenate([site.train for site in prepared.sites])
    loss = DiceCrossEntropy()

    def small(data):
        images = functional.interpolate(data.images.float(), size=(32, 32), mode="area")
        masks = functional.interpolate(data.targets[:, None].float(), size=(32, 32), mode="nearest")[:, 0].long()
        return images, masks

    images, masks = small(test)
    public, public_masks = small(train)
    model = build(UnetConfig(activation="silu", width=8), input_shape=(1, 32, 32), num_classes=3, seed=0)
    return Scene(
        model=model,
        trained=model,
        loss=lambda logits, targets: per_example_loss(logits, targets, loss),
        scale=InputScale(),
        task="segmentation",
        num_classes=3,
        images=images,
        targets=masks,
        subject=test.subject,
        public=public,
        public_targets=public_masks,
        public_subject=train.subject,
        training=Training(loss=loss),
    )


def _bench(scene, victims, steps, smoothness=(1e-3,)):
    distance = recipe_distance(scene)
    size = {"global": 0.1, "layer": 0.05}[distance]
    return Bench(scene, victims, Recipe(distance, steps, size), smoothness, SEEDS)


def _tell(name, trial):
    print(f"\n{name}: PSNR {np.round(trial.psnr, 1)} dB, median {np.median(trial.psnr):.1f}; rank {trial.rank}")  # noqa: T201 - figures of the must-hold, shown by pytest -s


def test_flat_head_convnet_gives_images_away(chest):
    scene, victims = chest
    bench = _bench(scene(CnnConfig(head="flat")), victims[:10], 700)
    trial = bench.run(Variant("single update"), 10)
    _tell("flat-head ConvNet", trial)
    assert len(bench.distractors) >= 2000
    assert (trial.rank == 1).sum() >= 9
    assert np.median(trial.psnr) > 30


def test_silu_resnet_gives_images_away(chest):
    scene, victims = chest
    trial = _bench(scene(Resnet9Config(activation="silu")), victims[:4], 150).run(Variant("single update"), 4)
    _tell("SiLU ResNet-9", trial)
    assert (trial.rank == 1).sum() >= 3


@pytest.mark.parametrize("joint", [False, True], ids=["known mask", "image and mask"])
def test_silu_unet_gives_slices_away(hippocampus, joint):
    bench = _bench(hippocampus, choose_victims(hippocampus, 5, SEEDS), 120)
    trial, control = bench.run(Variant("single update", joint=joint), 5), bench.judge_control(5)
    _tell(f"SiLU U-Net, joint {joint}", trial)
    _tell("mean image", control)
    assert np.median(trial.psnr) >= np.median(control.psnr) + 3


def _protected(chest, count):
    scene, victims = chest
    bound = bind_plan(load_plan("pneumonia-28-private"))
    noise = bound.noise_multiplier
    bench = _bench(scene(CnnConfig(head="flat")), victims[:count], 250)
    name = "epsilon 8"
    trial = bench.run(Variant(name, clipping=bound.mechanism.clipping, noise_multiplier=noise), count)
    control = bench.judge_control(count)
    _tell(name, trial)
    _tell("mean image", control)
    most = rank1_bound(noise, 1 / (len(bench.distractors) + 1), bound.relation)
    return trial, control, rate(int((trial.rank == 1).sum()), count), most


def test_epsilon_8_leaves_nothing_but_the_control(chest):
    trial, control, rank1, most = _protected(chest, 6)
    assert rank1.low <= most
    assert (trial.rank == 1).sum() == 0
    assert np.median(trial.psnr) <= np.median(control.psnr) + 1


def test_a_build_without_noise_exceeds_the_bound(chest, monkeypatch):
    def silent(gradients, clipping, noise_multiplier, seeds):
        return protected_sum(gradients, clipping, 1e-6, seeds)

    monkeypatch.setattr(inversion_trial, "protected_sum", silent)
    _, _, rank1, most = _protected(chest, 4)
    assert rank1.low > most
