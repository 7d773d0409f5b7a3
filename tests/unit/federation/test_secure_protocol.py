"""Coordinator and sites with a secure sum between them: same result, hidden parts, sites that vanish or cheat."""

import hashlib
import struct

import numpy as np
import pytest

from medveil.errors import AuthenticityError, DivergedError, MessageError, ProtocolError, TooFewSitesError
from medveil.federation.clear_sum import SCORES
from medveil.federation.coordinator import Coordinator, Watch
from medveil.federation.inprocess import InProcess
from medveil.federation.messages import Join, Result, Scores, Sealed, Task, decode, encode, frames_of, with_frames
from medveil.federation.secure.blocks import Blocks
from medveil.federation.secure.origin import fingerprint
from medveil.federation.secure.outbox import Outbox
from medveil.federation.secure.packing import PlainPacking, ScorePacking
from medveil.federation.secure.server import Group, SecureServer
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.secure.site import SecureSite
from medveil.federation.server import Averaging
from medveil.federation.settings import FedAvg, Federation, FedSgd
from medveil.federation.site import LocalResult, Site
from medveil.federation.snapshot import load_snapshot, save_snapshot
from medveil.federation.stages import NormBound, NormBoundStage, Pipeline
from medveil.rng import Seeds
from medveil.secagg import IdentityKey, Parameters
from medveil.secagg import messages as frames

NAMES = ("a", "b", "c", "d", "e")
WEIGHTS = np.array([0.25, -0.5, 0.125], np.float32)


class Work:
    """Moves the weights half-way to the site's own target, in steps that only float32 rounds."""

    def __init__(self, target, *, examples=10, validation=4, form="weights", loss=1.0):
        self.target = np.asarray(target, np.float32)
        self.num_examples, self.num_validation = examples, validation
        self.form, self.loss = form, loss
        self.trained = []

    def train(self, round_number, weights, buffers):
        self.trained.append(round_number)
        moved = weights + (self.target - weights) / 2 if self.form == "weights" else (self.target - weights) / 2
        return LocalResult(self.form, moved.astype(np.float32), (buffers + self.target[:1]) / 2, self.loss)

    def validate(self, weights, buffers):
        distance = float(np.abs(weights - self.target).mean())
        return {"loss": distance, "auc": 1 / (1 + distance) if self.num_validation > 2 else None}


def works(form="weights", sites=5):
    targets = Seeds(4).child("targets").numpy().uniform(-0.5, 0.5, (sites, 3))
    return {
        name: Work(target, examples=17 + 13 * number, validation=2 + 3 * number, form=form, loss=0.3 * number)
        for number, (name, target) in enumerate(zip(NAMES, targets, strict=False))
    }


class Run:
    """One federation; ``secure`` None is the clear one."""

    def __init__(self, parts, folder, *, secure=None, buffers=(), pipeline=(), watch=None, weights=WEIGHTS, **settings):
        chosen = Federation(**({"rounds": 3, "algorithm": FedAvg(local_steps=1)} | settings))
        stages = Pipeline(pipeline)
        server, sealing = _secure(parts, folder, secure, chosen, len(weights), len(buffers))
        self.sites = {
            name: Site(
                name,
                plan_hash="p",
                work=work,
                weighting=chosen.weighting,
                pipeline=stages,
                sealing=sealing.get(name),
            )
            for name, work in parts.items()
        }
        self.rows = []
        self.coordinator = Coordinator(
            plan_hash="p",
            sites=list(parts),
            settings=chosen,
            metric="loss",
            server=Averaging(),
            pipeline=stages,
            weights=np.asarray(weights, np.float32),
            buffers=np.array(buffers, np.float32),
            secure=server,
            watch=watch or Watch(round_done=self.rows.append),
        )
        self.secure = server

    def go(self, workers=1):
        InProcess(self.sites, workers=workers).run(self.coordinator)
        assert self.coordinator.done
        return self


def _secure(parts, folder, settings, federation, dimension, buffers):
    if settings is None:
        return None, {}
    keys = {name: IdentityKey.generate() for name in parts}
    dealt = settings.deal(list(parts), Seeds(1))
    most = max(map(len, dealt))
    packing = PlainPacking(
        dimension=dimension,
        buffers=buffers,
        sites=most,
        settings=settings,
        weighted=federation.weighting == "size",
        silent=False,
    )
    scores = ScorePacking(SCORES, most)
    groups, sites = [], {}
    for number, members in enumerate(dealt):
        parameters = Parameters(
            context=hashlib.sha256(bytes([number])).digest(),
            sites=tuple((name, keys[name].public) for name in members),
            threshold=settings.threshold_of(len(members)),
            colluding=settings.colluding,
            min_included=len(members) - settings.dropouts_of(len(members)),
            chunk_bytes=settings.chunk_bytes,
        )
        blocks = Blocks(settings.blocks, packing.start, dimension)
        groups.append(Group(parameters, packing, blocks))
        for name in members:
            box = Outbox(folder / name)
            parts_ = {"packing": packing, "blocks": blocks, "score_packing": scores}
            sites[name] = SecureSite(parameters, name, keys[name], box, **parts_)
    return SecureServer(groups, scores, settings), sites


SECURE = SecureAggregation()


@pytest.mark.parametrize("weighting", ["size", "equal"])
@pytest.mark.parametrize("algorithm", [FedAvg(local_steps=1), FedSgd()], ids=["fedavg", "fedsgd"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("buffers", [(), (0.5,)], ids=["no buffers", "buffers"])
def test_the_result_is_that_of_the_clear_run(tmp_path, weighting, algorithm, groups, buffers):
    """And so are losses, scores and what is selected by them: to the resolution of the sums."""
    form = "mean" if isinstance(algorithm, FedSgd) else "weights"
    sites = 5 if groups == 1 else 6
    parts = works(form, 5) | ({"f": Work([0.1] * 3, form=form)} if sites == 6 else {})
    options = {"weighting": weighting, "algorithm": algorithm, "buffers": buffers, "select": "best"}
    settings = SecureAggregation(groups=groups)
    clear = Run(parts, tmp_path, **_split(options)).go()
    secure = Run(parts, tmp_path, secure=settings, **_split(options)).go(workers=3)
    np.testing.assert_allclose(secure.coordinator.weights, clear.coordinator.weights, rtol=0, atol=3e-7)
    np.testing.assert_allclose(secure.coordinator.buffers, clear.coordinator.buffers, rtol=0, atol=3e-7)
    assert secure.coordinator.selection.best_round == clear.coordinator.selection.best_round
    for told, expected in zip(secure.rows, clear.rows, strict=True):
        assert told["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-4)
        assert told["validation"] == pytest.approx(expected["validation"], abs=1e-5)
    counts = secure.secure.describe()
    assert counts["sums_opened"] == 6 * groups
    assert counts["clipped"] == 0


@pytest.mark.parametrize("algorithm", [FedAvg(local_steps=1), FedSgd()], ids=["fedavg", "fedsgd"])
@pytest.mark.parametrize("gone", [None, "b"], ids=["all there", "one gone"])
def test_with_blocks_every_coordinate_moves_in_its_round_as_in_a_clear_one(tmp_path, algorithm, gone):
    """Targets are held coordinate by coordinate, so one round of three blocks each is one clear round of all."""
    form = "mean" if isinstance(algorithm, FedSgd) else "weights"
    secure = Run(works(form), tmp_path, secure=SecureAggregation(blocks=3), algorithm=algorithm)
    remaining = works(form)
    if gone is not None:
        secure.sites[gone] = Vanishing(secure.sites[gone], "joining")
        del remaining[gone]
    secure.go()
    clear = Run(remaining, tmp_path, algorithm=algorithm, rounds=1).go()
    np.testing.assert_allclose(secure.coordinator.weights, clear.coordinator.weights, rtol=0, atol=3e-7)


def test_each_round_of_blocks_moves_one_block_and_sends_no_more(tmp_path):
    sums = []

    def opened(run):
        original = run.secure.update

        def update(round_number):
            total, loss = original(round_number)
            sums.append((round_number, total.mean().nonzero()[0].tolist(), run.secure._opened[0].total.size))
            return total, loss

        run.secure.update = update

    run = Run(works(), tmp_path, secure=SecureAggregation(blocks=2), rounds=4)
    opened(run)
    run.go()
    extra = run.secure._groups[0].packing.length - len(WEIGHTS)
    assert sums == [(1, [0], 1 + extra), (2, [1, 2], 2 + extra), (3, [0], 1 + extra), (4, [1, 2], 2 + extra)]


def _split(options):
    return {key: value for key, value in options.items() if key != "buffers"} | {"buffers": options["buffers"]}


def test_stages_run_before_the_sum(tmp_path):
    bound = [NormBoundStage(NormBound(l2_norm=0.05))]
    clear = Run(works(), tmp_path, pipeline=bound).go()
    secure = Run(works(), tmp_path, pipeline=bound, secure=SECURE).go()
    np.testing.assert_allclose(secure.coordinator.weights, clear.coordinator.weights, atol=1e-6)


def test_a_site_without_validation_data_hides_that(tmp_path):
    parts = works()
    parts["a"].num_validation = 0
    clear, secure = Run(parts, tmp_path).go(), Run(parts, tmp_path, secure=SECURE).go()
    assert secure.rows[-1]["validation"] == pytest.approx(clear.rows[-1]["validation"], abs=1e-5)


def test_one_round_without_validation(tmp_path):
    secure = Run(works(), tmp_path, secure=SECURE, validate_every=0, rounds=2).go()
    assert [row["validation"] for row in secure.rows] == [None, None]
    assert secure.secure.counts.sums_opened == 2


POINTS = ["joining", "preparing", "before upload", "half-way", "after upload", "at opening", "validating"]


class Vanishing:
    """A site that falls silent for good at one point of its second round (or of the joining)."""

    def __init__(self, site, point):
        self._site, self._point, self.gone = site, point, False
        self._uploaded = False

    def __getattr__(self, name):
        return getattr(self._site, name)

    def join(self):
        if self._point == "joining":
            raise DivergedError("Gone")
        return self._site.join()

    def receive(self, data):
        message, tensors = decode(data)
        task = isinstance(message, Task)
        if self.gone or (task and self._now(message)):
            self.gone = True
            raise DivergedError("Gone")
        if isinstance(message, Sealed) and self._now(None, self._kinds(tensors)):
            self.gone = True
            raise DivergedError("Gone")
        answers = self._site.receive(data)
        if task and message.train and message.round == 2:
            self._uploaded = True
            if self._point in {"half-way", "after upload"}:  # without the chunk; without the next step's keys
                self.gone = True
                return [*answers[: 2 if self._point == "half-way" else -1], b"the line breaks"]
        return answers

    @staticmethod
    def _kinds(tensors):
        return {type(frames.decode(frame)) for frame in frames_of(tensors)}

    def _now(self, task, kinds=frozenset()):
        if task is not None:
            wanted = {"before upload": task.train, "validating": task.validate_model}
            return wanted.get(self._point, False) and task.round == 2
        if self._point == "preparing":
            return frames.Roster in kinds
        return self._point == "at opening" and self._uploaded and frames.Survivors in kinds


def _vanishing(tmp_path, point, count, **settings):
    run = Run(works(), tmp_path, secure=SecureAggregation(**settings), weighting="equal")
    for name in NAMES[:count]:
        run.sites[name] = Vanishing(run.sites[name], point)
    return run


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("count", [1, 2])
def test_sites_that_vanish_up_to_dropouts_cost_nothing(tmp_path, point, count):
    run = _vanishing(tmp_path, point, count, dropouts=2).go()
    assert set(run.coordinator.lost) == set(NAMES[:count])
    assert [row["round"] for row in run.rows] == [1, 2, 3]
    np.testing.assert_allclose(run.coordinator.weights, _by_hand(point, count), atol=1e-6)


def _by_hand(point, count):
    """The weights after three rounds, in which the first sites took part for as long as they were there."""
    targets = [work.target.astype(float) for work in works().values()]
    whole = {"joining": 0, "preparing": 0, "before upload": 1, "half-way": 1}.get(point, 2)  # what was uploaded counts
    weights = WEIGHTS.astype(float)
    for number in (1, 2, 3):
        present = targets if number <= whole else targets[count:]
        weights = weights + (np.mean(present, axis=0) - weights) / 2
    return weights


@pytest.mark.parametrize("point", POINTS)
def test_one_more_than_dropouts_ends_the_run_and_opens_nothing(tmp_path, point):
    run = _vanishing(tmp_path, point, 3, dropouts=2)
    with pytest.raises(TooFewSitesError):
        run.go()
    finished = {"joining": 0, "preparing": 0, "validating": 2}.get(point, 1)
    assert run.coordinator.round == finished
    # Round 2 was never opened: its sum is neither in the count nor in the weights.
    assert run.secure.counts.sums_opened == {0: 0, 1: 2, 2: 3}[finished]
    if finished == 1:
        targets = [work.target.astype(float) for work in works().values()]
        np.testing.assert_allclose(run.coordinator.weights, (WEIGHTS + np.mean(targets, axis=0)) / 2, atol=1e-6)


def test_no_dropouts_means_none(tmp_path):
    with pytest.raises(TooFewSitesError):
        _vanishing(tmp_path, "before upload", 1, dropouts=0).go()


def test_a_group_that_is_too_small_ends_the_run_though_enough_are_left(tmp_path):
    parts = works() | {"f": Work([0.1] * 3)}
    settings = SecureAggregation(groups=2)
    small = settings.deal(list(parts), Seeds(1))[0]
    run = Run(parts, tmp_path, secure=settings, weighting="equal")
    for name in small[:2]:
        run.sites[name] = Vanishing(run.sites[name], "before upload")
    with pytest.raises(TooFewSitesError):
        run.go()


def _joined(tmp_path, **settings):
    """A coordinator that waits for the first round's answers, its sites, and their tasks."""
    run = Run(works(), tmp_path, secure=SECURE, **settings)
    out = []
    for name, site in run.sites.items():
        out += run.coordinator.receive(name, site.join())
    tasks = {}
    for one in out:
        for answer in run.sites[one.site].receive(one.data):
            tasks |= {given.site: given.data for given in run.coordinator.receive(one.site, answer)}
    assert set(tasks) == set(NAMES)
    return run, tasks


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
    run, tasks = _joined(tmp_path)
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
                pieces = _frames_in(answers)
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


def _frames_in(answers):
    return [frame for answer in answers for frame in frames_of(decode(answer)[1])]


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
            site.join, site.receive = _logged(site, log[name])
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


def _logged(site, log):
    join, receive = site.join, site.receive

    def joining():
        log.append(join())
        return log[-1]

    def receiving(data):
        answers = receive(data)
        log.extend(answers)
        return answers

    return joining, receiving


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
        site.join, site.receive = _logged(site, log)
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


def _huge(combine, folder, **options):
    parts = {name: Work([0.2, 0.1, -0.1], form="weights") for name in "abcdefghi"}
    parts["e"] = Work([1e9, -1e9, 1e9])
    settings = SecureAggregation(groups=3, combine=combine, **options)
    zeros = np.zeros(3, np.float32)
    run = Run(parts, folder, secure=settings, weighting="equal", rounds=1, weights=zeros, buffers=(0.0,))
    return run.go()


def test_the_median_of_groups_resists_one_huge_site(tmp_path):
    honest = np.array([0.1, 0.05, -0.05])
    median, mean = _huge("median", tmp_path / "median"), _huge("mean", tmp_path / "mean")
    np.testing.assert_allclose(median.coordinator.weights, honest, atol=1e-6)
    np.testing.assert_allclose(median.coordinator.buffers, [0.1], atol=1e-6)  # running statistics too
    assert np.abs(mean.coordinator.weights - honest).max() > 0.09  # the range bounds it, no more
    assert np.abs(mean.coordinator.weights).max() <= (8 * 0.1 + 1) / 9 + 1e-6


def test_a_norm_bound_refuses_the_group_of_a_huge_site(tmp_path):
    run = _huge("mean", tmp_path, l2_norm=0.3)
    np.testing.assert_allclose(run.coordinator.weights, [0.1, 0.05, -0.05], atol=1e-6)
    assert run.secure.describe()["refused_groups"] == 1


def test_a_norm_bound_that_no_group_keeps_ends_the_run(tmp_path):
    with pytest.raises(ProtocolError, match="l2_norm"):
        _huge("mean", tmp_path, l2_norm=0.01)


def test_what_is_clipped_is_counted_over_all_rounds(tmp_path):
    parts = {name: Work([0.0, 0.0, 8.0 if name == "b" else 0.0]) for name in NAMES}
    run = Run(parts, tmp_path, secure=SecureAggregation(value_range=0.5), weights=np.zeros(3)).go()
    assert run.secure.describe()["clipped"] == 3


class PowerCutError(Exception):
    """Nothing in medveil may catch this."""


@pytest.mark.parametrize("committed", [0, 1, 2])
def test_a_restart_ends_with_the_same_weights(tmp_path, committed):
    """The power goes when round ``committed + 1`` is opened but not yet on disk."""
    straight = Run(works(), tmp_path / "straight", secure=SECURE).go()
    path = tmp_path / "state.safetensors"
    first = None

    def commit(row):
        if row["round"] > committed:
            raise PowerCutError
        save_snapshot(first.coordinator.snapshot(), path)

    first = Run(works(), tmp_path / "boxes", secure=SECURE, watch=Watch(round_done=commit))
    with pytest.raises(PowerCutError):
        first.go()
    parts = works()
    second = Run(parts, tmp_path / "boxes", secure=SECURE)
    if committed:
        second.coordinator.restore(load_snapshot(path))
    second.go()
    np.testing.assert_array_equal(second.coordinator.weights, straight.coordinator.weights)
    # What was written down is sent again, not made again.
    assert all(work.trained == list(range(committed + 2, 4)) for work in parts.values())
    assert second.secure.counts.sums_opened == 6


def test_a_round_that_was_opened_is_not_opened_over_other_sites_after_a_restart(tmp_path):
    def cut(_row):
        raise PowerCutError

    with pytest.raises(PowerCutError):
        Run(works(), tmp_path, secure=SECURE, watch=Watch(round_done=cut)).go()
    again = Run(works(), tmp_path, secure=SECURE)
    again.sites["b"] = Vanishing(again.sites["b"], "joining")
    with pytest.raises(TooFewSitesError, match="second time"):
        again.go()
    assert again.coordinator.round == 0
    assert again.secure.counts.sums_opened == 0
    whole = Run(works(), tmp_path, secure=SECURE).go()  # with all of them it goes on
    assert whole.coordinator.round == 3


def test_a_server_that_asks_again_within_a_session_gets_no_second_sum(tmp_path):
    """The same round from the same weights, over fewer sites: the difference would be one site's change."""
    run, tasks = _joined(tmp_path)
    answers = {name: run.sites[name].receive(tasks[name]) for name in NAMES}
    out = []
    for name, answer in answers.items():
        out += run.secure.receive(name, _frames_in(answer))
    for one in out:
        [reply] = run.sites[one.site].receive(encode(Sealed(), with_frames([one.data])))
        run.secure.receive(one.site, frames_of(decode(reply)[1]))
    assert run.secure.opened
    begun = run.secure.begin("round", 1, fingerprint(run.coordinator.weights, run.coordinator.buffers))
    task, tensors = decode(tasks["a"])
    model = {name: tensor for name, tensor in tensors.items() if not name.startswith("frame")}
    out = []
    for name in NAMES[:4]:
        replies = run.sites[name].receive(encode(task, model | with_frames(begun[name])))
        out += run.secure.receive(name, _frames_in(replies))
    out += run.secure.lose("e")
    assert {one.site for one in out} == set(NAMES[:4])
    for one in out:
        with pytest.raises(AuthenticityError, match="second time"):
            run.sites[one.site].receive(encode(Sealed(), with_frames([one.data])))


def test_a_task_without_a_sum_to_go_into_gets_no_answer(tmp_path):
    run, tasks = _joined(tmp_path)
    task, tensors = decode(tasks["a"])
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("frame")}
    with pytest.raises(ProtocolError, match="secure sum"):
        run.sites["a"].receive(encode(task, bare))
    with pytest.raises((ProtocolError, MessageError)):
        run.sites["a"].receive(encode(task, bare | with_frames([b"begin"])))


def test_scores_are_given_for_rounds_that_the_plan_validates(tmp_path):
    """Else a server asks for nearly the same weights again, without one site, as often as it likes."""
    run, tasks = _joined(tmp_path)
    task, tensors = decode(tasks["a"])
    asked = encode(task.model_copy(update={"train": False, "validate_model": True}), tensors)
    run.sites["a"]._sealing._due = lambda number: number != task.round
    with pytest.raises(ProtocolError, match="the plan does not ask for"):
        run.sites["a"].receive(asked)


def test_training_and_validation_do_not_share_a_step(tmp_path):
    run, tasks = _joined(tmp_path)
    task, tensors = decode(tasks["a"])
    both = task.model_copy(update={"validate_model": True})
    with pytest.raises(ProtocolError, match="secure sum"):
        run.sites["a"].receive(encode(both, tensors))


def test_a_site_that_says_nothing_does_not_end_the_run_silently(tmp_path):
    run = Run(works(), tmp_path, secure=SECURE)
    honest = run.sites["a"].receive
    run.sites["a"].receive = lambda data: [] if isinstance(decode(data)[0], Task) else honest(data)
    try:
        InProcess(run.sites, workers=1).run(run.coordinator)
    except (ProtocolError, TooFewSitesError):
        return
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
                upload = next(one for one in map(frames.decode, _frames_in(answers)) if isinstance(one, frames.Upload))
                found.setdefault(name, []).append(upload.receipt.context)
            return answers

        return receive

    for name, site in run.sites.items():
        site.receive = wrapped(name, site.receive)
    run.go()
    assert all(contexts == expected for contexts in found.values())
    assert set(found) == set(NAMES)
    assert len(expected) == len(set(expected)) == 6
