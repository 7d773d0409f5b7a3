"""The sentences that go with a privacy claim: against whom it holds, on what it rests, what it leaves out.

The headings follow NIST SP 800-226 (2025): unit, relation, trust, composition, and the gaps between a guarantee on
paper and the system that runs.
"""

from medveil.data.partition import NaturalPartition
from medveil.dp.plan import PrivacyPlan
from medveil.dp.settings import CentralDpSgd, LocalDpSgd, SiteDpFedAvg
from medveil.study.plan import Plan


def holds_against(bound: PrivacyPlan) -> list[str]:
    """Who may see everything that leaves the trusted party and still learns no more than epsilon allows."""
    if isinstance(bound.mechanism, CentralDpSgd):
        return [
            "Everyone who sees the weights after every step, the coordinating server and the hospitals included.",
            "Not the curator, who holds all images in the clear and adds the noise.",
        ]
    if isinstance(bound.mechanism, LocalDpSgd):
        return [
            "Everyone outside the patient's own hospital: the server, which sees noisy weights, and other hospitals.",
            "Not the patient's own hospital, which has the images.",
        ]
    return [
        "Everyone who sees the model after every round, the other hospitals included.",
        "Not the server: it sees each hospital's change without noise, adds the noise, and is trusted.",
    ]


def assumptions(plan: Plan, bound: PrivacyPlan) -> list[str]:
    """What must be true for epsilon to be what the record says."""
    unit = bound.unit
    listed = [
        f"Neighbouring data sets differ by {_difference(bound)}.",
        f"What counts as a patient: {plan.data.source.subject_rule}.",
    ]
    if isinstance(plan.data.partition, NaturalPartition):
        listed.append("Which patients train, validate and test is held fixed between neighbours.")
    else:
        listed.append(
            "Which patients train, validate and test, and to which simulated site they are dealt, is held fixed "
            "between neighbours."
        )
    if plan.privacy.one_image_per_patient:
        listed.append(
            "The plan states that every image is of another patient. A patient with k images is protected as a group "
            "of k, which is weaker."
        )
    if unit == "image":
        listed.append(
            "The unit is the image: a patient with several images or slices is protected less, and by how "
            "much is not stated here."
        )
    if not bound.secure:
        listed.append("Noise and draws come from a seed that stands in the plan, so they are no secret.")
    elif not isinstance(bound.mechanism, SiteDpFedAvg):
        listed.append(
            "Every step draws each unit on its own with the stated probability; noise and draws come from the system's "
            "entropy through a cryptographic generator, and nobody else learns them. So do the random views of images."
        )
    if isinstance(bound.mechanism, LocalDpSgd):
        listed.append("A patient's images lie at one hospital. A patient of two hospitals is counted twice.")
    if plan.initial_weights is not None:
        listed.append("The weights that the training started from owe nothing to these patients.")
    return listed


def out_of_scope(plan: Plan, bound: PrivacyPlan) -> list[str]:
    """What epsilon does not cover and the run nevertheless shows."""
    listed = [
        "Test patients: their scores and example pictures are published as they are.",
        "The number of patients and images at each site, their labels and rejected files, as the record states them.",
        "Pixel-identical images, which the record counts.",
        "The run's folder state: it holds a fingerprint of every training image and stays with whoever trained.",
        "Choices made by looking at other runs on the same patients, where privacy.earlier does not list them.",
        "What is true of the patients as a group, such as the share of a class: differential privacy does not hide it.",
        "Time, memory and power that the computation takes, and access to the machines of the trusted party.",
    ]
    if plan.privacy.held_out == "public":
        listed.insert(
            1,
            "Validation patients: the plan declares them public. Their scores in every validated round, and the "
            "decision threshold chosen on them, have no noise.",
        )
    if not isinstance(bound.mechanism, SiteDpFedAvg):
        listed.append("Hospitals as such: the unit is a patient's or an image's presence, not a hospital's.")
    else:
        listed.append("The names of the hospitals that took part, and how much each sent: the record states them.")
    return listed


def _difference(bound: PrivacyPlan) -> str:
    whose = {
        "patient": "all images of one patient",
        "image": "one image",
        "site": "everything that one hospital holds",
    }[bound.unit]
    if bound.relation == "add-remove":
        return f"the presence or absence of {whose}"
    return f"{whose} being replaced by others"
