"""Site and coordinator as state machines, without torch: rounds, losses, refusals, restarts."""

import numpy as np
import pytest

from medveil.errors import ConfigError, DivergedError, MessageError, ProtocolError, TooFewSitesError
from medveil.federation.coordinator import Coordinator, Watch
from medveil.federation.inprocess import InProcess
from medveil.federation.messages import Join, Result, Scores, Stop, Task, decode, encode
from medveil.federation.server import Averaging
from medveil.federation.settings import EarlyStopping, FedAvg, Federation
from medveil.federation.site import LocalResult, Site
from medveil.federation.snapshot import load_snapshot, save_snapshot
from medveil.federation.stages import NormBound, NormBoundStage, Pipeline

EMPTY = np.zeros(0, np.float32)


class FakeWork:
    """Moves the weights half-way to the site's own target."""

    def __init__(self, target, examples=10, validation=4, fail_in=None):
        self.target, self.num_examples, self.num_validation = np.float32(target), examples, validation
        self.fail_in = fail_in
        self.trained = []

    def train(self, round_number, weights, buffers):
        if round_number == self.fail_in:
            raise DivergedError("The training loss is not finite")
        self.trained.append(round_number)
        return LocalResult("weights", (weights + (self.target - weights) / 2).astype(np.float32), buffers, 1.0)

    def validate(self, weights, buffers):
        return {"loss": float(np.abs(weights - self.target).mean()), "auc": None}


def _federation(works, *, rounds=3, pipeline=None, watch=None, **settings):
    chosen = Federation(rounds=rounds, algorithm=FedAvg(local_steps=1), **settings)
    stages = pipeline or Pipeline()
    sites = {
        name: Site(name, plan_hash="p", work=work, weighting=chosen.weighting, pipeline=stages)
        for name, work in works.items()
    }
    coordinator = Coordinator(
        plan_hash="p",
        sites=list(sites),
        settings=chosen,
        metric="loss",
        server=Averaging(),
        pipeline=stages,
        weights=np.zeros(3, np.float32),
        buffers=EMPTY,
        watch=watch,
    )
    return coordinator, sites


def _run(works, **settings):
    coordinator, sites = _federation(works, **settings)
    transport = InProcess(sites, workers=settings.get("workers", 2))
    transport.run(coordinator)
    return coordinator, transport


def test_rounds_are_weighted_by_size():
    coordinator, _ = _run({"a": FakeWork(1.0, examples=30), "b": FakeWork(5.0, examples=10)}, rounds=1)
    np.testing.assert_allclose(coordinator.weights, (30 * 0.5 + 10 * 2.5) / 40)


def test_or_equally():
    coordinator, _ = _run(
        {"a": FakeWork(1.0, examples=30), "b": FakeWork(5.0, examples=10)}, rounds=1, weighting="equal"
    )
    np.testing.assert_allclose(coordinator.weights, 1.5)


def test_the_number_of_workers_changes_nothing():
    works = lambda: {name: FakeWork(number, examples=3 + number) for number, name in enumerate("abcde")}  # noqa: E731
    one, _ = _federation_run(works(), workers=1)
    four, _ = _federation_run(works(), workers=4)
    np.testing.assert_array_equal(one.weights, four.weights)


def _federation_run(works, *, workers):
    coordinator, sites = _federation(works, rounds=4)
    transport = InProcess(sites, workers=workers)
    transport.run(coordinator)
    return coordinator, transport


def test_every_site_is_told_the_end():
    coordinator, sites = _federation({"a": FakeWork(1.0), "b": FakeWork(2.0)})
    InProcess(sites, workers=1).run(coordinator)
    assert coordinator.done
    assert all(site.finished for site in sites.values())
    with pytest.raises(ProtocolError, match="after the end"):
        sites["a"].receive(encode(Stop(reason="")))


def test_bytes_are_counted_in_both_directions():
    _, transport = _run({"a": FakeWork(1.0), "b": FakeWork(2.0)}, rounds=2)
    traffic = transport.traffic()
    assert traffic.sent["a"] == traffic.sent["b"] > 2 * 3 * 4
    assert traffic.received["a"] > 2 * 3 * 4


def test_rows_say_what_a_round_gave():
    rows = []
    _run({"a": FakeWork(5.0), "b": FakeWork(5.0)}, watch=Watch(round_done=rows.append), validate_every=2)
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert [row["validation"] is None for row in rows] == [True, False, False]
    assert rows[1]["validation"]["loss"] > rows[2]["validation"]["loss"]
    assert "auc" not in rows[1]["validation"]  # no site could compute it
    assert rows[0]["train_loss"] == 1.0


def test_a_lost_site_is_left_out_when_the_plan_allows():
    works = {"a": FakeWork(1.0), "b": FakeWork(2.0), "c": FakeWork(9.0, fail_in=2)}
    coordinator, _ = _run(works, min_sites=2)
    assert coordinator.lost.keys() == {"c"}
    assert "not finite" in coordinator.lost["c"]
    assert works["a"].trained == [1, 2, 3]


def test_too_few_sites_stop_the_run():
    with pytest.raises(TooFewSitesError, match="at least 2"):
        _run({"a": FakeWork(1.0), "b": FakeWork(2.0, fail_in=1)})


def test_early_stopping_and_best_weights():
    class Worse(FakeWork):
        def validate(self, weights, buffers):
            return {"loss": float(abs(weights.mean() - 0.5))}

    coordinator, _ = _run(
        {"a": Worse(1.0)},
        rounds=10,
        early_stopping=EarlyStopping(metric="loss", patience=2),
        select="best",
    )
    assert coordinator.round == 3
    assert coordinator.selection.best_round == 1
    np.testing.assert_allclose(coordinator.selection.chosen(coordinator.weights, EMPTY)[0], 0.5)


def test_stages_run_on_the_way():
    pipeline = Pipeline([NormBoundStage(NormBound(l2_norm=0.1))])
    coordinator, _ = _run({"a": FakeWork(10.0)}, rounds=1, pipeline=pipeline)
    assert np.linalg.norm(coordinator.weights) == pytest.approx(0.1, rel=1e-5)


def test_a_site_that_skips_the_stages_is_refused():
    coordinator, _ = _federation({"a": FakeWork(1.0)}, pipeline=Pipeline([NormBoundStage(NormBound(l2_norm=1.0))]))
    coordinator.receive("a", encode(Join(site="a", plan_hash="p", num_examples=1)))
    clear = Result(round=1, form="weights", weight=1.0, train_loss=0.0)
    with pytest.raises(ProtocolError, match="privacy stages ask"):
        coordinator.receive("a", encode(clear, {"values": np.zeros(3, np.float32), "buffers": EMPTY}))


def test_a_site_that_sends_garbage_is_lost_and_the_others_go_on():
    coordinator, sites = _federation({"a": FakeWork(1.0), "b": FakeWork(2.0)}, min_sites=1)
    honest = sites["b"].receive
    sites["b"].receive = lambda data: [b"garbage"] if decode(data)[0].__class__ is Task else honest(data)
    InProcess(sites, workers=2).run(coordinator)
    assert coordinator.done
    assert set(coordinator.lost) == {"b"}


def test_losing_a_site_after_the_end_changes_nothing():
    coordinator, sites = _federation({"a": FakeWork(1.0)})
    InProcess(sites, workers=1).run(coordinator)
    assert coordinator.lose("a", "connection closed") == []


def test_a_plan_cannot_ask_for_more_sites_than_there_are():
    with pytest.raises(ConfigError, match="more sites than there are"):
        _federation({"a": FakeWork(1.0)}, min_sites=2)


def test_undefined_scores_do_not_stop_a_training():
    class Blind(FakeWork):
        def validate(self, weights, buffers):
            return {}

    coordinator, _ = _run({"a": Blind(1.0)}, rounds=5, early_stopping=EarlyStopping(metric="loss", patience=1))
    assert coordinator.round == 5


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_restart_ends_with_the_same_weights(tmp_path, stop_after):
    class CrashError(Exception):
        pass

    def works():
        return {"a": FakeWork(1.0), "b": FakeWork(7.0, examples=3)}

    straight, _ = _run(works(), rounds=4, select="best")
    path = tmp_path / "state.safetensors"

    def commit(row):
        save_snapshot(first.snapshot(), path)
        if row["round"] == stop_after:
            raise CrashError

    first, sites = _federation(works(), rounds=4, select="best", watch=Watch(round_done=commit))
    with pytest.raises(CrashError):
        InProcess(sites, workers=1).run(first)
    second, sites = _federation(works(), rounds=4, select="best")
    second.restore(load_snapshot(path))
    assert second.round == stop_after
    InProcess(sites, workers=1).run(second)
    np.testing.assert_array_equal(second.weights, straight.weights)
    assert second.selection.best_round == straight.selection.best_round


def _joined(**settings):
    coordinator, _ = _federation({"a": FakeWork(1.0), "b": FakeWork(2.0)}, **settings)
    for name in ("a", "b"):
        out = coordinator.receive(name, encode(Join(site=name, plan_hash="p", num_examples=1)))
    assert [message.site for message in out] == ["a", "b"]
    return coordinator


RESULT = Result(round=1, form="weights", weight=1.0, train_loss=0.0)
GOOD = {"values": np.zeros(3, np.float32), "buffers": EMPTY}


@pytest.mark.parametrize(
    ("site", "message", "tensors", "error", "said"),
    [
        ("x", RESULT, GOOD, ProtocolError, "does not take part"),
        ("a", Join(site="a", plan_hash="p", num_examples=1), {}, ProtocolError, "wrong moment"),
        ("a", Scores(round=1, num_examples=1), {}, ProtocolError, "wrong moment"),
        ("a", RESULT.model_copy(update={"round": 2}), GOOD, ProtocolError, "another round"),
        ("a", RESULT.model_copy(update={"form": "sum"}), GOOD, ProtocolError, "privacy stages"),
        ("a", RESULT.model_copy(update={"form": "mean"}), GOOD, ProtocolError, "algorithm"),
        ("a", RESULT.model_copy(update={"weight": 1e9}), GOOD, ProtocolError, "another weight"),
        ("a", RESULT, {"values": np.zeros(3, np.float64), "buffers": EMPTY}, MessageError, "another dtype"),
        ("a", RESULT, {"values": np.zeros(3, np.uint32), "buffers": EMPTY}, MessageError, "another dtype"),
        ("a", RESULT, {"values": np.zeros(4, np.float32), "buffers": EMPTY}, MessageError, "model's size"),
        ("a", RESULT, {"buffers": EMPTY}, MessageError, "model's size"),
    ],
)
def test_the_coordinator_refuses_what_does_not_belong(site, message, tensors, error, said):
    with pytest.raises(error, match=said):
        _joined().receive(site, encode(message, tensors))


def test_an_answer_counts_once():
    coordinator = _joined()
    coordinator.receive("a", encode(RESULT, GOOD))
    with pytest.raises(ProtocolError, match="twice"):
        coordinator.receive("a", encode(RESULT, GOOD))


@pytest.mark.parametrize(
    ("join", "said"),
    [
        (Join(site="b", plan_hash="p", num_examples=1), "another site's name"),
        (Join(site="a", plan_hash="q", num_examples=1), "another plan"),
    ],
)
def test_joining_under_false_pretences_is_refused(join, said):
    coordinator, _ = _federation({"a": FakeWork(1.0), "b": FakeWork(2.0)})
    with pytest.raises(ProtocolError, match=said):
        coordinator.receive("a", encode(join))


def test_a_site_refuses_what_is_not_for_sites():
    _, sites = _federation({"a": FakeWork(1.0)})
    with pytest.raises(ProtocolError, match="only a coordinator"):
        sites["a"].receive(encode(RESULT, GOOD))
    task = Task(round=1, validate_model=False, train=True, sites=["a"])
    with pytest.raises(ProtocolError, match="before any weights"):
        sites["a"].receive(encode(task))
    with pytest.raises(ProtocolError, match="should"):
        sites["a"].receive(encode(task, {"weights": np.zeros(3, np.float64), "buffers": EMPTY}))


def test_weights_travel_once_a_round():
    coordinator, sites = _federation({"a": FakeWork(1.0)}, rounds=1)
    first = coordinator.receive("a", sites["a"].join())
    assert set(decode(first[0].data)[1]) == {"weights", "buffers"}
    validate = coordinator.receive("a", sites["a"].receive(first[0].data)[0])
    assert set(decode(validate[0].data)[1]) == {"weights", "buffers"}


class TransportConformance:
    """What every transport keeps to. Inherit and define ``transport``."""

    def transport(self, sites):
        raise NotImplementedError

    def test_it_runs_to_the_end_and_counts_what_it_carried(self):
        coordinator, sites = _federation({"a": FakeWork(1.0), "b": FakeWork(3.0)})
        transport = self.transport(sites)
        transport.run(coordinator)
        assert coordinator.done
        assert transport.name
        assert set(transport.traffic().sent) == {"a", "b"}
        assert min(transport.traffic().sent.values()) > 0

    def test_it_reports_a_site_that_fails(self):
        coordinator, sites = _federation({"a": FakeWork(1.0), "b": FakeWork(3.0, fail_in=2)}, min_sites=1)
        self.transport(sites).run(coordinator)
        assert set(coordinator.lost) == {"b"}

    def test_two_runs_give_the_same_weights(self):
        def once():
            coordinator, sites = _federation({"a": FakeWork(1.0), "b": FakeWork(3.0)})
            self.transport(sites).run(coordinator)
            return coordinator.weights

        np.testing.assert_array_equal(once(), once())


class TestInProcess(TransportConformance):
    def transport(self, sites):
        return InProcess(sites, workers=2)
