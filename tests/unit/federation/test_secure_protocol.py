"""Coordinator and sites with a secure sum between them: same result, sites that vanish, restarts."""

import numpy as np
import pytest
from secure_rig import NAMES, SECURE, WEIGHTS, Run, Vanishing, Work, works

from medveil.errors import ProtocolError, TooFewSitesError
from medveil.federation.coordinator import Watch
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.settings import FedAvg, FedSgd
from medveil.federation.snapshot import load_snapshot, save_snapshot
from medveil.federation.stages import NormBound, NormBoundStage
from medveil.rng import Seeds


@pytest.mark.parametrize("weighting", ["size", "equal"])
@pytest.mark.parametrize("algorithm", [FedAvg(local_steps=1), FedSgd()], ids=["fedavg", "fedsgd"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("buffers", [(), (0.5,)], ids=["no buffers", "buffers"])
def test_the_result_is_that_of_the_clear_run(tmp_path, weighting, algorithm, groups, buffers):
    """And so are losses, scores and what is selected by them: to the resolution of the sums."""
    form = "mean" if isinstance(algorithm, FedSgd) else "weights"
    sites = 5 if groups == 1 else 6
    parts = works(form, 5) | ({"f": Work([0.1] * 3, form=form)} if sites == 6 else {})
    options = {"weighting": weighting, "algorithm": algorithm, "buffers": buffers, "select": "best"}
    settings = SecureAggregation(groups=groups)
    clear = Run(parts, tmp_path, **_split(options)).go()
    secure = Run(parts, tmp_path, secure=settings, **_split(options)).go(workers=3)
    np.testing.assert_allclose(secure.coordinator.weights, clear.coordinator.weights, rtol=0, atol=3e-7)
    np.testing.assert_allclose(secure.coordinator.buffers, clear.coordinator.buffers, rtol=0, atol=3e-7)
    assert secure.coordinator.selection.best_round == clear.coordinator.selection.best_round
    for told, expected in zip(secure.rows, clear.rows, strict=True):
        assert told["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-4)
        assert told["validation"] == pytest.approx(expected["validation"], abs=1e-5)
    counts = secure.secure.describe()
    assert counts["sums_opened"] == 6 * groups
    assert counts["clipped"] == 0


@pytest.mark.parametrize("algorithm", [FedAvg(local_steps=1), FedSgd()], ids=["fedavg", "fedsgd"])
@pytest.mark.parametrize("gone", [None, "b"], ids=["all there", "one gone"])
def test_with_blocks_every_coordinate_moves_in_its_round_as_in_a_clear_one(tmp_path, algorithm, gone):
    """Targets are held coordinate by coordinate, so one round of three blocks each is one clear round of all."""
    form = "mean" if isinstance(algorithm, FedSgd) else "weights"
    secure = Run(works(form), tmp_path, secure=SecureAggregation(blocks=3), algorithm=algorithm)
    remaining = works(form)
    if gone is not None:
        secure.sites[gone] = Vanishing(secure.sites[gone], "joining")
        del remaining[gone]
    secure.go()
    clear = Run(remaining, tmp_path, algorithm=algorithm, rounds=1).go()
    np.testing.assert_allclose(secure.coordinator.weights, clear.coordinator.weights, rtol=0, atol=3e-7)


def test_each_round_of_blocks_moves_one_block_and_sends_no_more(tmp_path):
    sums = []

    def opened(run):
        original = run.secure.update

        def update(round_number):
            total, loss = original(round_number)
            sums.append((round_number, total.mean().nonzero()[0].tolist(), run.secure._opened[0].total.size))
            return total, loss

        run.secure.update = update

    run = Run(works(), tmp_path, secure=SecureAggregation(blocks=2), rounds=4)
    opened(run)
    run.go()
    extra = run.secure._groups[0].packing.length - len(WEIGHTS)
    assert sums == [(1, [0], 1 + extra), (2, [1, 2], 2 + extra), (3, [0], 1 + extra), (4, [1, 2], 2 + extra)]


def _split(options):
    return {key: value for key, value in options.items() if key != "buffers"} | {"buffers": options["buffers"]}


def test_stages_run_before_the_sum(tmp_path):
    bound = [NormBoundStage(NormBound(l2_norm=0.05))]
    clear = Run(works(), tmp_path, pipeline=bound).go()
    secure = Run(works(), tmp_path, pipeline=bound, secure=SECURE).go()
    np.testing.assert_allclose(secure.coordinator.weights, clear.coordinator.weights, atol=1e-6)


def test_a_site_without_validation_data_hides_that(tmp_path):
    parts = works()
    parts["a"].num_validation = 0
    clear, secure = Run(parts, tmp_path).go(), Run(parts, tmp_path, secure=SECURE).go()
    assert secure.rows[-1]["validation"] == pytest.approx(clear.rows[-1]["validation"], abs=1e-5)


def test_one_round_without_validation(tmp_path):
    secure = Run(works(), tmp_path, secure=SECURE, validate_every=0, rounds=2).go()
    assert [row["validation"] for row in secure.rows] == [None, None]
    assert secure.secure.counts.sums_opened == 2


POINTS = ["joining", "preparing", "before upload", "half-way", "after upload", "at opening", "validating"]


def _vanishing(tmp_path, point, count, **settings):
    run = Run(works(), tmp_path, secure=SecureAggregation(**settings), weighting="equal")
    for name in NAMES[:count]:
        run.sites[name] = Vanishing(run.sites[name], point)
    return run


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("count", [1, 2])
def test_sites_that_vanish_up_to_dropouts_cost_nothing(tmp_path, point, count):
    run = _vanishing(tmp_path, point, count, dropouts=2).go()
    assert set(run.coordinator.lost) == set(NAMES[:count])
    assert [row["round"] for row in run.rows] == [1, 2, 3]
    np.testing.assert_allclose(run.coordinator.weights, _by_hand(point, count), atol=1e-6)


def _by_hand(point, count):
    """The weights after three rounds, in which the first sites took part for as long as they were there."""
    targets = [work.target.astype(float) for work in works().values()]
    whole = {"joining": 0, "preparing": 0, "before upload": 1, "half-way": 1}.get(point, 2)  # what was uploaded counts
    weights = WEIGHTS.astype(float)
    for number in (1, 2, 3):
        present = targets if number <= whole else targets[count:]
        weights = weights + (np.mean(present, axis=0) - weights) / 2
    return weights


@pytest.mark.parametrize("point", POINTS)
def test_one_more_than_dropouts_ends_the_run_and_opens_nothing(tmp_path, point):
    run = _vanishing(tmp_path, point, 3, dropouts=2)
    with pytest.raises(TooFewSitesError):
        run.go()
    finished = {"joining": 0, "preparing": 0, "validating": 2}.get(point, 1)
    assert run.coordinator.round == finished
    # Round 2 was never opened: its sum is neither in the count nor in the weights.
    assert run.secure.counts.sums_opened == {0: 0, 1: 2, 2: 3}[finished]
    if finished == 1:
        targets = [work.target.astype(float) for work in works().values()]
        np.testing.assert_allclose(run.coordinator.weights, (WEIGHTS + np.mean(targets, axis=0)) / 2, atol=1e-6)


def test_no_dropouts_means_none(tmp_path):
    with pytest.raises(TooFewSitesError):
        _vanishing(tmp_path, "before upload", 1, dropouts=0).go()


def test_a_group_that_is_too_small_ends_the_run_though_enough_are_left(tmp_path):
    parts = works() | {"f": Work([0.1] * 3)}
    settings = SecureAggregation(groups=2)
    small = settings.deal(list(parts), Seeds(1))[0]
    run = Run(parts, tmp_path, secure=settings, weighting="equal")
    for name in small[:2]:
        run.sites[name] = Vanishing(run.sites[name], "before upload")
    with pytest.raises(TooFewSitesError):
        run.go()


def _huge(combine, folder, **options):
    parts = {name: Work([0.2, 0.1, -0.1], form="weights") for name in "abcdefghi"}
    parts["e"] = Work([1e9, -1e9, 1e9])
    settings = SecureAggregation(groups=3, combine=combine, **options)
    zeros = np.zeros(3, np.float32)
    run = Run(parts, folder, secure=settings, weighting="equal", rounds=1, weights=zeros, buffers=(0.0,))
    return run.go()


def test_the_median_of_groups_resists_one_huge_site(tmp_path):
    honest = np.array([0.1, 0.05, -0.05])
    median, mean = _huge("median", tmp_path / "median"), _huge("mean", tmp_path / "mean")
    np.testing.assert_allclose(median.coordinator.weights, honest, atol=1e-6)
    np.testing.assert_allclose(median.coordinator.buffers, [0.1], atol=1e-6)  # running statistics too
    assert np.abs(mean.coordinator.weights - honest).max() > 0.09  # the range bounds it, no more
    assert np.abs(mean.coordinator.weights).max() <= (8 * 0.1 + 1) / 9 + 1e-6


def test_a_norm_bound_refuses_the_group_of_a_huge_site(tmp_path):
    run = _huge("mean", tmp_path, l2_norm=0.3)
    np.testing.assert_allclose(run.coordinator.weights, [0.1, 0.05, -0.05], atol=1e-6)
    assert run.secure.describe()["refused_groups"] == 1


def test_a_norm_bound_that_no_group_keeps_ends_the_run(tmp_path):
    with pytest.raises(ProtocolError, match="l2_norm"):
        _huge("mean", tmp_path, l2_norm=0.01)


def test_what_is_clipped_is_counted_over_all_rounds(tmp_path):
    parts = {name: Work([0.0, 0.0, 8.0 if name == "b" else 0.0]) for name in NAMES}
    run = Run(parts, tmp_path, secure=SecureAggregation(value_range=0.5), weights=np.zeros(3)).go()
    assert run.secure.describe()["clipped"] == 3


class PowerCutError(Exception):
    """Nothing in medveil may catch this."""


@pytest.mark.parametrize("committed", [0, 1, 2])
def test_a_restart_ends_with_the_same_weights(tmp_path, committed):
    """The power goes when round ``committed + 1`` is opened but not yet on disk."""
    straight = Run(works(), tmp_path / "straight", secure=SECURE).go()
    path = tmp_path / "state.safetensors"
    first = None

    def commit(row):
        if row["round"] > committed:
            raise PowerCutError
        save_snapshot(first.coordinator.snapshot(), path)

    first = Run(works(), tmp_path / "boxes", secure=SECURE, watch=Watch(round_done=commit))
    with pytest.raises(PowerCutError):
        first.go()
    parts = works()
    second = Run(parts, tmp_path / "boxes", secure=SECURE)
    if committed:
        second.coordinator.restore(load_snapshot(path))
    second.go()
    np.testing.assert_array_equal(second.coordinator.weights, straight.coordinator.weights)
    # What was written down is sent again, not made again.
    assert all(work.trained == list(range(committed + 2, 4)) for work in parts.values())
    assert second.secure.counts.sums_opened == 6


def test_a_round_that_was_opened_is_not_opened_over_other_sites_after_a_restart(tmp_path):
    def cut(_row):
        raise PowerCutError

    with pytest.raises(PowerCutError):
        Run(works(), tmp_path, secure=SECURE, watch=Watch(round_done=cut)).go()
    again = Run(works(), tmp_path, secure=SECURE)
    again.sites["b"] = Vanishing(again.sites["b"], "joining")
    with pytest.raises(TooFewSitesError, match="second time"):
        again.go()
    assert again.coordinator.round == 0
    assert again.secure.counts.sums_opened == 0
    whole = Run(works(), tmp_path, secure=SECURE).go()  # with all of them it goes on
    assert whole.coordinator.round == 3
