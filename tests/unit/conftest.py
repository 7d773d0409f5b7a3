"""A record's privacy claim, made up; what it means follows from the Gaussian mechanism in closed form."""

import pytest
from scipy.stats import norm

MU = 0.9


def missed(alarms, mu=MU):
    """Dong, Roth & Su 2022, equation 6: the least that a test of N(0, 1) against N(mu, 1) misses."""
    return float(norm.cdf(norm.ppf(1 - alarms) - mu))


def meaning_of(mu=MU):
    rates = [0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0]
    return {
        "membership_advantage": float(2 * norm.cdf(mu / 2) - 1),
        "tpr_at_fpr": [{"fpr": rate, "tpr": 1 - missed(rate, mu)} for rate in (0.001, 0.01)],
        "trade_off": {"fpr": rates, "fnr": [missed(rate, mu) for rate in rates]},
        "reconstruction": [{"prior": prior, "bound": 1 - missed(prior, mu)} for prior in (1e-4, 0.01, 0.1)],
    }


def training(steps=812):
    step = {"kind": "poisson_gaussian", "noise_multiplier": 1.1372, "sampling_rate": 0.02}
    return {"kind": "repeated", "count": steps, "event": step}


def claim_of(**changes):
    """A claim of a curator that holds; ``changes`` replace keys."""
    return {
        "stamp": None,
        "stamp_reasons": [],
        "mode": "central",
        "unit": "patient",
        "relation": "add-remove",
        "delta": 1e-5,
        "epsilon": 2.98112,
        "epsilon_server": 2.98112,
        "epsilon_insider": 2.98112,
        "epsilon_rdp": 3.28,
        "epsilon_target": 3.0,
        "noise_multiplier": 1.1372,
        "sampling_rate": 0.02,
        "steps": 812,
        "steps_planned": 1000,
        "l2_clip_norm": 1.0,
        "clipping": "flat",
        "accountant": "PLD, pessimistic; RDP is the cross-check",
        "trusted": "curator",
        "holds_against": [
            "Everyone who sees the weights after every step, the coordinating server and the hospitals included.",
            "Not the curator, who holds all images in the clear and adds the noise.",
        ],
        "assumptions": [
            "Neighbouring data sets differ by the presence or absence of all images of one patient.",
            "What counts as a patient: a patient, as the column gives it, is one subject.",
        ],
        "out_of_scope": [
            "Test patients: their scores and example pictures are published as they are.",
            "What is true of the patients as a group: differential privacy does not hide it.",
        ],
        "composition": [
            {"what": "training", "event": training(), "epsilon": 2.9},
            {"what": "published mean age", "event": {"kind": "laplace", "noise_multiplier": 20.0}, "epsilon": 0.05},
        ],
        "meaning": meaning_of(),
        "ledgers": {"pool": {"entries": 1626, "epsilon_all_runs": 4.1, "cap": 8.0, "head": "9f2c" * 16, "runs": 2}},
        **changes,
    }


def stamped_of(**changes):
    """A claim that does not hold."""
    reasons = ["The noise came from a seed that the plan states: whoever knows it can subtract the noise."]
    return claim_of(stamp="NOT PRIVATE", stamp_reasons=reasons, **changes)


@pytest.fixture
def claim():
    """Makes a record's ``privacy``; keyword arguments replace keys."""
    return claim_of


@pytest.fixture
def stamped():
    """Makes the ``privacy`` of a run that is stamped NOT PRIVATE."""
    return stamped_of


@pytest.fixture
def meaning():
    """Makes the ``meaning`` of a Gaussian mechanism by its mu."""
    return meaning_of
