"""An approval has its line in the audit log, or is not made; a refusal holds, with a line or without."""

import errno
import json

import pytest

from medveil.connect import deciding
from medveil.connect.audit_lines import as_name
from medveil.connect.audit_log import AuditLog
from medveil.connect.home import Home
from medveil.errors import AuditLogError, ConfigError
from medveil.secagg.identity import IdentityKey
from medveil.study.plan import load_plan


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A site's folder with a plan that waits; the kit's certificates are not looked at."""
    monkeypatch.setattr(deciding, "read_kit", lambda folder, _kind: folder)
    home = Home(tmp_path)
    home.folder.mkdir()
    IdentityKey.generate().save(home.folder / "identity.key")
    home.policy_path.write_text('tasks = ["classification"]\n')
    home.approvals().receive(load_plan("phantom-private"))
    return tmp_path


def lines(kit):
    path = Home(kit).audit_path
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def state(kit):
    home = Home(kit)
    return home.approvals().state(load_plan("phantom-private").digest(), policy=home.policy().digest())


@pytest.mark.parametrize("who", ["Dr. Sean O'Brien", "Núñez, María (IT)", "a.b+c@hospital.org"])
@pytest.mark.parametrize("refuse", [False, True])
def test_a_decision_and_its_line(kit, who, refuse):
    digest = load_plan("phantom-private").digest()
    decision = deciding.decide(kit, digest[:16], by=who, refuse=refuse)
    assert (decision.by, state(kit)) == (who, "refused" if refuse else "approved")
    (line,) = lines(kit)
    assert line["event"] == ("plan-refused" if refuse else "plan-approved")
    assert (line["facts"]["by"], line["facts"]["plan"]) == (who, digest)
    assert line["signature"]


@pytest.mark.parametrize("who", ["x" * 129, "two\nlines", "<b>", "a  b"])
@pytest.mark.parametrize("refuse", [False, True])
def test_a_name_that_no_line_can_hold_decides_nothing(kit, who, refuse):
    with pytest.raises(ConfigError, match="by must be"):
        deciding.decide(kit, load_plan("phantom-private").digest(), by=who, refuse=refuse)
    assert (state(kit), lines(kit)) == ("pending", [])


def test_without_room_for_the_line_nothing_is_approved(kit, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medveil.connect.audit_log.os.write", full)
    with pytest.raises(AuditLogError, match="No space"):
        deciding.decide(kit, load_plan("phantom-private").digest(), by="A")
    monkeypatch.undo()
    assert Home(kit).approvals().history() == ()


def test_a_log_that_is_broken_does_not_keep_a_plan_on(kit):
    digest = load_plan("phantom-private").digest()
    deciding.decide(kit, digest, by="A")
    path = Home(kit).audit_path
    path.write_bytes(path.read_bytes().replace(b'"by":"A"', b'"by":"B"'))
    with pytest.raises(AuditLogError, match="The plan is refused, but its line is not in the audit log"):
        deciding.decide(kit, digest, by="A", refuse=True)
    assert state(kit) == "refused"


@pytest.mark.parametrize(
    "text", ["St. Mary's <x-ray>", "a\nb", "", "/", "//", "x" * 200, "é à", "a / b", "\0", "&&&", "ct/1/", "-"]
)
def test_any_text_becomes_a_name_that_a_line_may_hold(tmp_path, text):
    line = AuditLog(tmp_path / "audit.jsonl").append("plan-accepted", dataset=as_name(text))
    assert line.facts["dataset"] == as_name(text)


def test_a_name_stays_itself():
    for name in ("pneumoniamnist", "lead@example.org", "Dr. O'Brien", "phantom-classification", "a/b c"):
        assert as_name(name) == name
