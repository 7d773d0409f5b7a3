"""``medveil attack`` on a finished run and on a plan, as a user types it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from medveil.cli.main import cli
from medveil.errors import AttackError, ConfigError, ManifestError
from medveil.study.manifest import verify_manifest
from medveil.study.plan import load_plan
from medveil.study.red_team import build_scene, red_team
from medveil.study.train import train
from tiny_plans import FINISHED, merged

PLAN = merged(
    FINISHED,
    """
name = "attacked"
task = "classification"
[data]
partition = { kind = "iid", sites = 3 }
[model]
kind = "cnn"
channels = [4, 4]
strides = [2, 1]
[federation]
rounds = 2
""",
)
KEYS = {"threat_model", "unprotected", "protected", "control", "bound", "succeeded_unprotected", "seconds"}


def written(folder, subjects=260):
    path = folder / "plan.toml"
    path.write_text(merged(PLAN, f"[data.source]\nsubjects = {subjects}"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVEIL_HOME", str(folder / "home"))
        train(load_plan(written(folder)), folder / "run")
    return folder / "run"


def attack(*arguments):
    return CliRunner().invoke(cli, ["attack", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVEIL_HOME", str(tmp_path / "home"))


def test_a_run_is_attacked_and_its_report_shows_it(run):
    answer = attack(run, "--quick", "--only", "reconstruction", "--json", "-q")
    assert answer.exit_code == 0, answer.output
    (found,) = json.loads(answer.stdout)["attacks"]
    assert found.keys() >= KEYS
    assert found["succeeded_unprotected"] is True
    assert "hypothetical" in found["protected"]["condition"]["name"]  # the run has no protection of its own
    assert found["bound"] == found["protected"]["bound"] < 0.5
    assert found["unprotected"]["images"][0]["psnr_db"] > 50
    assert found["unprotected"]["figures"]["rank1_rate"]["value"] > 0.9
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Reconstruction by an attacker" in page
    assert "hypothetical" in page


def test_results_of_other_attacks_stay_and_are_signed_apart_from_the_run(run):
    red_team(run, effort="quick", only=["reconstruction"])
    red_team(run, effort="quick", only=["imprint"])
    kept = json.loads((run / "red_team" / "results.json").read_text(encoding="utf-8"))
    assert [found["name"] for found in kept["attacks"]] == ["imprint", "reconstruction"]
    with np.load(run / "red_team" / "pictures.npz", allow_pickle=False) as stored:
        assert {"imprint/original", "reconstruction/original"} <= set(stored.files)
    files = ("results.json", "pictures.npz", "audit.json")
    verify_manifest(run)
    verify_manifest(run / "red_team", files=files)
    (run / "red_team" / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ManifestError):
        verify_manifest(run / "red_team", files=files)


def test_a_plan_is_attacked_without_a_run(tmp_path):
    found = red_team(written(tmp_path), effort="quick", only=["reconstruction"])
    assert found["attacks"][0]["succeeded_unprotected"]
    assert not (tmp_path / "red_team").exists()


def test_too_few_patients_are_refused_before_long_work(tmp_path):
    small = written(tmp_path, subjects=24)
    with pytest.raises(AttackError, match="Too few"):
        red_team(small, effort="quick", only=["membership"])


def test_a_build_without_noise_exits_with_7(tmp_path, monkeypatch):
    class Off:
        def __init__(self, **_settings):
            pass

        def release(self, total, _random):
            return total

    plan = written(tmp_path)
    assert attack(plan, "--quick", "--only", "reconstruction", "-q").exit_code == 0
    monkeypatch.setattr("medveil.attacks.release.NoiseMechanism", Off)
    answer = attack(plan, "--quick", "--only", "reconstruction", "-q")
    assert answer.exit_code == 7
    assert "BETTER THAN THEORY" in answer.output


def test_an_unknown_attack_is_refused(run):
    with pytest.raises(ConfigError, match="no such attack"):
        red_team(run, only=["telepathy"])
    assert isinstance(attack(run, "--only", "telepathy").exception, ConfigError)


def test_the_attacker_has_seen_no_training_patient(tmp_path):
    from medveil.study.prepare import prepare

    plan = load_plan(written(tmp_path))
    prepared = prepare(plan)
    scene = build_scene(plan, prepared, None)
    assert len(scene.images) == sum(len(site.train) for site in prepared.sites)
    public = {image.numpy().tobytes() for image in scene.public}
    assert not public & {image.numpy().tobytes() for image in scene.images}
    assert scene.protection is None
    assert scene.reference.epsilon == 8.0
    assert scene.optimiser_steps == 2


def test_runs_with_too_many_images_keep_whole_patients(tmp_path, monkeypatch):
    from medveil.study import red_team as module
    from medveil.study.prepare import prepare

    plan = load_plan(written(tmp_path))
    prepared = prepare(plan)
    monkeypatch.setattr(module, "_MOST_IMAGES", 80)
    scene = module.build_scene(plan, prepared, None)
    assert 64 <= len(scene.images) <= 80
    assert scene.subject.max() + 1 == len(np.unique(scene.subject))
