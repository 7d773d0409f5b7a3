"""Server and hospitals in network namespaces of their own, over lines that lose, delay, limit and fail."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "peers"))
pytest.importorskip("nvflare")
from netem import Network, why_not

SITES = ("scanner-1", "scanner-2")
ROUNDS = 8
CUT_S = 3.0
PLAN = (
    "data.source={ kind = 'phantom', subjects = 60, scanners = 2, seed = 1 }",
    "model={ kind = 'scattering', positions = [2, 2], order = 1 }",
    f"federation.rounds={ROUNDS}",
    f"federation.validate_every={ROUNDS}",
    "privacy.delta=1e-2",
    "privacy.dp.sampling={ rate = 0.1, nominal_units = { scanner-1 = 15, scanner-2 = 15 } }",
    "privacy.dp.noise={ multiplier = 4.0, generator = 'seeded' }",
    "privacy.secure_aggregation.colluding=0",
    "privacy.secure_aggregation.dropouts=0",
)


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_a_run_over_bad_lines_ends_as_in_one_process(tmp_path, monkeypatch):
    if reason := why_not():
        pytest.skip(reason)
    from medveil.connect.job import Federation
    from medveil.connect.provision import provision
    from medveil.connect.setup import LEAD, describe_federation, equip
    from medveil.connect.submitting import submit_plan
    from medveil.connect.trial import Trial, follow, wait_for_sites
    from medveil.study.deal import deal
    from medveil.study.plan import load_plan
    from medveil.study.train import train

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan = load_plan("phantom-private", PLAN)
    train(plan, tmp_path / "alone")
    with Network(["server", "lead", *SITES]) as network:
        describe_federation(tmp_path, name="bad", sites=SITES, host=network.addresses["server"], port=8171)
        kits = provision(tmp_path)
        sites = {site: kits[site] for site in SITES}
        equip(sites, plan, deal(plan, tmp_path / "data"))
        for site in SITES:
            network.set(site, delay=100, jitter=10, loss=0.01, rate=100)
        launch = {name: network.inside(name) for name in ("server", *SITES)}
        with network.entered("lead"), Trial({"server": kits["server"], **sites}, launch=launch) as trial:
            with Federation(kits[LEAD]) as federation:
                wait_for_sites(federation.connected, SITES, trial)
                job, _ = submit_plan(federation, plan, SITES)
            cutting = threading.Thread(target=_cut, args=(network, kits["server"]))
            cutting.start()
            folder = follow(kits["server"], job, trial=trial, kills=(), say=lambda _text: None, timeout=120)
            cutting.join(30)
            stats = network.stats()
    assert sum(stats[site][way]["lost"] for site in SITES for way in ("out", "in")) > 0
    assert sum(stats[SITES[0]][way]["unplugged"] for way in ("out", "in")) > 0
    training = json.loads((folder / "record.json").read_text())["training"]
    assert training["rounds_run"] == ROUNDS
    assert not training["lost_sites"]
    assert _weights(folder) == _weights(tmp_path / "alone")


def _cut(network, server):
    """Unplug a site for a moment once the run is half way, or after a minute whatever it does."""
    end = time.monotonic() + 60
    while time.monotonic() < end and not any(_half(path) for path in server.glob("medveil/runs/*/progress.json")):
        time.sleep(0.02)
    network.cut(SITES[0])
    time.sleep(CUT_S)
    network.join(SITES[0])


def _half(path):
    try:
        return json.loads(path.read_text())["round"] >= ROUNDS // 2
    except (OSError, ValueError):
        return False


def _weights(folder):
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(folder / "weights.safetensors").items()}
