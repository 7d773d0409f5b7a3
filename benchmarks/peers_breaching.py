"""Gradient inversion beside the public library breaching (Geiping et al.): same images, network, gradient and label.

    MEDVEIL_DATA=... python benchmarks/peers_breaching.py [--images 2] [--steps 900] [--variation 1e-4 1e-3 1e-2]

Needs an environment of its own with torch and medveil in which also ``pip install --no-deps breaching`` and
``pip install hydra-core`` were run; torchvision, which breaching only imports for its own data sets, is replaced by an
empty stand-in here when it is not installed. Its total variation expects three channels: a grey-safe one replaces it,
the same but at the image's borders, where theirs pads with zeros. The rest is its ``invertinggradients`` attack, random
start included, with fewer steps than its default 24,000. Ours starts at random too, and once more at the public mean
image, which the other cannot; both know the label. The best weight of the total variation is chosen in hindsight.
"""

import argparse
import importlib.util
import sys
import time
import types

import numpy as np
import torch

from medveil.attacks.inversion_engine import Recipe, search
from medveil.attacks.inversion_update import simulator
from medveil.attacks.measures import mean_image, psnr_db, rank
from medveil.attacks.scene import Scene
from medveil.models.cnn import CnnConfig
from medveil.models.registry import build
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare
from medveil.training.arrays import InputScale
from medveil.training.objectives import CrossEntropy, per_example_loss


class GreyVariation(torch.nn.Module):
    """Mean over pixels of the absolute differences along rows and columns, for any number of channels."""

    def __init__(self, setup, scale=0.1, **_):
        super().__init__()
        self.setup, self.scale = setup, scale

    def initialize(self, *_, **__):
        """Nothing to prepare."""

    def forward(self, images, *_, **__):
        """Weighted variation, a scalar."""
        return self.scale * (images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean())


def stand_in():
    """Modules that answer to every name that breaching's own models and data sets mention."""

    class Anything(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (torch.nn.Module,), {})

    names = ["", ".models", ".models.densenet", ".transforms", ".datasets", ".datasets.utils", ".utils"]
    for name in names:
        module = Anything(f"torchvision{name}")
        module.__path__ = []
        sys.modules[f"torchvision{name}"] = module
    for name in names[1:]:
        parent, _, child = f"torchvision{name}".rpartition(".")
        setattr(sys.modules[parent], child, sys.modules[f"torchvision{name}"])


def theirs(scene, image, label, steps, variation):
    """The image that breaching finds, and its processor seconds."""
    import breaching

    breaching.attacks.auxiliaries.regularizers.regularizer_lookup["total_variation"] = GreyVariation
    config = breaching.get_attack_config(
        overrides=[
            f"optim.max_iterations={steps}",
            f"regularization.total_variation.scale={variation}",
        ]
    )
    meta = types.SimpleNamespace(
        shape=tuple(image.shape[1:]), mean=[scene.scale.shift], std=[scene.scale.scale], modality="vision"
    )
    loss = torch.nn.CrossEntropyLoss()
    gradient = torch.autograd.grad(loss(scene.model(scene.scaled(image)), label), list(scene.model.parameters()))
    payload = [{"parameters": list(scene.model.parameters()), "buffers": [], "metadata": meta}]
    facts = {"num_data_points": 1, "labels": label, "local_hyperparams": None}
    shared = [{"gradients": [each.detach() for each in gradient], "buffers": None, "metadata": facts}]
    attacker = breaching.attacks.prepare_attack(scene.model, loss, config)
    begun = time.process_time()
    found, _ = attacker.reconstruct(payload, shared, {}, dryrun=False)
    seconds = time.process_time() - begun
    return found["data"].detach() * scene.scale.scale + scene.scale.shift, seconds


def ours(scene, victims, steps, variation, start):
    """The images that medveil finds with one weight of the total variation, and its processor seconds an image."""
    rows = torch.from_numpy(victims)
    inputs, labels = scene.scaled(scene.images[rows])[:, None], scene.targets[rows][:, None]
    simulate = simulator(scene)
    observed = [each.detach() for each in simulate(inputs, labels)]
    begin = scene.scaled(mean_image(scene.public))[:, None].expand(inputs.shape).clone()
    if start == "random":
        begin = torch.randn(inputs.shape, generator=Seeds(6).child("start").torch())
    ends = scene.scaled(torch.tensor([0.0, 1.0])).tolist()
    begun = time.process_time()
    smoothness = torch.full((len(rows),), variation)
    found, _, _ = search(
        simulate, observed, begin, labels, smoothness, Recipe("global", steps, 0.1), limits=(ends[0], ends[1])
    )
    seconds = (time.process_time() - begun) / len(rows)
    return found[:, 0] * scene.scale.scale + scene.scale.shift, seconds


def chest():
    """Test images as victims, training images as distractors and as what is public."""
    prepared = prepare(load_plan("pneumonia-28"))
    test, train = prepared.test.data, prepared.pool().train
    images = torch.cat([test.images, train.images[:2000]]).float() / 255
    model = build(CnnConfig(head="flat"), input_shape=(1, 28, 28), num_classes=2, seed=0)
    return len(test), Scene(
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--variation", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2])
    asked = parser.parse_args()
    count, scene = chest()
    victims = Seeds(6).child("victims").numpy().permutation(count)[: asked.images]
    true = scene.images[torch.from_numpy(victims)]
    others = scene.images[count:]
    print(f"{'':44s} median PSNR  rank 1  processor s/image   PSNR of every image")
    for start in ("random", "mean"):
        tried = (ours(scene, victims, asked.steps, each, start) for each in asked.variation)
        tell(f"medveil, {asked.steps} steps, {start} start", asked.variation, tried, true, others)
    if importlib.util.find_spec("breaching") is None:
        print("breaching is not installed here: nothing is compared")
        return
    if importlib.util.find_spec("torchvision") is None:
        stand_in()
    tried = (all_of_theirs(scene, victims, asked.steps, each) for each in asked.variation)
    tell(f"breaching, {asked.steps} steps, random start", asked.variation, tried, true, others)


def all_of_theirs(scene, victims, steps, variation):
    """The images that breaching finds with one weight of the total variation, and its processor seconds an image."""
    found, seconds = [], []
    for victim in victims:
        torch.manual_seed(int(victim))
        image, taken = theirs(scene, scene.images[victim][None], scene.targets[victim][None], steps, variation)
        found.append(image)
        seconds.append(taken)
    return torch.cat(found), float(np.mean(seconds))


def tell(name, variations, tried, true, others):
    """A row a weight, and one of the best weight of every image."""
    found = []
    for variation, (images, seconds) in zip(variations, tried, strict=True):
        show(f"{name}, TV {variation:g}", psnr_db(images, true), rank(images, true, others), seconds)
        found.append((images, seconds))
    tried = found
    best = np.stack([psnr_db(images, true) for images, _ in tried]).argmax(0)
    kept = torch.stack([tried[choice][0][image] for image, choice in enumerate(best)])
    seconds = sum(each for _, each in tried)
    show(f"{name}, best TV", psnr_db(kept, true), rank(kept, true, others), seconds)


def show(name, psnr, ranks, seconds):
    values = " ".join(f"{each:.1f}" for each in psnr)
    hits = f"{int((ranks == 1).sum())}/{len(ranks)}"
    print(f"{name:44s} {np.median(psnr):8.1f} dB {hits:>7s} {seconds:14.1f} s   {values}", flush=True)


if __name__ == "__main__":
    main()
