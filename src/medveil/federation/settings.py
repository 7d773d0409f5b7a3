"""The plan's ``[federation]`` table."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medveil.configuration import Config
from medveil.training.optimisers import Optimiser


class _Local(Config):
    """Work of one round at a site: exactly one of the two is given.

    Attributes:
        local_epochs: passes over the site's own data.
        local_steps: batches.
        server: optimiser that takes the mean change as a gradient (FedOpt, Reddi et al. 2021, arXiv 2003.00295);
            None averages (FedAvg). Its rate stays as it is; ``training.schedule`` acts on the local steps.
    """

    local_epochs: int | None = Field(None, ge=1)
    local_steps: int | None = Field(None, ge=1)
    server: Optimiser | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("exactly one of local_epochs and local_steps")
        return self


class FedAvg(_Local):
    """McMahan et al. 2017, arXiv 1602.05629."""

    kind: Literal["fedavg"] = "fedavg"


class FedProx(_Local):
    """FedAvg with a pull towards the round's first weights; Li et al. 2020, arXiv 1812.06127."""

    kind: Literal["fedprox"] = "fedprox"
    mu: float = Field(gt=0)


class FedSgd(Config):
    """One gradient a site and round; the server takes the step with ``training.optimiser``."""

    kind: Literal["fedsgd"] = "fedsgd"


Algorithm = Annotated[FedAvg | FedProx | FedSgd, Field(discriminator="kind")]


class EarlyStopping(Config):
    """Stop when the validation score has not improved for ``patience`` validations.

    Attributes:
        metric: "auc", "dice" (larger is better) or "loss" (smaller is better).
        patience: validations without improvement.
        min_delta: what counts as improvement.
    """

    metric: Literal["auc", "dice", "loss"]
    patience: int = Field(ge=1)
    min_delta: float = Field(0.0, ge=0)


class Federation(Config):
    """How sites work together.

    Attributes:
        rounds: at most.
        algorithm: what a site does in a round and what the server does with it.
        weighting: "size" (training examples) or "equal"; the number of examples is sent in the clear either way.
        buffers: what happens to running statistics: "refuse" (a model that has any is not trained), or "average".
        min_sites: the run stops when fewer are left; 0 means all must stay.
        validate_every: rounds between validations; 0 never validates.
        early_stopping: or None.
        select: weights that the run ends with: "last", or "best" by ``select_metric``.
        select_metric: "auto" is AUC for classification and Dice for segmentation.
        ema: in [0, 1): above 0 the run ends with the exponential moving average of the rounds' weights, this much
            of the old average kept each round (less in the first rounds); needs select = "last".
    """

    rounds: int = Field(ge=1)
    algorithm: Algorithm = FedAvg(local_epochs=1)
    weighting: Literal["size", "equal"] = "size"
    buffers: Literal["refuse", "average"] = "refuse"
    min_sites: int = Field(0, ge=0)
    validate_every: int = Field(1, ge=0)
    early_stopping: EarlyStopping | None = None
    select: Literal["last", "best"] = "last"
    select_metric: Literal["auto", "auc", "dice", "loss"] = "auto"
    ema: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_choice_of_weights(self) -> Self:
        if not self.validate_every and (self.select == "best" or self.early_stopping is not None):
            raise ValueError("federation.select = best and early stopping need validations: raise validate_every")
        if self.ema and self.select == "best":
            raise ValueError('federation.ema averages over the rounds: it needs federation.select = "last"')
        return self
