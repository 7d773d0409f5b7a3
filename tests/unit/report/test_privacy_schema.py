"""The schema of the record and the report's reading of it agree on what a claim is."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from medveil.report.claim import Claim, LedgerState, Meaning
from medveil.report.record import SCHEMA_VERSION

SCHEMA = json.loads(
    (Path(__file__).parents[3] / "docs" / "reference" / "record.schema.json").read_text(encoding="utf-8")
)
CLAIM = {**SCHEMA["$defs"]["privacy"], "$defs": SCHEMA["$defs"]}


def test_the_versions_agree():
    assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def test_a_claim_follows_the_schema(claim, stamped):
    for values in (claim(), stamped(), claim(ledgers=None, epsilon_rdp=None, epsilon_server=None)):
        jsonschema.validate(values, CLAIM)


def test_the_schema_and_the_report_know_the_same_keys():
    assert set(CLAIM["properties"]) == set(CLAIM["required"]) == set(Claim.model_fields)
    assert set(CLAIM["properties"]["meaning"]["properties"]) == set(Meaning.model_fields)
    ledger = CLAIM["properties"]["ledgers"]["anyOf"][1]["additionalProperties"]
    assert set(ledger["properties"]) == set(LedgerState.model_fields)


@pytest.mark.parametrize("key", sorted(CLAIM["required"]))
def test_every_key_of_a_claim_is_needed(claim, key):
    values = copy.deepcopy(claim())
    del values[key]
    with pytest.raises(jsonschema.ValidationError, match=key):
        jsonschema.validate(values, CLAIM)


@pytest.mark.parametrize(
    "wrong",
    [{"stamp": "private"}, {"delta": 1}, {"epsilon": -1}, {"sampling_rate": 1.5}, {"more": 1}, {"mode": "none"}],
)
def test_the_schema_refuses_what_is_no_claim(claim, wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(claim(**wrong), CLAIM)
