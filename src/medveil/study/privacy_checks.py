"""Why a plan's privacy claim would be hollow: everything that can be said before data are read."""

from medveil.dp.settings import CentralDpSgd, DistributedDpSgd, LocalDpSgd
from medveil.errors import ConfigError, GuaranteeError
from medveil.federation.settings import FedSgd
from medveil.study.parties import steps_are_local
from medveil.study.plan import Plan


def check_claim(plan: Plan) -> None:
    """Refuse a plan with ``[privacy.dp]`` whose settings do not fit together, or break what it claims.

    Raises:
        ConfigError: settings that do not fit together.
        GuaranteeError: the claim would be hollow.
    """
    _check_algorithm(plan)
    _check_aggregation(plan)
    _check_statistics(plan)
    _check_leaks(plan)
    _check_patients(plan)


def _check_algorithm(plan: Plan) -> None:
    """The mechanism decides what a round is."""
    algorithm, kind = plan.federation.algorithm, plan.privacy.dp.kind if plan.privacy.dp else ""
    stepwise = isinstance(plan.privacy.dp, CentralDpSgd | DistributedDpSgd)
    if stepwise and not isinstance(algorithm, FedSgd):
        raise ConfigError(
            f'Training with privacy of the kind "{kind}" goes step by step',
            got=f'federation.algorithm.kind = "{algorithm.kind}"',
            expected='"fedsgd": a round is one noisy step',
            remedy='set federation.algorithm = { kind = "fedsgd" } and federation.rounds to the number of steps',
        )
    if not stepwise and isinstance(algorithm, FedSgd):
        raise ConfigError(
            f'Privacy of the kind "{kind}" averages models',
            got='federation.algorithm.kind = "fedsgd"',
            expected='"fedavg" or "fedprox"',
            remedy='set federation.algorithm = { kind = "fedavg", local_steps = ... }',
        )
    if steps_are_local(plan) and getattr(algorithm, "local_steps", None) is None:
        raise ConfigError(
            "The number of private steps would depend on the private size of a site",
            got="federation.algorithm.local_epochs",
            expected="federation.algorithm.local_steps",
            remedy="state local_steps; an epoch is about 1 / privacy.dp.sampling.rate steps",
        )


def _check_aggregation(plan: Plan) -> None:
    """Distributed noise needs a secure sum; a trusted party that sees everything has no use for one."""
    settings, mechanism = plan.privacy.secure_aggregation, plan.privacy.dp
    if isinstance(mechanism, DistributedDpSgd):
        if settings is None:
            raise GuaranteeError(
                "A site's share of the noise protects nobody without a secure sum",
                got='privacy.dp.kind = "distributed" without [privacy.secure_aggregation]',
                remedy="add [privacy.secure_aggregation] with colluding and dropouts",
            )
        if plan.privacy.stages:
            raise GuaranteeError(
                "A stage would change what the noise was made for",
                got=f"privacy.stages with {len(plan.privacy.stages)} stages",
                expected='none, with privacy.dp.kind = "distributed": patients are clipped one by one already',
                remedy="remove privacy.stages",
            )
        if plan.training.max_grad_norm is not None:
            raise ConfigError(
                "The noisy sum is known to the server only, which does not limit gradients",
                got=f"training.max_grad_norm = {plan.training.max_grad_norm}",
                expected="none",
                remedy="remove it: every patient's gradient is clipped already",
            )
    elif settings is not None and mechanism is not None and not isinstance(mechanism, LocalDpSgd):
        raise GuaranteeError(
            "A secure sum would hide updates from a party that the plan trusts with them",
            got=f'[privacy.secure_aggregation] with privacy.dp.kind = "{mechanism.kind}"',
            expected='"distributed" or "local"',
            remedy="remove one of the two",
        )


def _check_statistics(plan: Plan) -> None:
    """Exact statistics of the patients whom the claim covers have no noise, and no event could charge them."""
    settings = plan.privacy.secure_aggregation
    if settings is not None and settings.statistics:
        raise GuaranteeError(
            "Exact statistics of the training patients would be published beside a claim that covers these patients",
            got="privacy.secure_aggregation.statistics = true with [privacy.dp]",
            expected="false: a secure sum hides who contributed what, not what the sum says about a patient",
            remedy="set it to false; what was released with noise belongs under privacy.earlier, with its event",
        )


def _check_leaks(plan: Plan) -> None:
    """Refuse settings by which something about the training patients would leave besides the noisy steps."""
    if plan.federation.weighting == "size":
        raise GuaranteeError(
            "Weighting sites by size would publish their sizes",
            got='federation.weighting = "size"',
            expected='"equal"',
            remedy='set federation.weighting = "equal"',
        )
    if plan.training.amp != "off":
        raise ConfigError(
            "Per-patient gradients are computed in float32",
            got=f'training.amp = "{plan.training.amp}"',
            expected='"off"',
        )
    if plan.training.class_weights == "balanced" and "counted-class-weights" not in plan.privacy.overrides:
        raise GuaranteeError(
            "Balanced class weights are counted on the patients that the guarantee covers",
            got='training.class_weights = "balanced"',
            expected='"none", or one public number for every class',
            remedy="state the weights as numbers",
        )
    compared = plan.references.central or plan.references.local_only
    if compared and "unprotected-references" not in plan.privacy.overrides:
        raise GuaranteeError(
            "The references are trained on the same patients without protection, and their scores are published",
            got=f"references.central = {plan.references.central}, references.local_only = {plan.references.local_only}",
            expected="false, false",
            remedy="set both to false; or accept the stamp NOT PRIVATE with "
            'privacy.overrides = ["unprotected-references"]',
        )
    _check_held_out(plan)


def _check_held_out(plan: Plan) -> None:
    if plan.privacy.held_out == "public":
        return
    leaks = {
        "federation.validate_every": plan.federation.validate_every > 0,
        'evaluation.threshold = "validation"': plan.task == "classification"
        and plan.evaluation.threshold == "validation",
    }
    found = [name for name, leak in leaks.items() if leak]
    if found:
        raise GuaranteeError(
            "A validation curve would leak: its patients are private and its scores have no noise",
            got=", ".join(found),
            expected="federation.validate_every = 0 and a fixed evaluation.threshold",
            remedy='set them so; or state privacy.held_out = "public" where validation patients agreed to it',
        )


def _check_patients(plan: Plan) -> None:
    """A patient-level claim needs to know whose an image is."""
    privacy, source = plan.privacy, plan.data.source
    if privacy.unit == "patient" and not source.names_patients and not privacy.one_image_per_patient:
        raise GuaranteeError(
            "The claim is about patients, and the data do not say whose an image is",
            got=source.subject_rule,
            expected="a source with a patient column, pattern or header",
            remedy='name the patient column of the source; set privacy.unit = "image"; or state '
            "privacy.one_image_per_patient = true where every image is of another patient",
        )
