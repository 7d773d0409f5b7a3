"""kill -9 at any moment, run again: the same final weights as uninterrupted."""

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

QUICK = ("--set", "federation.rounds=8", "--no-report", "--quiet")


def _command(plan, out):
    return [sys.executable, "-m", "medveil", "train", str(plan), "--out", str(out), *QUICK]


def _finish(plan, out):
    done = subprocess.run(_command(plan, out), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return (out / "weights.safetensors").read_bytes(), (out / "references" / "central.safetensors").read_bytes()


def _kill_after(plan, out, file, delay):
    """Start a run and kill it ``delay`` seconds after ``file`` is there; return whether it still ran."""
    process = subprocess.Popen(_command(plan, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not file.exists():
        time.sleep(0.005)
    time.sleep(delay)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


def test_killed_runs_end_with_the_same_weights(small_plan_file, tmp_path):
    plan = small_plan_file
    straight = _finish(plan, tmp_path / "straight")
    out = tmp_path / "killed"
    state = out / "state"
    moments = [
        (out / "plan.json", 0.0),
        (state / "federated.safetensors", 0.05),
        (state / "federated.safetensors", 0.4),
        (state / "central.safetensors", 0.1),
        (state / "central.safetensors", 0.5),
        (out / "examples.npz", 0.0),
        (out / "weights.safetensors", 0.0),
    ]
    killed = sum(_kill_after(plan, out, file, delay) for file, delay in moments)
    assert killed >= 4  # a run that ends before it is killed proves nothing
    assert _finish(plan, out) == straight
    rounds = [line for line in (out / "metrics.jsonl").read_text().splitlines() if '"federated"' in line]
    assert len(rounds) == 8
