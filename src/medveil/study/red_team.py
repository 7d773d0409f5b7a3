"""The red team over a run: the scene of all attacks, and what they found, kept in the run folder."""

import copy
import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medveil.accounting.calibrate import calibrate_noise
from medveil.attacks.attack import Attack, Effort, Report, Tell
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.dp.settings import SiteDpFedAvg
from medveil.errors import AttackError, ConfigError, RunError
from medveil.federation.settings import FedSgd
from medveil.models.weights import load_weights
from medveil.rng import Seeds
from medveil.study.arms import build_model
from medveil.study.evaluate import stored_plan
from medveil.study.folder import RunFolder, read_json, write_bytes, write_json
from medveil.study.manifest import verify_manifest, write_manifest
from medveil.study.parties import number_of_sites
from medveil.study.plan import Plan, load_plan
from medveil.study.prepare import Prepared, concatenate, input_scale, prepare
from medveil.study.privacy import bind_plan
from medveil.training.arrays import ArrayData
from medveil.training.batches import steps_per_epoch
from medveil.training.objectives import balanced_weights, per_example_loss

ATTACKS: Final = {
    "inversion": ("medveil.attacks.inversion", "Inversion"),
    "imprint": ("medveil.attacks.imprint", "Imprint"),
    "reconstruction": ("medveil.attacks.reconstruction", "Reconstruction"),
    "membership": ("medveil.attacks.membership", "Membership"),
    "property": ("medveil.attacks.property", "PropertyInference"),
}
"""In the order in which they run: the name that ``--only`` takes, and where the attack is."""

RESULTS: Final = "results.json"
AUDIT: Final = "audit.json"
PICTURES: Final = "pictures.npz"
SCHEMA_VERSION: Final = 1

# A hypothetical protection, for runs that have none: that of the shipped private plans.
_EPSILON, _DELTA, _RATE, _STEPS, _CLIP_NORM = 8.0, 1e-5, 0.25, 100, 1.0
# Numbers of one image, beyond which fewer images are kept in memory as float32.
_MOST_VALUES = 200_000_000
_MOST_IMAGES = 4_000
_BYTE = 255.0


def red_team(
    target: Path,
    *,
    effort: Effort = "default",
    only: Sequence[str] = (),
    tell: Tell = lambda _text: None,
) -> dict[str, Any]:
    """Attack a finished run, or the training that a plan describes.

    Args:
        target: folder of a finished run; the results are kept there. Or a plan's file or name: nothing is kept.
        effort: "quick" takes fewer images, shadow models and noise levels.
        only: names of attacks; all of them by default.
        tell: progress.

    Returns:
        ``attacks`` (what every :class:`~medveil.attacks.attack.Report` says; an attack that cannot be tried on this
        run has ``not_tried`` with the reason), ``run``, ``effort``, ``protection``, ``seconds``.

    Raises:
        ConfigError: no such attack.
        RunError: not a finished run.
        ManifestError: files of the run changed after it was signed.
        AttackError: attacks were named, and one of them cannot be tried on this run.
    """
    chosen = _chosen(only)
    plan, run, content = _target(target)
    tell("Reading the data")
    scene = build_scene(plan, prepare(plan), run)
    _check_all(chosen, scene, strict=bool(only))
    begun, seeds = time.perf_counter(), Seeds(plan.seed).child("red team")
    found: list[dict[str, Any]] = []
    pictures: dict[str, NDArray[np.float32]] = {}
    for attack in chosen:
        try:
            attack.check(scene)
        except AttackError as error:
            found.append({"name": attack.name, "not_tried": str(error)})
            continue
        tell(attack.name)
        report = attack.run(scene, effort=effort, seeds=seeds.child(attack.name), tell=_prefixed(tell, attack.name))
        found.append(report.to_json())
        pictures |= _named(report)
    results = {
        "schema_version": SCHEMA_VERSION,
        "run": {
            "name": plan.name,
            "plan_hash": content.get("plan_hash", plan.digest()),
            "kind": content.get("data", {}).get("kind"),
        },
        "effort": effort,
        "protection": _protection_json(scene.protection),
        "reference": _protection_json(scene.reference),
        "hides_whole_sites": isinstance(plan.privacy.dp, SiteDpFedAvg),
        "attacks": found,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    if run is not None:
        _keep(run, results, pictures, merge=bool(only))
    return results


def _chosen(only: Sequence[str]) -> list[Attack]:
    unknown = sorted(set(only) - ATTACKS.keys())
    if unknown:
        raise ConfigError("There is no such attack", got=", ".join(unknown), expected=", ".join(ATTACKS))
    names = [name for name in ATTACKS if not only or name in only]
    return [getattr(import_module(ATTACKS[name][0]), ATTACKS[name][1])() for name in names]


def _target(target: Path) -> tuple[Plan, Path | None, dict[str, Any]]:
    """The plan, the run folder where there is one, and the run's record."""
    if not target.is_dir():
        return load_plan(str(target)), None, {}
    folder = RunFolder(target)
    content = read_json(folder.record)
    verify_manifest(target)
    return stored_plan(folder), target, content


def _check_all(attacks: Sequence[Attack], scene: Scene, *, strict: bool) -> None:
    """Before long work: with named attacks, refuse what cannot be tried; else refuse only if nothing can."""
    errors = []
    for attack in attacks:
        try:
            attack.check(scene)
        except AttackError as error:
            errors.append(error)
    if errors and (strict or len(errors) == len(attacks)):
        raise errors[0]


def _prefixed(tell: Tell, name: str) -> Callable[[str], None]:
    return lambda text: tell(f"{name}: {text}")


def build_scene(plan: Plan, prepared: Prepared, run: Path | None) -> Scene:
    """The setting of all attacks on a run, or on a plan that was not trained.

    Training patients' images are attacked; the attacker has seen those of validation and test.

    Args:
        plan: of the run.
        prepared: its data.
        run: folder of the finished run; None leaves the first weights in place of the trained ones.
    """
    seeds = Seeds(plan.seed).child("scene")
    model = build_model(plan, prepared.input_shape, prepared.num_classes).eval()
    trained = copy.deepcopy(model)
    if run is not None:
        load_weights(trained, RunFolder(run).weights)
    members = concatenate([site.train for site in prepared.sites])
    held_out = [site.validation for site in prepared.sites if site.validation is not None]
    others = concatenate([*held_out, prepared.test.data])
    most = max(64, min(_MOST_IMAGES, _MOST_VALUES // int(np.prod(prepared.input_shape))))
    members, others = _some(members, most, seeds.child("members")), _some(others, most // 2, seeds.child("public"))
    protection = _protection(plan)
    site = max(len(site.train) for site in prepared.sites)
    return Scene(
        model=model,
        trained=trained,
        loss=partial(
            per_example_loss, config=plan.training.loss, class_weights=_class_weights(plan, members, prepared)
        ),
        scale=input_scale(plan.data.preprocess),
        task=plan.task,
        num_classes=prepared.num_classes,
        images=_floats(members.images),
        targets=members.targets.long(),
        subject=members.subject,
        public=_floats(others.images),
        public_targets=others.targets.long(),
        public_subject=others.subject,
        training=plan.training,
        optimiser_steps=_local_steps(plan, site),
        batch_size=plan.training.batch_size,
        sites=len(prepared.sites),
        protection=protection,
        reference=None if protection else _reference(len(prepared.sites)),
    )


def _floats(images: Tensor) -> Tensor:
    return images.float() / _BYTE if images.dtype == torch.uint8 else images.float()


def _some(data: ArrayData, most: int, seeds: Seeds) -> ArrayData:
    """At most so many examples, whole patients, drawn by seed; patients keep their order."""
    if len(data) <= most:
        return data
    order = seeds.numpy().permutation(data.num_subjects)
    sizes = np.bincount(data.subject, minlength=data.num_subjects)
    kept = order[np.cumsum(sizes[order]) <= most]
    rows = np.flatnonzero(np.isin(data.subject, kept))
    _, subject = np.unique(data.subject[rows], return_inverse=True)
    return ArrayData(
        images=data.images[rows],
        targets=data.targets[rows],
        subject=subject.astype(np.int64),
        volume=data.volume[rows],
        position=data.position[rows],
        spacing_mm=tuple(data.spacing_mm[row] for row in rows),
        num_subjects=len(kept),
    )


def _class_weights(plan: Plan, members: ArrayData, prepared: Prepared) -> Tensor | None:
    weights = plan.training.class_weights
    if weights == "none":
        return None
    if weights == "balanced":
        return balanced_weights(members.targets, prepared.num_classes)
    return torch.tensor(weights, dtype=torch.float32)


def _local_steps(plan: Plan, examples: int) -> int:
    algorithm = plan.federation.algorithm
    if isinstance(algorithm, FedSgd):
        return 1
    stated = getattr(algorithm, "local_steps", None)
    epochs = getattr(algorithm, "local_epochs", 1) or 1
    return int(stated or epochs * steps_per_epoch(examples, plan.training.batch_size))


def _protection(plan: Plan) -> Protection | None:
    bound = bind_plan(plan)
    if bound is None or isinstance(bound.mechanism, SiteDpFedAvg):
        return None
    spent = bound.against(bound.shares.tolerated, bound.steps) if bound.shares.sites > 1 else bound.total()
    assert spent is not None
    return Protection(
        clipping=bound.mechanism.clipping,
        noise_multiplier=bound.noise_multiplier,
        sampling_rate=bound.sampling_rate,
        steps=bound.steps,
        delta=bound.delta,
        epsilon=spent.epsilon,
        relation=bound.relation,
        sites=number_of_sites(plan) if plan.privacy.secure_aggregation is not None else 1,
    )


def _reference(sites: int) -> Protection:
    noise = calibrate_noise(epsilon=_EPSILON, delta=_DELTA, sampling_rate=_RATE, steps=_STEPS)
    return Protection(FlatClipping(l2_clip_norm=_CLIP_NORM), noise, _RATE, _STEPS, _DELTA, _EPSILON, sites=sites)


def _protection_json(protection: Protection | None) -> dict[str, Any] | None:
    if protection is None:
        return None
    return {**vars(protection), "clipping": protection.clipping.model_dump(mode="json")}


def _named(report: Report) -> dict[str, NDArray[np.float32]]:
    return {f"{report.name}/{name}": values for name, values in report.pictures.items()}


def keep_audit(run: Path, content: dict[str, Any]) -> None:
    """Keep what ``medveil audit`` found in a run folder, for the report; signed with the attacks' results.

    Raises:
        RunError: the folder cannot be written.
    """
    folder = _folder(run)
    write_json(folder / AUDIT, content)
    _sign(folder, str(content["plan_hash"]))


def _folder(run: Path) -> Path:
    folder = RunFolder(run).red_team
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError("The run folder cannot be written", got=error.strerror) from None
    return folder


def _sign(folder: Path, plan_hash: str) -> None:
    write_manifest(folder, plan_hash, files=(RESULTS, PICTURES, AUDIT))


def _keep(run: Path, results: dict[str, Any], pictures: dict[str, NDArray[np.float32]], *, merge: bool) -> None:
    """Write the results beside the run, signed on their own: the run's manifest stays as it is."""
    folder = _folder(run)
    if merge and (folder / RESULTS).exists():
        earlier = read_json(folder / RESULTS)
        fresh = {attack["name"]: attack for attack in results["attacks"]}
        kept = {attack["name"]: attack for attack in earlier["attacks"]} | fresh
        results = {**results, "attacks": [kept[name] for name in ATTACKS if name in kept]}
        if (folder / PICTURES).exists():
            with np.load(folder / PICTURES, allow_pickle=False) as stored:
                old = {name: stored[name] for name in stored.files if name.split("/")[0] not in fresh}
            pictures = old | pictures
    write_json(folder / RESULTS, results)
    stored_bytes = io.BytesIO()
    np.savez_compressed(stored_bytes, **pictures)  # type: ignore[arg-type] # its stub takes **pictures for allow_pickle
    write_bytes(folder / PICTURES, stored_bytes.getvalue())
    _sign(folder, results["run"]["plan_hash"])
