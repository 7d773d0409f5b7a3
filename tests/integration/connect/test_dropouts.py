"""Sites that kill themselves at named points of the protocol, over real processes: a small part of the benchmark."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "peers"))
from dropout_cases import EARLY, LATE, Case, same_phase
from dropout_files import MismatchError, equals

SITES = [f"site-{number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    pytest.importorskip("nvflare")
    from dropout_rig import Rig
    from running import free_port

    folder = tmp_path_factory.mktemp("dropouts") / "federation"
    with Rig(folder, sites=len(SITES), colluding=0, dropouts=2, port=free_port()) as federation:
        yield federation


@pytest.mark.slow
@pytest.mark.live
def test_sums_are_the_survivors_and_the_sites_come_back(rig):
    """Two sites in a round, one with its vector half sent and one after it signed the list; then one as it rejoins."""
    from dropout_plans import PRIVATE
    from dropout_play import play_rounds

    run = rig.submit(rig.plan(PRIVATE, rounds=60))
    run.together(set(), 0.0)
    case = Case("round", {"site-2": "partly-sent", "site-4": "agreement-sent"})
    then = Case("join", {"site-5": "shares-sent"})
    in_round, in_joining = play_rounds(rig, run, case, then)
    assert sorted(in_round["included"]) == ["site-1", "site-3", "site-4", "site-5"]
    assert in_round["sums"] >= 3  # the round before, the round, and one with all sites again
    assert in_joining["included"] == ["site-1", "site-2", "site-3", "site-4"]
    rig.finish(run)
    rig.check_sums()
    charged = run.check_charges()
    assert charged["site-1"] == charged["site-3"] == 60
    assert {site: count <= 60 for site, count in charged.items()} == dict.fromkeys(SITES, True)
    assert len(rig.sums()) >= 60
    _an_altered_vector_is_noticed(rig)


def _an_altered_vector_is_noticed(rig):
    line = next(line for line in rig.sums() if len(line["included"]) < len(SITES))
    path = rig.control / "vectors" / f"{line['key']}.{line['included'][0]}.npy"
    vector = np.load(path)
    vector[-1] += 1
    np.save(path, vector)
    rig.forget_checks()
    with pytest.raises(MismatchError):
        rig.check_sums()


def test_a_sum_of_other_vectors_is_not_equal():
    random = np.random.default_rng(5)
    vectors = [random.integers(1, 1 << 32, 40, dtype=np.uint32) for _ in range(4)]
    total = np.zeros(40, dtype=np.uint32)
    for vector in vectors:
        total += vector
    assert equals(total, vectors)
    assert not equals(total, vectors[1:])
    assert not equals(total, [*vectors[1:], vectors[0] + np.uint32(1)])
    assert not equals(total.astype(np.uint64), vectors)


def test_there_is_a_case_for_every_set_of_sites_at_every_point():
    cases = same_phase("round", SITES, 2)
    assert len({(case.phase, case.victims) for case in cases}) == len(cases) == (len(EARLY) + len(LATE)) * (5 + 10)
    for case in cases:
        left_out = case.victims if case.phase in EARLY else frozenset()
        assert set(case.included(SITES)) == set(SITES) - left_out
