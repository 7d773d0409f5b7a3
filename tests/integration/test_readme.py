"""The README is held true: its commands run in a fresh environment, from a fresh copy of the repository."""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _commands(block):
    return [line[2:].split("  #")[0].strip() for line in block.splitlines() if line.startswith("$ ")]


def _shell(command, folder, **settings):
    environment = {**os.environ, "MPLBACKEND": "agg", **settings}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def fresh_copy(tmp_path_factory):
    """What a clone would hold: tracked files, and new ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    copy = tmp_path_factory.mktemp("clone")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def demo(fresh_copy):
    """``make demo`` as the README has it, in a fresh environment."""
    return _shell("make demo", fresh_copy)


def test_the_first_screen_names_the_two_commands():
    assert _commands(_blocks("console")[0]) == ["make demo", "make test"]
    assert README.index("make test") < 1800


def test_make_demo_installs_trains_and_says_where_the_report_is(demo, fresh_copy):
    report = fresh_copy / re.search(r"^Report: (.+)$", demo, flags=re.MULTILINE).group(1)
    page = report.read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert not re.search(r"(?:src|href)=\"https?://[^\"]+\.(?:js|css|png|svg)", page)


@pytest.mark.usefixtures("demo")
def test_the_demo_ends_with_a_red_team_and_an_audit_of_its_own_run(fresh_copy):
    import json

    (run,) = (fresh_copy / "runs").glob("demo-*")
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    found = json.loads((run / "red_team" / "results.json").read_text(encoding="utf-8"))
    audit = json.loads((run / "red_team" / "audit.json").read_text(encoding="utf-8"))
    assert found["run"]["plan_hash"] == audit["plan_hash"] == record["plan_hash"]
    assert audit["verdict"] == "consistent"
    assert audit["claimed_epsilon"] == record["privacy"]["epsilon"]
    tried = {attack["name"]: attack for attack in found["attacks"]}
    assert set(tried) == {"inversion", "imprint", "reconstruction", "membership", "property"}
    assert tried["reconstruction"]["succeeded_unprotected"]
    page = (run / "report.html").read_text(encoding="utf-8")
    for part in ("Attack by defence", "Epsilon, measured with canaries", tried["reconstruction"]["findings"][0]):
        assert part.replace("'", "&#39;") in page


@pytest.mark.real_data
def test_the_demo_on_real_data_reaches_its_figures(demo, fresh_copy):
    import json

    record = json.loads((fresh_copy / "runs" / "demo-pneumonia-28-private" / "record.json").read_text())
    assert record["data"]["kind"] == "real"
    assert record["test"]["auc"]["value"] >= 0.95
    assert 7.9 < record["privacy"]["epsilon_insider"] <= 8
    assert record["privacy"]["epsilon_server"] < record["privacy"]["epsilon_insider"]
    assert record["privacy"]["stamp"] is None
    assert len(record["secure_aggregation"]["groups"][0]) == 5
    assert record["cost"]["seconds"] < 360


@pytest.mark.usefixtures("demo")
def test_every_other_command_of_the_readme_runs(fresh_copy):
    commands = [command for block in _blocks("console")[1:] for command in _commands(block)]
    # The federation of the README has a hundred rounds: here it has three.
    _shell(" && ".join(commands), fresh_copy, KILL="--set federation.rounds=3")


@pytest.mark.usefixtures("demo")
def test_the_python_of_the_readme_runs(fresh_copy):
    program = fresh_copy / "readme_example.py"
    program.write_text(_blocks("python")[0])
    answer = _shell(f". .venv/bin/activate && python {program.name}", fresh_copy, OMP_NUM_THREADS="1")
    assert "value" in answer


@pytest.mark.usefixtures("demo")
def test_the_installed_package_holds_its_plans_and_templates(fresh_copy, tmp_path):
    """A wheel, not only an editable install, carries everything that the command line needs."""
    _shell(f"{fresh_copy}/.venv/bin/pip wheel -q --no-deps -w {tmp_path} .", fresh_copy)
    wheel = next(tmp_path.glob("medveil-*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in ("study/plans/phantom.toml", "report/templates/style.css", "py.typed"):
        assert f"medveil/{wanted}" in names
