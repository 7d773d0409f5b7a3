"""A federation of five small sites, with a secure sum between them or in the clear."""

import hashlib

import numpy as np

from medveil.errors import DivergedError
from medveil.federation.clear_sum import SCORES
from medveil.federation.coordinator import Coordinator, Watch
from medveil.federation.inprocess import InProcess
from medveil.federation.messages import Sealed, Task, decode, frames_of
from medveil.federation.secure.blocks import Blocks
from medveil.federation.secure.outbox import Outbox
from medveil.federation.secure.packing import PlainPacking, ScorePacking
from medveil.federation.secure.server import Group, SecureServer
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.secure.site import SecureSite
from medveil.federation.server import Averaging
from medveil.federation.settings import FedAvg, Federation
from medveil.federation.site import LocalResult, Site
from medveil.federation.stages import Pipeline
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


def joined(tmp_path, **settings):
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


def frames_in(answers):
    return [frame for answer in answers for frame in frames_of(decode(answer)[1])]


def logged(site, log):
    join, receive = site.join, site.receive

    def joining():
        log.append(join())
        return log[-1]

    def receiving(data):
        answers = receive(data)
        log.extend(answers)
        return answers

    return joining, receiving
