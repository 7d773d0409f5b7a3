"""Standardised weights ("ws") against group and instance normalisation: equal nets, equal recipe, several seeds.

    MEDVEIL_DATA=... python benchmarks/model_families.py --seeds 5 --epochs 10
    MEDVEIL_DATA=... python benchmarks/model_families.py --quick

AdamW under a one-cycle schedule, no augmentation. Each family may choose its learning rate from a grid fixed
in advance, by the mean of its validation scores; the table shows the test scores at that rate (mean and sample
standard deviation over seeds), seconds an epoch and their ratio to "group" in this run. Nothing here is
chosen by a test score.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from medveil.models.cnn import CnnConfig
from medveil.models.registry import ModelConfig, build
from medveil.models.resnet import Resnet9Config
from medveil.models.unet import UnetConfig

RATES = (1e-3, 3e-3, 1e-2)
SLICE_SHAPE = (48, 64)
FAMILIES = ("ws", "group", "instance")


@dataclass(frozen=True)
class Part:
    """Images (N, 1, rows, columns), targets, and for slices the patient that each belongs to."""

    images: Tensor
    targets: Tensor
    patients: Tensor


@dataclass(frozen=True)
class Subject:
    """One line of the table, twice: a net, its data and its score."""

    name: str
    config: Callable[[str], ModelConfig]
    data: dict[str, Part]
    num_classes: int
    score_name: str
    score: Callable[[Tensor, Part], float]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch_size: int


@dataclass(frozen=True)
class Trial:
    """One training."""

    rate: float
    validation: float
    test: float
    epoch_s: float


def pneumonia(folder: Path, limit: int | None) -> dict[str, Part]:
    arrays = np.load(folder / "pneumoniamnist_28" / "pneumoniamnist.npz")
    train = arrays["train_images"] / 255.0
    mean, deviation = train.mean(), train.std()

    def part(split: str) -> Part:
        images = (arrays[f"{split}_images"] / 255.0 - mean) / deviation
        targets = arrays[f"{split}_labels"].reshape(-1)
        take = slice(limit if split == "train" else None)
        return Part(
            torch.from_numpy(images[take, None]).float(),
            torch.from_numpy(targets[take].astype(np.int64)),
            torch.arange(len(targets[take])),
        )

    return {split: part(split) for split in ("train", "val", "test")}


def hippocampus(folder: Path, limit: int | None) -> dict[str, Part]:
    names = sorted(path.name for path in (folder / "hippocampus_mr_nifti" / "labels").glob("*.nii.gz"))
    order = np.random.default_rng(0).permutation(len(names))[: limit or len(names)]
    cuts = (int(0.7 * len(order)), int(0.8 * len(order)))
    splits = dict(zip(("train", "val", "test"), np.split(order, cuts), strict=True))
    return {split: _slices(folder / "hippocampus_mr_nifti", names, chosen) for split, chosen in splits.items()}


def _slices(folder: Path, names: list[str], chosen: np.ndarray) -> Part:
    images, targets, patients = [], [], []
    for patient in chosen:
        image = np.asarray(nibabel.load(folder / "images" / names[patient]).dataobj, dtype=np.float32)
        label = np.asarray(nibabel.load(folder / "labels" / names[patient]).dataobj).astype(np.int64)
        image = (image - image.mean()) / image.std()
        for index in range(0, image.shape[2], 2):
            images.append(_padded(image[:, :, index], image.min()))
            targets.append(_padded(label[:, :, index], 0))
            patients.append(int(patient))
    return Part(
        torch.from_numpy(np.stack(images)[:, None]),
        torch.from_numpy(np.stack(targets)),
        torch.tensor(patients),
    )


def _padded(array: np.ndarray, fill: float) -> np.ndarray:
    missing = [wanted - found for wanted, found in zip(SLICE_SHAPE, array.shape, strict=True)]
    return np.pad(array, [(each // 2, each - each // 2) for each in missing], constant_values=fill)


def auc(logits: Tensor, part: Part) -> float:
    return float(roc_auc_score(part.targets.numpy(), logits.softmax(1)[:, 1].numpy()))


def dice(logits: Tensor, part: Part) -> float:
    """Mean over patients of the mean Dice of both structures, over a patient's slices together."""
    predicted = logits.argmax(1)
    scores = []
    for patient in part.patients.unique():
        mine = part.patients == patient
        for structure in (1, 2):
            found, wanted = predicted[mine] == structure, part.targets[mine] == structure
            both = float((found & wanted).sum())
            scores.append(2 * both / max(1.0, float(found.sum() + wanted.sum())))
    return statistics.mean(scores)


def with_overlap(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy plus one minus the soft Dice of the structures: these fill 3 % of the pixels."""
    likely = logits.softmax(1)[:, 1:]
    wanted = one_hot(targets, logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    axes = (0, 2, 3)
    overlap = (2 * (likely * wanted).sum(axes) + 1) / ((likely + wanted).sum(axes) + 1)
    return cross_entropy(logits, targets) + 1 - overlap.mean()


def train(subject: Subject, family: str, seed: int, rate: float, epochs: int) -> Trial:
    part = subject.data["train"]
    model = build(
        subject.config(family),
        input_shape=tuple(part.images.shape[1:]),
        num_classes=subject.num_classes,
        seed=seed,
    )
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    batches, size = len(part.images) // subject.batch_size, subject.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for _ in range(epochs):
        for chosen in torch.randperm(len(part.images), generator=generator)[: size * batches].split(size):
            optimiser.zero_grad()
            subject.loss(model(part.images[chosen]), part.targets[chosen]).backward()
            optimiser.step()
            schedule.step()
    epoch_s = (time.perf_counter() - start) / epochs
    scores = {
        split: subject.score(answers(model, subject.data[split]), subject.data[split]) for split in ("val", "test")
    }
    return Trial(rate, scores["val"], scores["test"], epoch_s)


def answers(model: nn.Module, part: Part) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(images) for images in part.images.split(128)])


def best_rate(trials: list[Trial]) -> list[Trial]:
    by_rate = {rate: [trial for trial in trials if trial.rate == rate] for rate in {t.rate for t in trials}}
    return max(by_rate.values(), key=lambda group: statistics.mean(trial.validation for trial in group))


def compare(subject: Subject, seeds: int, epochs: int, rates: tuple[float, ...]) -> list[str]:
    trials: dict[str, list[Trial]] = {family: [] for family in FAMILIES}
    for seed in range(seeds):
        for rate in rates:
            # The families take turns, so that a busy machine slows both.
            for family in FAMILIES:
                trials[family].append(train(subject, family, seed, rate, epochs))
    lines, seconds = [], {}
    for family in FAMILIES:
        chosen = best_rate(trials[family])
        tests = [trial.test for trial in chosen]
        spread = statistics.stdev(tests) if len(tests) > 1 else float("nan")
        seconds[family] = statistics.median(trial.epoch_s for trial in trials[family])
        lines.append(
            f"{subject.name:<10} {family:<8} {parameters(subject, family):>10,} {chosen[0].rate:>6} "
            f"{subject.score_name:>5} {statistics.mean(tests):.4f} +- {spread:.4f} {seconds[family]:>8.2f}"
        )
    ratios = ", ".join(f"{family} {seconds[family] / seconds['group']:.2f}" for family in FAMILIES)
    return [*lines, f"{'':<10} time against group: {ratios}\n"]


def parameters(subject: Subject, family: str) -> int:
    shape = tuple(subject.data["train"].images.shape[1:])
    model = build(subject.config(family), input_shape=shape, num_classes=subject.num_classes, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: does it run?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=("cnn", "resnet9", "unet"), default=("cnn", "resnet9", "unet"))
    options = parser.parse_args()
    if "MEDVEIL_DATA" not in os.environ:
        print("MEDVEIL_DATA must name the folder with pneumoniamnist_28 and hippocampus_mr_nifti", file=sys.stderr)
        return 2
    folder = Path(os.environ["MEDVEIL_DATA"])
    torch.set_num_threads(options.threads)
    seeds, epochs, rates = (1, 1, RATES[:1]) if options.quick else (options.seeds, options.epochs, RATES)
    chest = pneumonia(folder, 320 if options.quick else None)
    brain = hippocampus(folder, 10 if options.quick else None)
    subjects = (
        Subject("cnn", lambda norm: CnnConfig(norm=norm), chest, 2, "AUC", auc, cross_entropy, 32),
        Subject("resnet9", lambda norm: Resnet9Config(norm=norm), chest, 2, "AUC", auc, cross_entropy, 32),
        Subject("unet", lambda norm: UnetConfig(norm=norm, width=8), brain, 3, "Dice", dice, with_overlap, 8),
    )
    print(f"{seeds} seeds, {epochs} epochs, rates {rates}, {options.threads} threads, torch {torch.__version__}")
    print(f"{'net':<10} {'norm':<8} {'parameters':>10} {'rate':>6} {'score':>5} {'test':<16} {'s/epoch':>10}")
    for subject in (subject for subject in subjects if subject.name in options.only):
        print("\n".join(compare(subject, seeds, epochs, rates)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
