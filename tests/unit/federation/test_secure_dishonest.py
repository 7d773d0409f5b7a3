"""Coordinator and sites with a secure sum between them: hidden parts, sites and servers that cheat."""

import hashlib
import struct

import numpy as np
import pytest
from secure_rig import NAMES, SECURE, WEIGHTS, Run, Work, frames_in, joined, logged, works

from medveil.errors import AuthenticityError, MessageError, ProtocolError, TooFewSitesError
from medveil.federation.messages import Join, Result, Scores, Sealed, Task, decode, encode, frames_of, with_frames
from medveil.federation.secure.decided import Decided
from medveil.federation.secure.origin import fingerprint
from medveil.federation.secure.settings import SecureAggregation
from medveil.secagg import messages as frames


@pytest.mark.parametrize(
    "change",
    [
        {"form": "weights"},
        {"form": "mean"},
        {"form": "sum"},
        {"weight": 17.0},
        {"train_loss": 0.25},
    ],
)
def test_a_site_that_answers_in_the_clear_is_refused(tmp_path, change):
    run, tasks = joined(tmp_path)
    answers = run.sites["a"].receive(tasks["a"])
    message, tensors = decode(answers[0])
    clear = message.model_copy(update=change)
    with pytest.raises(ProtocolError, match="in the clear"):
        run.coordinator.receive("a", encode(clear, tensors))
    naked = encode(clear.model_copy(update={"form": "weights"}), {"values": WEIGHTS, "buffers": WEIGHTS[:0]})
    with pytest.raises(ProtocolError, match="in the clear"):
        run.coordinator.receive("a", naked)
    for answer in answers:
        run.coordinator.receive("a", answer)  # nothing of the others was taken


def test_a_run_goes_on_without_a_site_that_answers_in_the_clear(tmp_path):
    run = Run(works(), tmp_path, secure=SECURE)
    honest = run.sites["a"].receive

    def naked(data):
        if isinstance(decode(data)[0], Task):
            honest(data)
            clear = Result(round=1, form="weights", weight=17.0, train_loss=0.0)
            return [encode(clear, {"values": WEIGHTS, "buffers": np.zeros(0, np.float32)})]
        return honest(data)

    run.sites["a"].receive = naked
    run.go()
    assert "in the clear" in run.coordinator.lost["a"]


@pytest.mark.parametrize("harm", ["garbage", "truncated", "replayed", "of another site", "flipped"])
def test_a_site_that_garbles_its_frames_is_lost_and_the_others_go_on(tmp_path, harm):
    run = Run(works(), tmp_path, secure=SECURE, weighting="equal")
    earlier = {}

    def wrapped(name, honest):
        def receive(data):
            answers = honest(data)
            message, _ = decode(data)
            if isinstance(message, Task) and message.train:
                pieces = frames_in(answers)
                earlier.setdefault((name, message.round), pieces)
                if name == "c" and message.round == 2:
                    return [encode(decode(answers[0])[0], with_frames(_harmed(harm, pieces, earlier)))]
            return answers

        return receive

    for name, site in run.sites.items():
        site.receive = wrapped(name, site.receive)
    run.go()
    assert set(run.coordinator.lost) == {"c"}
    targets = [work.target.astype(float) for work in works().values()]
    weights = (WEIGHTS + np.mean(targets, axis=0)) / 2
    for _ in range(2):
        weights = (weights + np.mean([targets[at] for at in (0, 1, 3, 4)], axis=0)) / 2
    np.testing.assert_allclose(run.coordinator.weights, weights, atol=1e-6)


def _harmed(harm, pieces, earlier):
    match harm:
        case "garbage":
            return [b"garbage"]
        case "truncated":
            return [pieces[0], pieces[1][:-1], *pieces[2:]]
        case "replayed":
            return earlier["c", 1]
        case "of another site":
            return earlier["b", 2]
    return [pieces[0], pieces[1][:-1] + bytes([pieces[1][-1] ^ 1]), *pieces[2:]]


def _numbers(values):
    """Bytes that would give a number away, in every width and order that it may travel in."""
    found = {}
    for value in values:
        for form in ("<f", ">f", "<d", ">d", "<i", ">i", "<q", ">q"):
            if form[1] in "fd" or float(value).is_integer():
                encoded = struct.pack(form, value if form[1] in "fd" else int(value))
                if encoded.count(0) < len(encoded) - 2:  # too short a pattern is found by chance
                    found[encoded] = value
    return found


def test_nothing_of_a_single_site_is_sent_in_the_clear(tmp_path):
    """Headers without figures, and in the bytes no weight, change, size, loss or score; the clear run shows all."""

    def sent(folder, **options):
        parts = works()
        for number, work in enumerate(parts.values()):
            work.num_examples, work.num_validation = 70_001 + 1117 * number, 90_011 + 1009 * number
        run = Run(parts, folder, **options)
        log = {name: [] for name in parts}
        for name, site in run.sites.items():
            site.join, site.receive = logged(site, log[name])
        run.go()
        return parts, run, log

    largest = SecureAggregation(largest_site=100_000)
    parts, run, log = sent(tmp_path, secure=largest)
    _, _, clear_log = sent(tmp_path / "clear")
    for name, work in parts.items():
        first = work.train(1, WEIGHTS, np.zeros(0, np.float32)).values
        change = first.astype(float) - WEIGHTS
        scores = work.validate(run.coordinator.weights, np.zeros(0, np.float32))
        secrets = _numbers(
            [*first, *change, *(change * work.num_examples), work.num_examples, work.num_validation, *scores.values()]
        )
        said, said_clearly = b"".join(log[name]), b"".join(clear_log[name])
        assert not [secret for pattern, secret in secrets.items() if pattern in said]
        assert [secret for pattern, secret in secrets.items() if pattern in said_clearly], "the test sees nothing"
        for text in (str(work.num_examples), str(work.num_validation), *map(repr, scores.values())):
            assert text.encode() not in said
        assert str(work.num_examples).encode() in said_clearly
        for data in log[name]:
            _check_header(decode(data))
        assert {type(decode(data)[0]) for data in log[name]} == {Join, Sealed, Result, Scores}


def _check_header(told):
    message, tensors = told
    assert all(name.startswith("frame") and tensor.dtype == np.uint8 for name, tensor in tensors.items())
    said = message.model_dump(exclude={"site", "plan_hash", "round"})
    assert said in (
        {"num_examples": None},
        {},
        {"form": "sealed", "weight": 1.0, "train_loss": None},
        {"num_examples": 0, "loss": None, "auc": None, "dice": None},
    )


def test_the_same_contribution_looks_new_each_time(tmp_path):
    """Masks are fresh: neither two rounds nor two sites with the same change can be told to be alike."""
    chunks = []
    parts = {name: Work(WEIGHTS) for name in NAMES}  # nobody changes anything, ever
    run = Run(parts, tmp_path, secure=SECURE)
    log = []
    for site in run.sites.values():
        site.join, site.receive = logged(site, log)
    run.go()
    for data in log:
        for frame in frames_of(decode(data)[1]):
            message = frames.decode(frame)
            if isinstance(message, frames.Chunk):
                chunks.append(bytes(message.data))
    assert len(chunks) == 5 * 6
    assert len(set(chunks)) == len(chunks)
    words = np.concatenate([np.frombuffer(chunk, np.uint8) for chunk in chunks])
    assert np.bincount(words, minlength=256).max() < 0.05 * len(words)


def test_a_server_that_asks_again_within_a_session_gets_no_second_sum(tmp_path):
    """The same round from the same weights, over fewer sites: the difference would be one site's change."""
    run, tasks = joined(tmp_path)
    answers = {name: run.sites[name].receive(tasks[name]) for name in NAMES}
    out = []
    for name, answer in answers.items():
        out += run.secure.receive(name, frames_in(answer))
    for one in out:
        [reply] = run.sites[one.site].receive(encode(Sealed(), with_frames([one.data])))
        run.secure.receive(one.site, frames_of(decode(reply)[1]))
    assert run.secure.opened
    run.secure._decided = Decided()  # the server forgets over whom it had the first one opened
    begun = run.secure.begin("round", 1, fingerprint(run.coordinator.weights, run.coordinator.buffers))
    task, tensors = decode(tasks["a"])
    model = {name: tensor for name, tensor in tensors.items() if not name.startswith("frame")}
    out = []
    for name in NAMES[:4]:
        replies = run.sites[name].receive(encode(task, model | with_frames(begun[name])))
        out += run.secure.receive(name, frames_in(replies))
    out += run.secure.lose("e")
    assert {one.site for one in out} == set(NAMES[:4])
    for one in out:
        with pytest.raises(AuthenticityError, match="second time"):
            run.sites[one.site].receive(encode(Sealed(), with_frames([one.data])))


def test_a_task_without_a_sum_to_go_into_gets_no_answer(tmp_path):
    run, tasks = joined(tmp_path)
    task, tensors = decode(tasks["a"])
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("frame")}
    with pytest.raises(ProtocolError, match="secure sum"):
        run.sites["a"].receive(encode(task, bare))
    with pytest.raises((ProtocolError, MessageError)):
        run.sites["a"].receive(encode(task, bare | with_frames([b"begin"])))


def test_scores_are_given_for_rounds_that_the_plan_validates(tmp_path):
    """Else a server asks for nearly the same weights again, without one site, as often as it likes."""
    run, tasks = joined(tmp_path)
    task, tensors = decode(tasks["a"])
    asked = encode(task.model_copy(update={"train": False, "validate_model": True}), tensors)
    run.sites["a"]._sealing._due = lambda number: number != task.round
    with pytest.raises(ProtocolError, match="the plan does not ask for"):
        run.sites["a"].receive(asked)


def test_training_and_validation_do_not_share_a_step(tmp_path):
    run, tasks = joined(tmp_path)
    task, tensors = decode(tasks["a"])
    both = task.model_copy(update={"validate_model": True})
    with pytest.raises(ProtocolError, match="secure sum"):
        run.sites["a"].receive(encode(both, tensors))


def test_a_site_that_says_nothing_does_not_end_the_run_silently(tmp_path):
    run = Run(works(), tmp_path, secure=SECURE)
    honest = run.sites["a"].receive
    run.sites["a"].receive = lambda data: [] if isinstance(decode(data)[0], Task) else honest(data)
    run.go()
    assert run.coordinator.done


@pytest.mark.parametrize("what", ["weights", "buffers", "round"])
@pytest.mark.parametrize("validating", [False, True])
def test_a_server_that_sends_one_site_another_task_opens_nothing(tmp_path, what, validating):
    """Model inconsistency: weights that make the others contribute nothing would make the sum that site's own."""
    run = Run(works(), tmp_path, secure=SECURE, buffers=(0.5,))
    honest, collect = run.sites["c"].receive, run.secure.receive

    def deceived(data):
        message, tensors = decode(data)
        if isinstance(message, Task) and message.validate_model == validating:
            if what != "round":
                return honest(encode(message, tensors | {what: tensors[what] + np.float32(0.25)}))
            first, *rest = honest(encode(message.model_copy(update={"round": message.round + 1}), tensors))
            header, frame = decode(first)  # as the coordinator expects it
            return [encode(header.model_copy(update={"round": message.round}), frame), *rest]
        return honest(data)

    def lax(site, received):
        """The server knows what it did: it lets the difference pass."""
        out = []
        for frame in received:
            for session in run.secure._sessions:
                if session._collection is not None:
                    session._collection._context = None
            out += collect(site, [frame])
        return out

    run.sites["c"].receive, run.secure.receive = deceived, lax
    with pytest.raises(TooFewSitesError):
        run.go()
    assert run.secure.counts.sums_opened == int(validating)  # of the first round's training
    assert run.coordinator.lost
    assert all("from the same" in reason for reason in run.coordinator.lost.values())


def test_a_site_that_works_from_other_weights_is_lost_and_the_sum_is_over_the_others(tmp_path):
    run = Run(works(), tmp_path, secure=SECURE)
    honest = run.sites["c"].receive

    def mistaken(data):
        message, tensors = decode(data)
        if isinstance(message, Task) and message.train and message.round == 1:
            return honest(encode(message, tensors | {"weights": tensors["weights"] + np.float32(0.25)}))
        return honest(data)

    run.sites["c"].receive = mistaken
    run.go()
    assert run.coordinator.round == 3
    assert set(run.coordinator.lost) == {"c"}
    assert run.secure.counts.dropped["c"] > 0
    assert run.secure.counts.sums_opened == 6


def test_the_context_of_a_sum_is_the_round_and_the_weights(tmp_path):
    """And all sites state the same one, another in every sum."""
    run = Run(works(), tmp_path, secure=SECURE, buffers=(0.5,))
    expected, found = [], {}

    def wrapped(name, honest):
        def receive(data):
            message, _ = decode(data)
            answers = honest(data)
            if isinstance(message, Task):
                if name == "a":
                    model = hashlib.sha256()
                    for vector in (run.coordinator.weights, run.coordinator.buffers):
                        model.update(f"<f4 ({vector.size},) ".encode() + vector.tobytes())
                    purpose = "scores" if message.validate_model else "round"
                    stated = f"{purpose} {message.round} {model.hexdigest()}"
                    expected.append(hashlib.sha256(stated.encode()).digest())
                upload = next(one for one in map(frames.decode, frames_in(answers)) if isinstance(one, frames.Upload))
                found.setdefault(name, []).append(upload.receipt.context)
            return answers

        return receive

    for name, site in run.sites.items():
        site.receive = wrapped(name, site.receive)
    run.go()
    assert all(contexts == expected for contexts in found.values())
    assert set(found) == set(NAMES)
    assert len(expected) == len(set(expected)) == 6
