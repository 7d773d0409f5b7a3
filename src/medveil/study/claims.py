"""The sentences that go with a privacy claim: against whom it holds, on what it rests, what it leaves out.

The headings follow NIST SP 800-226 (2025): unit, relation, trust, composition, and the gaps between a guarantee on
paper and the system that runs.
"""

from medveil.data.partition import NaturalPartition
from medveil.dp.plan import PrivacyPlan
from medveil.dp.settings import CentralDpSgd, DistributedDpSgd, LocalDpSgd, SiteDpFedAvg
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
    if isinstance(bound.mechanism, DistributedDpSgd):
        return _sum_holds_against(bound.shares.tolerated)
    return [
        "Everyone who sees the model after every round, the other hospitals included.",
        "Not the server: it sees each hospital's change without noise, adds the noise, and is trusted.",
    ]


def _sum_holds_against(colluding: int) -> list[str]:
    own = "Not the patient's own hospital, which has the images."
    if colluding == 0:
        return [
            (
                "The server on its own, which sees sums over hospitals only, and everyone outside the hospitals who "
                "sees the model after every step."
            ),
            (
                "Another hospital of the training with a larger epsilon only, stated apart: it knows its own share of "
                "the noise and can subtract it. The plan counts on none (colluding = 0)."
            ),
            own,
        ]
    others = "1 other hospital" if colluding == 1 else f"{colluding} other hospitals"
    return [
        (
            "The server, which sees sums over hospitals only, everyone who sees the model after every step, and up to "
            f"{others}, with the server or without it."
        ),
        f"Not more than {others} together: each knows its own share of the noise and can subtract it.",
        own,
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
    if isinstance(bound.mechanism, LocalDpSgd | DistributedDpSgd):
        listed.append("A patient's images lie at one hospital. A patient of two hospitals is counted twice.")
    if isinstance(bound.mechanism, DistributedDpSgd):
        listed += _sum_assumptions(plan, bound)
    if plan.initial_weights is not None:
        listed.append("The weights that the training started from owe nothing to these patients.")
    return listed


def _sum_assumptions(plan: Plan, bound: PrivacyPlan) -> list[str]:
    """What the secure sum must be for a share of the noise to be enough."""
    settings, shares = plan.privacy.secure_aggregation, bound.shares
    assert settings is not None
    honest = shares.sites - shares.tolerated - shares.absent
    where = f"{shares.sites} hospitals" if settings.groups == 1 else f"the {shares.sites} hospitals of every group"
    return [
        (
            f"In every sum at least {honest} of {where} add their share of the noise as the protocol says and tell "
            f"nobody: at most {shares.tolerated} may collude and {shares.absent} be missing. The patient's own "
            "hospital draws and clips as the plan says."
        ),
        (
            f"A sum needs {settings.threshold_of(shares.sites)} of {where} to open. Twice that is more than all and "
            "those that collude, so a server that lies about who is missing opens nothing else; each hospital gives "
            "its step to one sum only."
        ),
        (
            "Nobody breaks X25519, Ed25519, ChaCha20-Poly1305, AES-256 or SHA-256: the sums hide what is in them from "
            "anyone with bounded computing power."
        ),
        (
            "Every hospital knows the others' true identity keys. Where all run in one process, as in a simulation, "
            "that process makes the keys, and nobody else has checked them."
        ),
    ]


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
    if isinstance(bound.mechanism, DistributedDpSgd):
        listed.append(
            "Each hospital's own disk: it keeps its last contribution as it was before masking, with its own share of "
            "the noise only. In a simulation the run's folder state holds them all."
        )
        listed.append("Who took part in which round, and when each hospital answered: the server sees it.")
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
