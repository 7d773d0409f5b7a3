"""Dealer, vendor and hospital as programs of their own: a vendor is killed, started again, and asked again."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from medveil.encrypted.stores.store import Store
from medveil.encrypted.wire.certificates import make_authority, make_certificate
from medveil.encrypted.wire.connect import Identity
from medveil.errors import FederationError
from medveil.study.diagnosis_parties import diagnose, prepare_hospital
from medveil.study.plan import load_plan
from medveil.study.train import train
from tiny_plans import FINISHED, merged

PLAN = merged(
    FINISHED,
    """
name = "served"
task = "segmentation"
[data.source]
task = "segmentation"
subjects = 30
[model]
kind = "unet"
width = 4
[federation]
rounds = 1
""",
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVEIL_HOME", str(tmp_path / "home"))
    authority = make_authority(tmp_path / "keys")
    for role in ("dealer", "vendor", "hospital"):
        make_certificate(tmp_path / "keys", authority=authority, role=role, name=role)
    (tmp_path / "plan.toml").write_text(PLAN, encoding="utf-8")
    train(load_plan(tmp_path / "plan.toml"), tmp_path / "run")
    pixels = np.random.default_rng(1).integers(0, 255, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    return tmp_path


class StopError(Exception):
    """What a hospital that reads who learns what may do."""


def start(place, role, *arguments):
    """A party's process, and what it says first."""
    keys = place / "keys"
    identity = ["--authority", keys / "authority.pem", "--certificate", keys / f"{role}.pem"]
    command = [sys.executable, "-m", "medveil", "infer", role, *identity, "--key", keys / f"{role}-key.pem", *arguments]
    process = subprocess.Popen([*map(str, command), "--json"], stdout=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_vendor_that_is_killed_goes_on_with_the_next_correlation(place):
    identity = Identity(*(place / "keys" / name for name in ("authority.pem", "hospital.pem", "hospital-key.pem")))
    free = "127.0.0.1:0"
    dealer, ports = start(place, "dealer", "--folder", place / "dealt", "--vendors", free, "--hospitals", free)
    serve = ["--model", place / "run", "--store", place / "vendor", "--dealer", f"127.0.0.1:{ports['vendors']}"]
    vendor, told = start(place, "vendor", *serve, "--listen", free, "--count", "3")
    try:
        at = ("127.0.0.1", told["listening"])
        offered = prepare_hospital(identity, place / "store", vendor=at, dealer=("127.0.0.1", ports["hospitals"]))
        end(dealer)  # not needed any more
        lines = []

        def stop(line):
            lines.append(line)
            raise StopError

        # Who learns what is told before anything is sent: who stops there has spent no correlation.
        with pytest.raises(StopError):
            diagnose(identity, place / "store", place / "scan.png", vendor=at, note=stop)
        assert len(lines) == 1
        assert lines[0].startswith("The hospital will learn: logits to 16 fraction bits")
        for party, folder in (("hospital", "store"), ("vendor", "vendor")):
            assert Store(place / folder, party=party, program=offered["program"]).left == 3
        first = diagnose(identity, place / "store", place / "scan.png", vendor=at)
        vendor.send_signal(signal.SIGKILL)
        vendor.wait()
        with pytest.raises(FederationError):
            diagnose(identity, place / "store", place / "scan.png", vendor=at)
        vendor.stdout.close()
        vendor, told = start(place, "vendor", *serve, "--listen", free, "--times", "1")
        again = diagnose(identity, place / "store", place / "scan.png", vendor=("127.0.0.1", told["listening"]))
        assert again["mask"] == first["mask"]
        np.testing.assert_allclose(again["exact"], first["exact"], atol=2e-3)
        vendor.wait(timeout=60)
        for party, folder in (("hospital", "store"), ("vendor", "vendor")):
            assert Store(place / folder, party=party, program=offered["program"]).left == 1
    finally:
        end(dealer)
        end(vendor)


@pytest.mark.parametrize("reveal", ["logits", "label"])
def test_all_three_on_one_machine_show_what_was_asked_for(place, reveal):
    command = [
        sys.executable,
        "-m",
        "medveil",
        "infer",
        "local",
        "--model",
        place / "run",
        "--image",
        place / "scan.png",
    ]
    ended = subprocess.run(
        [*map(str, command), "--reveal", reveal, "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(ended.stdout)
    assert np.array(found["mask"]).shape == (16, 16)
    learned = found["leakage"]["hospital_learns"][0]
    assert learned.startswith("logits" if reveal == "logits" else "the label of every pixel")
    if reveal == "label":
        assert found["exact"] is found["plaintext_max_error"] is None
        assert found["plaintext_agrees"]
    else:
        assert found["plaintext_max_error"] < 2e-3
