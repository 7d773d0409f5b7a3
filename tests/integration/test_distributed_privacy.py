"""Plans whose sites share the noise of a step: promises, refusals, crashes at every moment, sites that vanish."""

from contextlib import contextmanager

import numpy as np
import pytest

from medveil.accounting import epsilon
from medveil.accounting.ledger import Ledger
from medveil.errors import AuthenticityError, BudgetError, ConfigError, DivergedError, GuaranteeError, TooFewSitesError
from medveil.federation.local import LocalWork
from medveil.federation.messages import Result, Task, decode, encode
from medveil.federation.secure import outbox
from medveil.federation.secure.outbox import Outbox
from medveil.federation.site import LocalResult, Site
from medveil.federation.stages import Pipeline
from medveil.secagg.site import SiteSession
from medveil.study import arms, federated
from medveil.study.dry_run import dry_run
from medveil.study.plan import load_plan
from medveil.study.privacy import bind_plan
from medveil.study.spending import Account
from medveil.study.train import train

DISTRIBUTED = """
name = "distributed"
task = "classification"
seed = 3
[data]
partition = { kind = "iid", sites = 5 }
splits = { kind = "random", test = 0.25, validation = 0.15 }
[data.source]
kind = "phantom"
task = "classification"
subjects = 100
size = [16, 16]
scanners = 3
seed = 2
difficulty = 0.1
[model]
kind = "cnn"
channels = [4, 8]
strides = [2, 2]
[federation]
rounds = 3
algorithm = { kind = "fedsgd" }
weighting = "equal"
validate_every = 0
[training]
optimiser = { kind = "sgd", lr = 0.5 }
[evaluation]
threshold = 0.5
bootstrap = { resamples = 5 }
[references]
central = false
local_only = false
[privacy]
unit = "patient"
relation = "add-remove"
delta = 1e-3
trusted = "nobody"
held_out = "private"
[privacy.secure_aggregation]
colluding = 1
dropouts = 1
[privacy.dp]
kind = "distributed"
sampling = { rate = 0.3, nominal_units = 60, max_images = 2 }
clipping = { kind = "flat", l2_clip_norm = 0.5 }
noise = { multiplier = 2.0 }
[performance]
workers = 1
"""
CENTRAL = (
    DISTRIBUTED.replace('kind = "distributed"', 'kind = "central"')
    .replace('trusted = "nobody"', 'trusted = "curator"')
    .replace("[privacy.secure_aggregation]\ncolluding = 1\ndropouts = 1\n", "")
)
LOCAL = DISTRIBUTED.replace('kind = "distributed"', 'kind = "local"').replace(
    'kind = "fedsgd"', 'kind = "fedavg", local_steps = 2'
)
THREE = ("data.partition={kind='iid', sites=3}", "privacy.secure_aggregation.colluding=0")
SITES = [f"site-{number}" for number in range(1, 6)]


class PowerCutError(Exception):
    """No error of medveil's: nothing in it may catch this."""


@pytest.fixture
def plan(write_plan):
    return lambda *overrides, text=DISTRIBUTED: load_plan(write_plan(text), overrides)


@pytest.fixture
def run(plan, tmp_path):
    """Train; every run has one ledger folder, whatever its name."""

    def start(*overrides, text=DISTRIBUTED, out="run"):
        return train(plan(*overrides, text=text), tmp_path / out, ledgers=tmp_path / f"ledgers of {out}")

    return start


@pytest.fixture
def releases(tmp_path):
    """``releases()`` gives how many steps each site's ledger was charged."""

    def count(out="run"):
        charged = {}
        for path in sorted((tmp_path / f"ledgers of {out}").glob("*.sqlite")):
            with Ledger(path) as ledger:
                charged[path.stem] = ledger.spent("phantom-classification", delta=1e-3).releases
        return charged

    return count


def test_it_trains_and_says_what_holds_against_whom(run, plan, releases):
    planned = dry_run(plan())["privacy"]
    record = run()
    said, sums = record["privacy"], record["secure_aggregation"]
    # Five sites, one against the others, one absent: three honest shares make up the whole noise. Without a traitor
    # among them there are four.
    options = {"sampling_rate": 0.3, "steps": 3, "delta": 1e-3, "relation": "add-remove"}
    assert said["epsilon_insider"] == pytest.approx(epsilon(noise_multiplier=2.0, **options), rel=1e-3)
    server = epsilon(noise_multiplier=2.0 * (4 / 3) ** 0.5, **options)
    assert said["epsilon_server"] == pytest.approx(server, rel=1e-3)
    assert said["epsilon_server"] < said["epsilon_insider"] == said["epsilon"]
    assert (said["mode"], said["trusted"], said["stamp"], said["steps"]) == ("distributed", "nobody", None, 3)
    assert {key: planned[key] for key in ("epsilon", "epsilon_server")} == {
        key: said[key] for key in ("epsilon", "epsilon_server")
    }
    assert sums["groups"] == [SITES]
    assert (sums["thresholds"], sums["min_included"], sums["colluding"]) == ([4], [4], 1)
    assert (sums["sums_opened"], sums["dropped"], sums["clipped"]) == (3, {}, None)
    assert releases() == dict.fromkeys(SITES, 3)


def test_nothing_but_sealed_answers_leaves_a_site(run, monkeypatch):
    seen = []

    class Spy(federated.Site):
        def join(self):
            seen.append(super().join())
            return seen[-1]

        def receive(self, data):
            answers = super().receive(data)
            seen.extend(answers)
            return answers

    monkeypatch.setattr(federated, "Site", Spy)
    run("federation.rounds=1")
    told = [decode(data) for data in seen]
    assert any(isinstance(message, Result) for message, _ in told)
    for message, tensors in told:
        said = message.model_dump(exclude={"site", "plan_hash", "round"})
        assert said in ({"num_examples": None}, {}, {"form": "sealed", "weight": 1.0, "train_loss": None})
        assert all(tensor.dtype == np.uint8 for tensor in tensors.values())


SECURE_CENTRAL = CENTRAL + "[privacy.secure_aggregation]\n"
STAGES = "privacy.stages=[{kind='norm_bound', l2_norm=0.5}]"
ADAPTIVE = "privacy.dp.clipping={kind='adaptive', l2_clip_norm=1.0, count_noise_multiplier=5.0}"
FEDAVG = 'federation.algorithm={ kind = "fedavg", local_steps = 1 }'
WITHOUT = DISTRIBUTED.replace("[privacy.secure_aggregation]\ncolluding = 1\ndropouts = 1\n", "")
BAD = {
    "no secure aggregation": (WITHOUT, (), GuaranteeError, "without a secure sum"),
    "stages": (DISTRIBUTED, (STAGES,), GuaranteeError, "stage"),
    "limited gradients": (DISTRIBUTED, ("training.max_grad_norm=1.0",), ConfigError, "max_grad_norm"),
    "adaptive clipping": (DISTRIBUTED, (ADAPTIVE,), ConfigError, "adaptive"),
    "local steps": (DISTRIBUTED, (FEDAVG,), ConfigError, "step by step"),
    "trusted curator": (DISTRIBUTED, ("privacy.trusted=curator",), GuaranteeError, "trusted"),
    "central with a secure sum": (SECURE_CENTRAL, (), GuaranteeError, "trusts"),
    "sizes": (DISTRIBUTED, ("federation.weighting=size",), GuaranteeError, "sizes"),
    "two sites of which one may vanish": (
        DISTRIBUTED,
        ("data.partition={kind='iid', sites=2}", "privacy.secure_aggregation.colluding=0"),
        GuaranteeError,
        "threshold",
    ),
    "too many traitors": (DISTRIBUTED, ("privacy.secure_aggregation.colluding=4",), GuaranteeError, "threshold"),
    "small groups": (DISTRIBUTED, ("privacy.secure_aggregation.groups=2",), GuaranteeError, "hides none"),
    "narrow modulus": (
        DISTRIBUTED,
        (
            "privacy.secure_aggregation.modulus_bits=32",
            "privacy.dp.sampling.nominal_units=100000000",
            "privacy.delta=1e-9",
        ),
        ConfigError,
        "modulus",
    ),
}


@pytest.mark.parametrize(("text", "overrides", "error", "word"), BAD.values(), ids=BAD.keys())
def test_what_would_not_protect_is_refused(plan, text, overrides, error, word):
    with pytest.raises(error, match=word):
        dry_run(plan(*overrides, text=text))


def test_a_large_group_with_a_threshold_of_the_small_one_is_refused_before_data_are_read(plan):
    groups = "privacy.secure_aggregation={colluding=0, groups=2, threshold=3}"
    with pytest.raises(GuaranteeError, match="threshold"):
        bind_plan(plan("data.partition={kind='iid', sites=11}", groups))


# --- crashes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def submitted(monkeypatch):
    """Every vector that any site masked, by site: what may have left."""
    seen, original = {}, SiteSession.submit

    def recording(session, vector, context):
        seen.setdefault(session.name, []).append(vector.tobytes())
        return original(session, vector, context)

    monkeypatch.setattr(SiteSession, "submit", recording)
    return seen


def _cut(monkeypatch, owner, name, *, call, before):
    """The power goes at the ``call``-th call of ``name``, before or after it did its work, for good, whoever calls."""
    original, calls = getattr(owner, name), []

    def failing(*arguments, **keywords):
        calls.append(name)
        if len(calls) > call or (before and len(calls) == call):
            raise PowerCutError
        result = original(*arguments, **keywords)
        if len(calls) == call:
            raise PowerCutError
        return result

    monkeypatch.setattr(owner, name, failing)
    return calls


# Three sites in turn: the fourth call is the first site's in round 2, the fifth the second's, the sixth the last's.
MOMENTS = [
    (Ledger, "reserve", (4, 6)),
    (LocalWork, "train", (5,)),
    (outbox, "save_snapshot", (4, 6)),
    (SiteSession, "submit", (5,)),
    (Ledger, "commit", (4, 6)),
    (Outbox, "accept", (4, 5, 6)),
    (arms, "save_snapshot", (2,)),
]
CUTS = [
    pytest.param(owner, name, call, before, id=f"{'before' if before else 'after'} {name} {call}")
    for owner, name, calls in MOMENTS
    for call in calls
    for before in (True, False)
]


@pytest.mark.parametrize(("owner", "name", "call", "before"), CUTS)
def test_whenever_it_dies_every_round_is_charged_once_and_released_once(
    run, releases, submitted, monkeypatch, owner, name, call, before
):
    with monkeypatch.context() as patched:
        calls = _cut(patched, owner, name, call=call, before=before)
        with pytest.raises(PowerCutError):
            run(*THREE)
        assert len(calls) >= call
    between = releases()
    for site, vectors in submitted.items():  # nothing left that was not charged before
        assert between[site] >= len(set(vectors)) >= 1
    record = run(*THREE)
    assert record["training"]["rounds_run"] == 3
    assert record["privacy"]["steps"] == 3
    assert releases() == dict.fromkeys(SITES[:3], 3)
    assert {site: len(set(vectors)) for site, vectors in submitted.items()} == dict.fromkeys(SITES[:3], 3)


def test_it_may_die_again_and_again(run, releases, submitted, monkeypatch):
    for owner, name in ((Outbox, "accept"), (Ledger, "commit"), (outbox, "save_snapshot"), (arms, "save_snapshot")):
        with monkeypatch.context() as patched:
            _cut(patched, owner, name, call=2 if owner is not arms else 1, before=owner is arms)
            with pytest.raises(PowerCutError):
                run(*THREE)
    assert run(*THREE)["privacy"]["steps"] == 3
    assert releases() == dict.fromkeys(SITES[:3], 3)
    assert {site: len(set(vectors)) for site, vectors in submitted.items()} == dict.fromkeys(SITES[:3], 3)


def test_without_a_memory_the_same_crash_costs_a_second_release_and_the_plan_is_used_up(
    run, releases, submitted, monkeypatch
):
    """The test above can fail: a site that forgets what it gave gives, and is charged, anew; and never too often."""
    monkeypatch.setattr(Outbox, "has", lambda *_: False)
    monkeypatch.setattr(Outbox, "contribution", lambda _box, _number, _start, compute: compute())
    monkeypatch.setattr(Outbox, "accept", lambda *_: None)
    with monkeypatch.context() as patched:
        _cut(patched, arms, "save_snapshot", call=2, before=True)
        with pytest.raises(PowerCutError):
            run(*THREE)
    with pytest.raises(TooFewSitesError, match="more releases than the plan has"):
        run(*THREE)
    assert releases() == dict.fromkeys(SITES[:3], 3)
    assert len(set(submitted["site-1"])) == 3


@contextmanager
def _failing(monkeypatch, *names, from_round=1):
    """These sites fail in and after a round."""
    original = federated.Site.receive

    def receive(site, data):
        message, _ = decode(data)
        if site.name in names and isinstance(message, Task) and message.train and message.round >= from_round:
            raise DivergedError("The connection is gone")
        return original(site, data)

    with monkeypatch.context() as patched:
        patched.setattr(federated.Site, "receive", receive)
        yield


def test_a_plan_that_counts_on_all_shares_of_the_noise_opens_nothing_without_one(run, submitted, monkeypatch):
    """The threshold alone (three of five) would let the sum be opened, with three fifths of the noise."""
    everyone = (
        "privacy.secure_aggregation.colluding=0",
        "privacy.secure_aggregation.dropouts=0",
        "federation.rounds=2",
    )
    with _failing(monkeypatch, "site-5", from_round=2), pytest.raises(TooFewSitesError):
        run(*everyone)
    assert submitted
    assert run(*everyone)["secure_aggregation"]["min_included"] == [5]


def test_a_round_that_was_opened_is_not_opened_over_other_sites(run, releases, monkeypatch):
    """The difference of the two sums would be one site's step with that site's share of the noise alone."""
    with monkeypatch.context() as patched:
        _cut(patched, arms, "save_snapshot", call=2, before=True)
        with pytest.raises(PowerCutError):
            run()
    with _failing(monkeypatch, "site-2"), pytest.raises(TooFewSitesError, match="second time"):
        run()
    assert releases() == dict.fromkeys(SITES, 2)
    assert run()["privacy"]["steps"] == 3  # with all of them it goes on
    assert releases() == dict.fromkeys(SITES, 3)


def test_a_round_that_was_not_opened_goes_on_with_fewer(run, releases, monkeypatch):
    with monkeypatch.context() as patched:
        _cut(patched, Outbox, "accept", call=6, before=True)
        with pytest.raises(PowerCutError):
            run()
    with _failing(monkeypatch, "site-2", from_round=2):
        record = run()
    assert set(record["training"]["lost_sites"]) == {"site-2"}
    assert releases() == dict.fromkeys(SITES, 3) | {"site-2": 2}


@pytest.mark.parametrize("from_round", [1, 2])
def test_a_site_that_vanishes_changes_no_promise(run, plan, releases, monkeypatch, from_round):
    with _failing(monkeypatch, "site-4", from_round=from_round):
        record = run()
    said = record["privacy"]
    planned = dry_run(plan())["privacy"]
    assert (said["epsilon"], said["epsilon_server"]) == (planned["epsilon"], planned["epsilon_server"])
    assert record["training"]["rounds_run"] == 3
    assert set(record["training"]["lost_sites"]) == {"site-4"}
    assert record["secure_aggregation"]["dropped"] == {"site-4": 1}
    assert releases() == dict.fromkeys(SITES, 3) | {"site-4": from_round - 1}


def test_one_more_ends_the_run(run, monkeypatch):
    with _failing(monkeypatch, "site-4", "site-1", from_round=2), pytest.raises(TooFewSitesError):
        run()


# --- a server that lies ----------------------------------------------------------------------------------------------


class FakeWork:
    """Draws another vector each time."""

    num_examples, num_validation = None, 0

    def __init__(self):
        self.calls = 0

    def train(self, round_number, weights, buffers):
        del round_number, weights
        self.calls += 1
        return LocalResult("grid", np.full(3, self.calls, np.int64), buffers, None)

    def validate(self, weights, buffers):
        raise NotImplementedError


class Unmasked:
    """The memory of a site without the protocol around it."""

    def __init__(self, folder):
        self._box, self.sent = Outbox(folder), []

    def receive(self, frames):
        del frames

    def known(self, number, start):
        return self._box.has(number, start)

    def contribute(self, number, start, compute):
        vector = self._box.contribution(number, start, lambda: compute().content.astype(np.uint64))
        self.sent.append(vector.tobytes())
        return []


@pytest.mark.parametrize("forgotten", ["commit before the crash", "commit lost with the power", "nothing"])
@pytest.mark.parametrize("others", [False, True], ids=["at once", "after another round"])
def test_the_same_round_from_other_weights_is_refused(plan, tmp_path, monkeypatch, forgotten, others):
    """A server that asks twice, across a crash, gets one vector for one charge."""
    bound = bind_plan(plan())
    sent, work = [], FakeWork()

    def asked(*tasks, cut=None):
        account = Account(tmp_path / "one.sqlite", run="r", dataset="d", bound=bound, per_round=1)
        account.open()
        sealing = Unmasked(tmp_path / "box")
        site = Site(
            "a",
            plan_hash="p",
            work=work,
            weighting="equal",
            pipeline=Pipeline(),
            spending=account,
            sealing=sealing,
        )
        with monkeypatch.context() as patched:
            if cut == "commit lost with the power":
                patched.setattr(Ledger, "commit", lambda *_: None)
            if cut == "commit before the crash":
                _cut(patched, Ledger, "commit", call=1, before=True)
            for number, fill in tasks:
                task = Task(round=number, validate_model=False, train=True, sites=["a"])
                model = {"weights": np.full(2, fill, np.float32), "buffers": np.zeros(0, np.float32)}
                if cut == "commit before the crash":
                    with pytest.raises(PowerCutError):
                        site.receive(encode(task, model))
                    continue
                site.receive(encode(task, model))
        if cut != "commit before the crash":
            sent.extend(sealing.sent)
        account._ledger.close()

    asked((1, 0.0), cut=forgotten)
    asked((1, 0.0), *([(2, 0.0)] if others else []))  # sent again, the same
    with pytest.raises(AuthenticityError, match="past" if others else "other weights"):
        asked((1, 7.0))
    with Ledger(tmp_path / "one.sqlite") as ledger:
        charged = ledger.spent("d", delta=1e-3).releases
    assert len(set(sent)) == (2 if others else 1)
    assert charged == len(set(sent))


def test_a_strict_account_pays_for_the_plan_and_no_more(plan, tmp_path):
    """Whatever the server calls its rounds, and though the ledger has no cap."""
    bound = bind_plan(plan())
    options = {"run": "r", "dataset": "d", "bound": bound, "per_round": 1}
    account = Account(tmp_path / "one.sqlite", **options, strict=True)
    account.open()
    with pytest.raises(PowerCutError), account.release(1, nothing_left=True):
        raise PowerCutError
    for number in (1, 2, 2):  # the first pays for what was begun and never left
        with account.release(number, nothing_left=number == 1):
            pass
    with pytest.raises(BudgetError, match="more releases than the plan has"), account.release(3, nothing_left=True):
        raise AssertionError("this must not be reached")
    account.close()
    with Ledger(tmp_path / "one.sqlite") as ledger:
        assert ledger.spent("d", delta=1e-3).releases == bound.steps == 3


# --- other tasks, other mechanisms -----------------------------------------------------------------------------------


def test_local_privacy_behind_a_secure_sum(run, plan, releases, submitted):
    """Every site's noise is enough for its own patients; the sum hides which site moved what."""
    record = run("federation.rounds=2", text=LOCAL)
    said = record["privacy"]
    assert (
        said["epsilon"]
        == said["epsilon_server"]
        == dry_run(plan("federation.rounds=2", text=LOCAL))["privacy"]["epsilon"]
    )
    assert record["secure_aggregation"]["sums_opened"] == 2
    assert record["secure_aggregation"]["clipped"] is None
    assert releases() == dict.fromkeys(SITES, 4)
    assert {site: len(set(vectors)) for site, vectors in submitted.items()} == dict.fromkeys(SITES, 2)


def test_local_privacy_is_charged_once_across_a_crash(run, releases, submitted, monkeypatch):
    with monkeypatch.context() as patched:
        _cut(patched, arms, "save_snapshot", call=1, before=True)
        with pytest.raises(PowerCutError):
            run("federation.rounds=2", text=LOCAL)
    run("federation.rounds=2", text=LOCAL)
    assert releases() == dict.fromkeys(SITES, 4)
    assert {site: len(set(vectors)) for site, vectors in submitted.items()} == dict.fromkeys(SITES, 2)


@pytest.mark.parametrize("size", ["[16, 16]", "[16, 16, 16]"], ids=["2D", "3D"])
def test_segmentation(run, size):
    text = DISTRIBUTED.replace('task = "classification"', 'task = "segmentation"').replace(
        'kind = "cnn"\nchannels = [4, 8]\nstrides = [2, 2]', 'kind = "unet"\ndepth = 1\nwidth = 2'
    )
    text = text.replace("[training]\n", '[training]\nloss = { kind = "dice_ce" }\n').replace("[16, 16]", size)
    text = text.replace("threshold = 0.5\n", "").replace("subjects = 100", "subjects = 15")
    record = run("federation.rounds=1", "privacy.delta=5e-3", text=text)
    assert record["secure_aggregation"]["sums_opened"] == 1
    assert 0 <= record["test"]["dice"]["value"] <= 1


# --- how much noise --------------------------------------------------------------------------------------------------

NOBODY_DRAWN = (
    "privacy.dp.sampling.rate=1e-9",
    "model.channels=[32, 96, 128]",
    "model.strides=[2, 2, 2]",
    "federation.rounds=1",
    "training.optimiser.lr=1e-12",
    "data.source.subjects=60",
)


@pytest.fixture
def released(run, monkeypatch):
    """``released(...)`` gives the mean gradient that the server steps with; nobody is drawn, so all of it is noise."""

    def mean_of(*overrides, text=DISTRIBUTED, out="run"):
        seen = []
        original = federated.ServerOptimiser.apply

        def apply(step, weights, mean, progress):
            seen.append(mean)
            return original(step, weights, mean, progress)

        with monkeypatch.context() as patched:
            patched.setattr(federated.ServerOptimiser, "apply", apply)
            run(*NOBODY_DRAWN, *overrides, text=text, out=out)
        [mean] = seen
        assert mean.size > 100_000
        return mean

    return mean_of


@pytest.mark.statistical
def test_distributed_noise_is_as_large_as_central_and_as_much_larger_as_it_must(released, monkeypatch):
    """Within 1 %, which is at least four standard errors; one share more or less is 10 % off."""
    central = released(text=CENTRAL, out="central").std()
    shared = released("privacy.secure_aggregation={colluding=0, dropouts=0}", out="all")
    robust = released(out="robust")
    with _failing(monkeypatch, "site-3"):
        without = released(out="without")
    assert central == pytest.approx(2.0 * 0.5 / (1e-9 * 60), rel=0.01)  # sigma * clip norm / divisor
    assert shared.std() == pytest.approx(central, rel=0.01)
    assert robust.std() == pytest.approx(central * (5 / 3) ** 0.5, rel=0.01)
    assert without.std() == pytest.approx(central * (4 / 3) ** 0.5, rel=0.01)
    for mean in (shared, robust, without):
        assert abs(mean.mean()) < 6 * mean.std() / mean.size**0.5
