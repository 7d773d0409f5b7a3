"""A server that lies: whatever it asks, a site refuses, says why in one sentence, and writes it down."""

import json
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from network_asks import RUN, opening, task, weights
from network_plans import CLEAR, DISTRIBUTED, SUMS
from network_steps import Guests, Ward, lead

from medveil.connect import site_program
from medveil.errors import AuthenticityError, GuaranteeError, MedveilError, MessageError, PolicyError, ProtocolError
from medveil.federation.messages import (
    Answer,
    Ask,
    Decline,
    Join,
    Ready,
    Result,
    Sealed,
    Stop,
    Task,
    decode,
    encode,
)
from medveil.models import crafted
from medveil.training.vectors import to_vector, trainable


@pytest.fixture
def site(trained, hospitals):
    """``site(text, **open)``: hospitals, what site-1 brings, and its run, begun unless ``begin=False``."""
    made = []

    def make(text=CLEAR, *, begin=True, allow=lambda _sites: None):
        plan = trained(text)[0]
        place = hospitals(plan)
        own, run = Guests(place).run("site-1", RUN, allow)
        made.append(run)
        if begin:
            (join,) = run.receive(opening(place))
            assert isinstance(decode(join)[0], Join)
        return place, own, run

    yield make
    for run in made:
        run.close()


def refused(run, data, error, words):
    with pytest.raises(error, match=words) as caught:
        run.receive(data)
    sent = _last_words(run, caught.value)
    message, tensors = decode(sent)
    assert (type(message), tensors) == (Decline, {})
    for secret in (b"Traceback", b'File "', b".py", b".npz", str(run._home.folder).encode(), b"phantom-1"):
        assert secret not in sent
    assert "/" not in message.reason.replace("and/or", "")
    assert "\n" not in message.reason
    assert 0 < len(message.reason) <= 500
    return message.reason


def _last_words(run, error):
    """The bytes that the site's program sends where its run raised this error."""
    sent = []
    postman = SimpleNamespace(send=lambda _to, data: sent.append(data), flush=lambda _timeout: True)
    site_program._Visit(SimpleNamespace(job_id="job"), run._home, postman).decline(error)
    (words,) = sent
    return words


def test_the_check_of_last_words_can_fail(site, monkeypatch):
    place, _, run = site()
    monkeypatch.setattr(site_program, "_sentence", lambda *_: f'Traceback: File "{place.root}/x.py"')
    with pytest.raises(AssertionError):
        refused(run, opening(place, attempt=2), ProtocolError, "begun twice")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"sites": ["site-1", "site-2", "site-3", "stranger"]}, PolicyError, "does not know"),
        ({"sites": ["site-2", "site-3", "site-4"]}, PolicyError, "does not know"),
        ({"sites": ["site-1", "site-2"]}, ProtocolError, "counts on"),
        ({"run": "cd" * 16}, ProtocolError, "did not sign"),
        ({"sites": ["site-1"]}, ProtocolError, "counts on"),
        ({"sites": ["site-2", "site-1", "site-3", "site-4"]}, ProtocolError, "counts on"),
        ({"sites": ["site-1", "site-1", "site-2", "site-3"]}, ProtocolError, "counts on"),
    ],
)
def test_a_run_over_other_sites_does_not_begin(site, changes, error, words):
    place, _, run = site(DISTRIBUTED, begin=False)
    refused(run, opening(place, **changes), error, words)
    assert not list((place.kit("site-1") / "medveil").glob("ledger/*.sqlite"))
    with pytest.raises(ProtocolError):
        run.receive(encode(task(place)))


def test_a_step_without_its_secure_sum_is_refused_before_it_is_charged(site):
    place, own, run = site(DISTRIBUTED)
    events = _ledger_lines(place)
    refused(run, encode(task(place), weights(own)), ProtocolError, "without the secure sum")
    assert _ledger_lines(place) == events


def _ledger_lines(place):
    (path,) = (place.kit("site-1") / "medveil" / "ledger").glob("*.sqlite")
    with closing(sqlite3.connect(path)) as ledger:
        tables = [name for (name,) in ledger.execute("select name from sqlite_master where type = 'table'")]
        return {name: ledger.execute(f'select count(*) from "{name}"').fetchone() for name in tables}


def test_the_policy_is_asked_again_about_the_sites_of_the_run(site):
    asked = []

    def allow(sites):
        asked.append(tuple(sites))
        raise PolicyError("no")

    place, _, run = site(SUMS, begin=False, allow=allow)
    refused(run, opening(place), PolicyError, "no")
    assert asked == [("site-1", "site-2", "site-3", "site-4")]
    assert not (place.kit("site-1") / "medveil" / "runs").exists()


@pytest.mark.parametrize("again", [1, 2])
def test_an_attempt_is_begun_once_and_never_an_earlier_one(site, again):
    place, _, run = site(SUMS, begin=False)
    run.receive(opening(place, attempt=2))
    run.close()
    _, second = Guests(place).run("site-1")
    with closing(second):
        refused(second, opening(place, attempt=again), AuthenticityError, "has seen")
    _, third = Guests(place).run("site-1")
    with closing(third):
        assert third.receive(opening(place, attempt=3))


def test_a_run_is_opened_once_a_job(site):
    place, _, run = site()
    refused(run, opening(place, attempt=2), ProtocolError, "begun twice")


def test_nothing_is_done_before_the_run_began(site):
    place, own, run = site(SUMS, begin=False)
    for data in (encode(task(place), weights(own)), encode(Ask(purpose="cohort")), encode(Sealed())):
        refused(run, data, ProtocolError, "before the run began")


def test_what_only_a_site_says_is_refused(site):
    _, _, run = site()
    for message in (Result(round=1, form="mean", weight=1.0, train_loss=None), Answer(purpose="evaluation")):
        refused(run, encode(message), ProtocolError, "only a coordinator may receive")


@pytest.mark.parametrize("text", [DISTRIBUTED, SUMS], ids=["distributed privacy", "secure sums"])
def test_no_update_leaves_in_the_clear_where_the_plan_has_secure_sums(site, text):
    place, own, run = site(text)
    refused(run, encode(task(place), weights(own)), ProtocolError, "secure sum|in secret|without")
    assert not list((place.kit("site-1") / "medveil" / "runs" / RUN).rglob("contribution*"))
    if text == DISTRIBUTED:
        assert run._account.steps == 0


@pytest.mark.parametrize("bad", ["short", "float64", "missing", "buffers"])
def test_weights_of_another_size_train_nothing(site, bad):
    place, own, run = site(CLEAR)
    sent = weights(own)
    if bad == "short":
        sent["weights"] = sent["weights"][:-1]
    elif bad == "float64":
        sent["weights"] = sent["weights"].astype(np.float64)
    elif bad == "buffers":
        sent["buffers"] = np.zeros(3, np.float32)
    else:
        sent = {}
    with pytest.raises(MedveilError):
        run.receive(encode(task(place), sent))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_message_with_nan_is_not_read(site, bad):
    place, own, run = site(CLEAR)
    sent = weights(own)
    data = bytearray(encode(task(place), sent))
    at = data.rfind(sent["weights"].tobytes())
    assert at > 0
    data[at : at + 4] = np.float32(bad).tobytes()
    refused(run, bytes(data), MessageError, "NaN")


def test_scores_are_told_after_the_training_only_and_of_one_model(site):
    place, own, run = site(CLEAR)
    refused(run, encode(Ask(purpose="evaluation"), weights(own)), ProtocolError, "before the training ended")
    refused(run, encode(Ask(purpose="cohort")), PolicyError, "does not ask for")
    (settled,) = run.receive(encode(Stop(reason="all rounds done")))
    assert decode(settled)[0].steps is None
    (answer,) = run.receive(encode(Ask(purpose="evaluation"), weights(own)))
    assert isinstance(decode(answer)[0], Answer)
    other = weights(own, factor=1.5)
    refused(run, encode(Ask(purpose="evaluation"), other), AuthenticityError, "from other weights")
    place.log("site-1")


@pytest.mark.parametrize("bad", ["short", "missing", "float64"])
def test_scores_of_another_network_are_not_computed(site, bad):
    _, own, run = site(CLEAR)
    run.receive(encode(Stop(reason="all rounds done")))
    sent = weights(own)
    sent = {"short": {**sent, "weights": sent["weights"][1:]}, "missing": {}}.get(
        bad, {**sent, "weights": sent["weights"].astype(np.float64)}
    )
    refused(run, encode(Ask(purpose="evaluation"), sent), ProtocolError, "do not fit")


def test_weights_that_look_crafted_are_not_scored(site, monkeypatch):
    from medveil.connect import site_sums

    _, own, run = site(CLEAR)
    run.receive(encode(Stop(reason="all rounds done")))
    seen = []

    def looks(model, inputs):
        seen.append(to_vector(trainable(model)).copy())
        raise GuaranteeError("The weights look crafted")

    monkeypatch.setattr(site_sums, "has_hidden_linear", lambda _model: True)
    monkeypatch.setattr(site_sums, "check_weights_not_crafted", looks)
    sent = weights(own, factor=2.0)
    refused(run, encode(Ask(purpose="evaluation"), sent), GuaranteeError, "crafted")
    np.testing.assert_array_equal(seen[0], sent["weights"])
    assert crafted.has_hidden_linear(own.first) is False


def _replay(trained, hospitals, text, change):
    """A job whose messages to site-1 ``change(place, message, tensors, original)`` may replace; what site-1 raised."""
    plan = trained(text)[0]
    place = hospitals(plan)
    original = Ward._deliver

    def deliver(ward, name, data):
        if name == "site-1":
            message, tensors = decode(data)
            data = change(place, message, tensors, data) or data
        original(ward, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ward, "_deliver", deliver)
        ending, ward = lead(Guests(place), "job-1")
    return place, ending, ward


def _numbered(number):
    """Round 2's task says another number."""

    def change(_place, message, tensors, _data):
        if isinstance(message, Task) and message.train and message.round == 2:
            return encode(message.model_copy(update={"round": number}), tensors)
        return None

    return change


@pytest.mark.parametrize("number", [1, 3, 99])
@pytest.mark.parametrize("text", [DISTRIBUTED, SUMS], ids=["distributed privacy", "secure sums"])
def test_a_round_that_is_past_or_beyond_the_plan_is_not_answered(trained, hospitals, text, number):
    place, ending, ward = _replay(trained, hospitals, text, _numbered(number))
    assert {name: type(error) for name, error in ward.errors.items()} == {
        "site-1": AuthenticityError if number == 1 else ProtocolError
    }
    assert ending == "done"  # with the three others
    assert list(place.record()["training"]["lost_sites"]) == ["site-1"]
    if text == DISTRIBUTED:
        assert 1 <= place.steps("site-1") <= 2  # what it released is charged, and no more than the plan has


def test_one_site_with_other_weights_opens_no_sum(trained, hospitals):
    """Its contribution says what it was made from; the others do not open a sum with it."""

    def change(_place, message, tensors, _data):
        if isinstance(message, Task) and message.validate_model:
            return encode(message, {**tensors, "weights": tensors["weights"] * np.float32(1.5)})
        return None

    place, ending, ward = _replay(trained, hospitals, SUMS, change)
    assert (ending, ward.errors) == ("done", {})  # site-1 cannot know
    assert list(place.record()["training"]["lost_sites"]) == ["site-1"]
    opened = [line["facts"]["included"] for line in place.log("site-2") if line["event"] == "scores-opened"]
    assert opened
    assert all(included == ["site-2", "site-3", "site-4"] for included in opened)


def test_first_round_again_from_other_weights_after_a_restart(trained, hospitals):
    plan = trained(SUMS)[0]
    place = hospitals(plan)
    guests = Guests(place)
    _, ward = lead(guests, "job-0")
    answered = [at for at, way, _, kind in ward.phases if (way, kind) == ("from", "Result")]
    place = hospitals(plan)
    guests = Guests(place)
    assert lead(guests, "job-1", die=answered[3] + 1)[0] == "died"

    def deliver(ward, name, data, original=Ward._deliver):
        message, tensors = decode(data)
        if isinstance(message, Task) and message.train and "weights" in tensors:
            data = encode(message, {**tensors, "weights": tensors["weights"] * np.float32(1.01)})
        original(ward, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ward, "_deliver", deliver)
        ending, ward = lead(guests, "job-2", first="job-1")
    assert ending == "failed"
    assert all(isinstance(error, AuthenticityError) for error in ward.errors.values())
    assert len(ward.errors) >= 2


def test_what_a_site_sends_names_no_path_and_no_patient(trained, hospitals):
    plan = trained(DISTRIBUTED)[0]
    place = hospitals(plan)
    sent = []
    ending, _ = lead(Guests(place), "job-1", tap=lambda _site, data: sent.append(bytes(data)) or data)
    assert ending == "done"
    everything = b"".join(sent)
    for secret in (str(place.root).encode(), b"Traceback", b"phantom-1", b".npz"):
        assert secret not in everything
    kinds = {type(decode(data)[0]) for data in sent}
    assert Result in kinds
    for data in sent:
        message, tensors = decode(data)
        assert all(name.startswith("frame") for name in tensors), "only frames of the secure sum leave a site"
        if isinstance(message, Ready):
            assert set(json.loads(message.model_dump_json())) == {
                "site", "plan_hash", "version", "input_shape", "class_names", "data_kind", "data_name", "validates",
            }  # fmt: skip
        if isinstance(message, Join):
            assert message.num_examples is None
