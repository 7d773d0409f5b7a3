"""The plan inside a job."""

import json
from pathlib import Path

import pytest

from medveil.connect.jobs import PLAN_FILE, check_networked, plan_bytes, plan_of
from medveil.errors import ConfigError
from medveil.study.plan import parse_plan

VALUES = {
    "name": "small",
    "task": "classification",
    "data": {"source": {"kind": "phantom", "task": "classification", "subjects": 40, "size": [16, 16]}},
    "model": {"kind": "cnn"},
    "federation": {"rounds": 1, "algorithm": {"kind": "fedavg", "local_epochs": 1}},
}
CENTRAL = {
    "unit": "patient", "relation": "add-remove", "delta": 1e-3, "trusted": "curator", "held_out": "private",
    "dp": {
        "kind": "central", "sampling": {"rate": 0.1, "nominal_units": 40},
        "clipping": {"kind": "flat", "l2_clip_norm": 1.0}, "noise": {"multiplier": 1.0},
    },
}  # fmt: skip


def make(**changes):
    return parse_plan({**VALUES, **changes}, where="plan", root=Path(), data_root=Path())


def test_a_plan_travels_unchanged(tmp_path):
    plan = make()
    (tmp_path / PLAN_FILE).write_bytes(plan_bytes(plan))
    read = plan_of(tmp_path)
    assert read.digest() == plan.digest()
    assert read == plan.model_copy(update={"root": tmp_path, "data_root": tmp_path})


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[1]", b"{}", b"[" * 100_000, b'{"name": 3}', b" " * (1 << 21), b"null"]
)
def test_what_is_no_plan_is_refused(tmp_path, content):
    (tmp_path / PLAN_FILE).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_a_job_without_a_plan(tmp_path):
    with pytest.raises(ConfigError):
        plan_of(tmp_path)


def test_an_unknown_key_is_refused(tmp_path):
    values = {**json.loads(plan_bytes(make())), "extra": 1}
    (tmp_path / PLAN_FILE).write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        plan_of(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"initial_weights": "weights.safetensors"}, "does not travel"),
        ({"evaluation": {"subgroups": ["scanner"]}}, "in one place"),
        ({"evaluation": {"external": [{"name": "other", "source": VALUES["data"]["source"]}]}}, "in one place"),
        ({"privacy": CENTRAL, "federation": {"rounds": 1, "algorithm": {"kind": "fedsgd"}, "validate_every": 0},
          "training": {"optimiser": {"kind": "sgd", "lr": 0.1}}, "evaluation": {"threshold": 0.5}}, "one curator"),
    ],
)  # fmt: skip
def test_what_a_network_cannot_do_is_refused_before_anything_is_read(changes, words):
    check_networked(make())
    with pytest.raises(ConfigError, match=words):
        check_networked(make(**changes))
