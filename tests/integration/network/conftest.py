"""Plans and hospitals that the tests of this folder share."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path


@pytest.fixture(autouse=True)
def _one_thread():
    """As in every process of medveil, so that no sum depends on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``trained(text, *overrides)``: plan, folder, record and weights of a run in one process; each made once."""
    from network_plans import make_plan
    from network_rig import weights_of

    from medveil.study.train import train

    made = {}

    def get(text, *overrides):
        if (text, overrides) not in made:
            folder = tmp_path_factory.mktemp("alone")
            plan = make_plan(folder, text, *overrides)
            record = train(plan, folder / "run")
            made[text, overrides] = (plan, folder / "run", record, weights_of(folder / "run"))
        return made[text, overrides]

    return get


@pytest.fixture(scope="module")
def dealt(tmp_path_factory):
    """``dealt(plan)``: every site's share of the plan's data, written once."""
    from medveil.study.deal import deal

    made = {}

    def get(plan):
        key = (plan.seed, plan.data.model_dump_json())
        if key not in made:
            made[key] = deal(plan, tmp_path_factory.mktemp("shares"))
        return made[key]

    return get


@pytest.fixture
def hospitals(dealt, tmp_path):
    """``hospitals(plan, policy=...)``: kits of all sites, new ones with every call."""
    from network_rig import Hospitals

    count = 0

    def make(plan, **options):
        nonlocal count
        count += 1
        return Hospitals(tmp_path / f"hospitals-{count}", plan, dealt(plan), **options)

    return make
