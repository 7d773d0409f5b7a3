"""The audit of a claim passes for the code as it is, and is violated by each mutant planted in the real code."""

import pytest
import torch

from medveil.audit.claim import claim_of
from medveil.audit.run import Effort, audit
from medveil.dp import clipping as clipping_module
from medveil.dp import noise as noise_module
from medveil.dp.sampling import PoissonSampler
from tiny_plans import AUDITED, merged, without

pytestmark = pytest.mark.statistical

EFFORT = Effort(canaries=400, run_steps=40, single_steps=30, sampling_steps=100)

DISTRIBUTED = merged(
    AUDITED,
    """
[data]
partition = { kind = "iid", sites = 4 }
[federation]
rounds = 40
[privacy]
trusted = "nobody"
[privacy.secure_aggregation]
colluding = 1
dropouts = 1
[privacy.dp]
kind = "distributed"
""",
)
LOCAL = merged(
    without(DISTRIBUTED, "[privacy.secure_aggregation]"),
    """
[federation]
rounds = 20
algorithm = { kind = "fedavg", local_steps = 2 }
[privacy.dp]
kind = "local"
""",
)


@pytest.fixture(params=[DISTRIBUTED, LOCAL], ids=["distributed", "local"])
def claim(request, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(request.param, encoding="utf-8")
    return claim_of(path)


def test_the_code_as_it_is(claim):
    found = audit(claim, effort=EFFORT)
    assert (found.verdict, found.violations) == ("consistent", ())
    assert 0 < found.lower_bound < found.claim.epsilon
    assert found.one_step.lower_bound > 0.75 * found.one_step.claimed_epsilon
    content = found.as_dict()
    assert [content["components"][name]["passed"] for name in ("sensitivity", "noise", "sampling")] == [True] * 3
    assert content["components"]["noise"]["claimed"] == pytest.approx(1.5)
    assert content["components"]["sampling"]["claimed"] == pytest.approx(0.2)


def _about(found):
    """Violated components and bounds by name."""
    return {sentence.partition(":")[0] for sentence in found.violations}


def test_noise_off(claim, monkeypatch):
    original = noise_module.rounded_gaussian
    monkeypatch.setattr(noise_module, "rounded_gaussian", lambda *given: 0 * original(*given))
    found = audit(claim, effort=EFFORT)
    assert found.verdict == "violated"
    assert {"noise", "one step", "one run", "one run, independent canaries"} <= _about(found)
    assert found.lower_bound > found.claim.epsilon
    assert not found.as_dict()["components"]["noise"]["passed"]


def test_half_of_the_noise(claim, monkeypatch):
    original = noise_module.rounded_gaussian
    monkeypatch.setattr(noise_module, "rounded_gaussian", lambda std, *given: original(std / 2, *given))
    found = audit(claim, effort=EFFORT)
    assert found.verdict == "violated"
    assert {"noise", "event", "one step", "one run, independent canaries"} <= _about(found)


def test_clip_off(claim, monkeypatch):
    def unclipped(_, norms, __):
        return torch.ones_like(norms), torch.zeros(norms.shape[1], dtype=torch.bool)

    monkeypatch.setattr(clipping_module, "_coefficients", unclipped)
    found = audit(claim, effort=EFFORT)
    assert found.verdict == "violated"
    assert {"sensitivity", "one step"} <= _about(found)
    assert not found.as_dict()["components"]["sensitivity"]["passed"]


def test_everyone_in_every_step(claim, monkeypatch):
    monkeypatch.setattr(PoissonSampler, "draw", lambda self: torch.arange(self.num_units).numpy())
    found = audit(claim, effort=EFFORT)
    assert found.verdict == "violated"
    assert {"sampling-rate", "batch-sizes", "one run, independent canaries"} <= _about(found)
    assert not found.as_dict()["components"]["sampling"]["passed"]
