"""A curious server inverts the update that a step shows it: classification and segmentation, alone and summed."""

import time

import numpy as np

from medveil.attacks.attack import Condition, Effort, Figure, Outcome, Report, Tell, ThreatModel
from medveil.attacks.inversion_plan import (
    EPSILONS,
    KNOWN_MASK,
    LEAST_DISTRACTORS,
    NO_CURVE,
    curve_images,
    left_out,
    plan_work,
    pool_size,
)
from medveil.attacks.inversion_report import (
    figures_of,
    findings_of,
    mask_figures,
    pictures_of,
    prefixed,
    resisted_of,
    worked,
)
from medveil.attacks.inversion_trial import Bench, Trial, Variant
from medveil.attacks.inversion_update import step_flops
from medveil.attacks.inversion_victims import choose_victims
from medveil.attacks.noise_levels import breaks, condition_of, noise_for, rank1_bound, shown_name
from medveil.attacks.scene import Protection, Scene
from medveil.errors import AttackError
from medveil.rng import Seeds


class Inversion:
    """Gradient inversion: from the update of one step back to the images (and masks) that caused it.

    The figure that counts is ``rank1_rate``: how often the true image is nearer to what was found than the images of
    all other patients. ``bound`` is the most that it can be by theory: the chance to guess the image unaided, times all
    tries (distances, smoothness, classes) among which hindsight chooses, is its prior. ``bound_kept`` is 0 where the
    attack did better, with probability of error 1e-6.

    Every protected row is the worst case: everybody else's part of the sum is known to the attacker and subtracted, the
    victim was sampled, and its image was not augmented. The attacker knows the classes in an update of several images.
    Masks are unknown and searched for with the images; the variant with a known mask has a control of its own, which
    the mask informs. A failed inversion is no evidence that the noise was necessary, nor that another network is safe.

    References:
        Geiping et al. 2020, arXiv 2003.14053; Hayes et al. 2023, arXiv 2302.07225 (the bound).
    """

    name = "inversion"

    def check(self, scene: Scene) -> None:
        """Say whether the network can be differentiated twice and whether there are patients enough.

        Raises:
            AttackError: it cannot, or there are not.
        """
        wanted = pool_size(scene, "default") + LEAST_DISTRACTORS
        patients = len(np.unique(scene.subject))
        if patients < wanted:
            raise AttackError(
                "Gradient inversion has too few patients to attack some and tell them from others",
                got=f"{patients} patients",
                expected=f"at least {wanted}",
                remedy="leave this attack out, or use a data set with more patients",
            )
        if not len(scene.public):
            raise AttackError(
                "Gradient inversion starts from the mean of public images, and there are none",
                expected="images that no training saw",
                remedy="keep a test or validation split",
            )
        step_flops(scene)

    def run(self, scene: Scene, *, effort: Effort, seeds: Seeds, tell: Tell) -> Report:
        """Attack one update without protection, under the scene's protection, over a curve of noise, and variants.

        Raises:
            AttackError: as :meth:`check`.
        """
        began = time.monotonic()
        self.check(scene)
        work = plan_work(scene, effort)
        victims = choose_victims(scene, pool_size(scene, effort), seeds.child("victims"))
        bench = Bench(scene, victims, work.plain, work.noisy, seeds)
        control = bench.judge_control(work.images)
        tell(f"{work.images} images, {work.plain.recipes[0].steps} steps each, without protection")
        plain = bench.run(Variant("single update", joint=scene.task == "segmentation"), work.images)
        trials = [_told(bench, variant, count, tell) for variant, count in work.variants]
        controls = {each.variant.name: [control] for each in (plain, *trials)}
        known = [each for each in trials if each.variant.name == KNOWN_MASK]
        alone = [bench.judge_mask(len(each.psnr)) for each in known]
        for trial, informed in zip(known, alone, strict=True):
            controls[KNOWN_MASK] = [bench.judge_control(len(trial.psnr)), informed]
        shown, protected, outcome = scene.shown, None, None
        succeeded = worked(plain, [control], scene.task)
        skipped = work.beyond and not succeeded
        curve: list[Outcome] = []
        if shown is not None:
            tell("under protection" + ("" if skipped else ", and over a curve of noise"))
            protected, outcome = _noised(bench, shown, None, work.images, shown_name(scene), seeds)
            levels = () if skipped else EPSILONS[effort]
            for epsilon in levels:
                name = f"epsilon {epsilon:g} of one release"
                noise = noise_for(epsilon, shown.delta)
                curve.append(_noised(bench, shown, noise, curve_images(scene, effort), name, seeds)[1])
        extra = {name: figure for each in trials for name, figure in prefixed(each, seeds).items()}
        beside = {name: figure for each in alone for name, figure in prefixed(each, seeds).items()}
        gains = mask_figures(known, controls)
        nothing_seen = Outcome(
            Condition("nothing seen"), {**figures_of(control, seeds), **beside}, control.rows, bench.prior(1)
        )
        rows = (*plain.rows, *(row for each in trials for row in each.rows))
        unprotected = Outcome(Condition("unprotected"), {**figures_of(plain, seeds), **extra, **gains}, rows)
        noisy = [each for each in (outcome, *curve) if each is not None]
        return Report(
            name=self.name,
            title="Gradient inversion",
            threat_model=ThreatModel(
                adversary="server",
                sees="the update of one step, or the sum of several sites' updates",
                knows="the network and its weights before the step, the loss, clip norm and noise, public images",
            ),
            success="rank1_rate",
            unprotected=unprotected,
            protected=outcome,
            curve=tuple(curve),
            control=nothing_seen,
            succeeded_unprotected=succeeded,
            resisted=resisted_of(scene, [plain, *trials], controls),
            findings=(
                *findings_of(scene, plain, trials, controls, protected, noisy),
                *left_out(scene, effort, work),
                *([NO_CURVE] if skipped else []),
            ),
            seconds=time.monotonic() - began,
            pictures=pictures_of(scene, bench, plain, trials, protected),
        )


def _noised(
    bench: Bench, protection: Protection, noise: float | None, count: int, name: str, seeds: Seeds
) -> tuple[Trial, Outcome]:
    """Attack under the protection's clipping, with its own noise or another."""
    multiplier = protection.noise_multiplier if noise is None else noise
    joint = bench.scene.task == "segmentation"
    variant = Variant(name, clipping=protection.clipping, noise_multiplier=multiplier, joint=joint)
    trial = bench.run(variant, count)
    bound = rank1_bound(multiplier, bench.prior(bench.noisy.count), protection.relation)
    figures = figures_of(trial, seeds)
    figures["bound_kept"] = Figure(float(not breaks(int((trial.rank == 1).sum()), len(trial.rank), bound)))
    return trial, Outcome(condition_of(protection, noise, name=name), figures, trial.rows, bound)


def _told(bench: Bench, variant: Variant, count: int, tell: Tell) -> Trial:
    tell(f"gradient inversion: {variant.name}")
    return bench.run(variant, count)
