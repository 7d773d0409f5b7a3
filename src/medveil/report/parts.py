"""What every part of a record is made of, as the report reads it."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


class Part(BaseModel):
    """Base of every part of the record: frozen, finite numbers, unknown keys ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Curve(Part):
    """Two or three lists of equal length that a chart draws."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if len({len(values) for _, values in self}) > 1:
            raise ValueError("the lists of a curve differ in length")
        return self
