"""A site's sums beside the rounds of a training: each statistic is given once, of one model, over one set of sites."""

from collections.abc import Mapping, Sequence

import numpy as np

from medveil.connect.audit_log import AuditLog
from medveil.connect.own import Own
from medveil.connect.tallies import needed_tallies
from medveil.errors import PolicyError, ProtocolError
from medveil.federation.messages import Ask, Tensors
from medveil.federation.secure.origin import fingerprint
from medveil.federation.secure.sums import sum_parameters
from medveil.federation.secure.tally_notes import TallyNotes
from medveil.federation.tally import TallySite
from medveil.models.crafted import check_weights_not_crafted, has_hidden_linear, synthetic_inputs
from medveil.secagg.identity import IdentityKey
from medveil.study.scoring import Scorer
from medveil.training.vectors import floating_buffers, from_vector, to_vector, trainable


class SiteSums:
    """One attempt's sums.

    Args:
        own: what the site brings.
        keys: identity keys of all sites of the run, in their order.
        identity: the site's own.
        notes: what was given in this run.
        forever: what was given in any run: the cohort does not change, so it is summed over one set of sites.
        session: what tells this attempt from others.
        log: the site's audit log.
    """

    def __init__(
        self,
        own: Own,
        keys: Mapping[str, bytes],
        identity: IdentityKey,
        *,
        notes: TallyNotes,
        forever: TallyNotes,
        session: str,
        log: AuditLog,
    ) -> None:
        self._own, self._keys, self._identity = own, dict(keys), identity
        self._notes, self._forever = notes, forever
        self._session, self._log = session, log
        self._tally: TallySite | None = None

    @property
    def begun(self) -> bool:
        """Whether frames belong to a sum of this kind, and not to the training."""
        return self._tally is not None

    def ask(self, ask: Ask, tensors: Tensors, *, trained: bool) -> list[bytes]:
        """Compute a statistic, and give it once.

        Args:
            ask: what the coordinator wants.
            tensors: that came with it.
            trained: whether the training has ended.

        Raises:
            PolicyError: the plan asks for no such statistic.
            ProtocolError: too early, or weights that do not fit.
            AuthenticityError: it left before, computed from something else.
        """
        own, purpose = self._own, ask.purpose
        sites = tuple(self._keys)
        tallies = needed_tallies(own.plan, own.prepared.dataset.class_names, own.prepared.input_shape[0], sites)
        if purpose not in tallies:
            raise PolicyError("The server asks for a statistic that the plan does not ask for", got=purpose)
        if not trained:
            raise ProtocolError("A statistic was asked for before the training ended", got=purpose)
        plan_hash, cohort = own.plan.digest(), purpose == "cohort"
        notes, name = self._notes, str(purpose)
        if cohort:
            notes, name = self._forever, f"cohort {plan_hash} {own.prepared.fingerprint}"
        origin = fingerprint() if cohort else self._load(tensors)
        notes.begin(name, origin)
        self._log.append("statistic-asked", plan=plan_hash, reason=purpose, weights=origin)
        scorer = Scorer(own.plan, own.prepared.dataset.class_names, own.device)
        vector = tallies[purpose].vector(scorer, own.first, own.prepared.sites[0], own.prepared.test)
        settings = own.plan.privacy.secure_aggregation
        parameters = None
        if settings is not None:
            parameters = sum_parameters(self._keys, settings, f"{plan_hash} {self._session} {purpose}")

        def accept(included: Sequence[str]) -> None:
            notes.accept(name, included)
            self._log.append("statistic-opened", plan=plan_hash, reason=purpose, included=tuple(sorted(included)))

        self._tally = TallySite(
            purpose,
            vector,
            origin=origin,
            name=own.name,
            parameters=parameters,
            identity=self._identity,
            accept=accept,
        )
        return self._tally.begin()

    def frames(self, tensors: Tensors) -> list[bytes]:
        """Answer frames of the secure sum.

        Raises:
            ProtocolError: the coordinator breaks the protocol.
        """
        assert self._tally is not None
        return self._tally.receive(tensors)

    def _load(self, tensors: Tensors) -> str:
        """Put the weights that are to be scored into the network; what they are.

        Raises:
            ProtocolError: none came, or of another size.
            GuaranteeError: they look crafted to copy images.
        """
        model, vectors = self._own.first, []
        for name, own in (("weights", trainable(model)), ("buffers", floating_buffers(model))):
            vector = tensors.get(name)
            size = len(to_vector(own))
            if vector is None or vector.dtype != np.float32 or vector.shape != (size,):
                raise ProtocolError("The weights to be scored do not fit the network", expected=f"{size} of float32")
            vectors.append(np.asarray(vector, dtype=np.float32))
            from_vector(vectors[-1], own)
        if has_hidden_linear(model):
            check_weights_not_crafted(model, synthetic_inputs(self._own.prepared.input_shape))
        return fingerprint(*vectors)
