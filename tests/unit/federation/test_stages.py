"""The privacy pipeline: order, legality, and a conformance suite that every stage passes."""

import numpy as np
import pytest

from medveil.errors import ConfigError, PipelineError
from medveil.federation.stages import NormBound, NormBoundStage, Pipeline, StageContext, build_pipeline, register_stage
from medveil.federation.update import Update

SITE = StageContext(round=1, site="a", sites=("a", "b"))
SERVER = StageContext(round=1, site=None, sites=("a", "b"))


class _Mark:
    """Test stage: writes down when it ran."""

    def __init__(self, role, name="", log=None):
        self.role, self._name, self._log = role, name, log if log is not None else []

    def at_site(self, update, context):
        self._log.append(("site", self._name))
        return update

    def at_server(self, total, context):
        self._log.append(("server", self._name))
        return total

    def event(self, context):
        return self._name or None

    def describe(self):
        return self._name


class StageConformance:
    """What every stage keeps to. Inherit and define ``stage``."""

    def stage(self):
        raise NotImplementedError

    def updates(self):
        rng = np.random.default_rng(0)
        return [Update.from_mean(rng.normal(size=20) * scale, weight) for scale, weight in ((1, 3), (50, 5), (0, 2))]

    def test_shape_weight_and_buffers_survive(self):
        for update in self.updates():
            staged = self.stage().at_site(update, SITE)
            assert staged.vector.shape == update.vector.shape
            assert staged.weight == update.weight

    def test_an_update_is_not_changed_in_place(self):
        for update in self.updates():
            before = np.array(update.vector)
            self.stage().at_site(update, SITE)
            np.testing.assert_array_equal(update.vector, before)

    def test_the_sum_can_be_undone_at_the_server(self):
        stage = self.stage()
        first, *others = [stage.at_site(update, SITE) for update in self.updates()]
        total = sum(others, first)
        assert np.isfinite(stage.at_server(total, SERVER).mean()).all()

    def test_it_says_in_a_sentence_what_it_does(self):
        assert self.stage().describe().endswith(".")


class TestNormBound(StageConformance):
    def stage(self):
        return NormBoundStage(NormBound(l2_norm=2.0))

    def test_long_changes_are_cut_and_short_ones_left(self):
        long, short = Update.from_mean(np.full(4, 10.0), 3.0), Update.from_mean(np.full(4, 0.1), 3.0)
        assert np.linalg.norm(self.stage().at_site(long, SITE).mean()) == pytest.approx(2.0)
        assert self.stage().at_site(short, SITE) is short

    def test_it_promises_no_privacy(self):
        assert self.stage().event(SITE) is None


def test_onion_order():
    log = []
    pipeline = Pipeline([_Mark("clip", "clip", log), _Mark("noise", "noise", log)])
    update = Update.from_mean(np.zeros(1), 1.0)
    pipeline.at_server(pipeline.at_site(update, SITE), SERVER)
    assert log == [("site", "clip"), ("site", "noise"), ("server", "noise"), ("server", "clip")]
    assert pipeline.events(SITE) == ("clip", "noise")


@pytest.mark.parametrize(
    "roles",
    [("noise", "clip"), ("quantise", "noise"), ("mask", "quantise"), ("mask", "transform"), ("clip", "clip")],
)
def test_illegal_orders_are_refused(roles):
    with pytest.raises(PipelineError, match="order"):
        Pipeline([_Mark(role) for role in roles])


def test_the_legal_order_is_accepted():
    Pipeline([_Mark(role) for role in ("transform", "clip", "noise", "quantise", "mask")])


def test_a_plan_names_stages_by_kind():
    assert isinstance(build_pipeline([{"kind": "norm_bound", "l2_norm": 1.0}]).stages[0], NormBoundStage)
    with pytest.raises(PipelineError, match="does not have"):
        build_pipeline([{"kind": "magic"}])
    with pytest.raises(ConfigError, match="l2_norm"):
        build_pipeline([{"kind": "norm_bound", "l2_norm": -1.0}])
    with pytest.raises(PipelineError, match="claim one kind"):
        register_stage("norm_bound", NormBound, NormBoundStage)
