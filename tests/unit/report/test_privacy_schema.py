"""The schema of the record and the report's reading of it agree on what a claim is."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from medveil.report.claim import Claim, LedgerState, Meaning
from medveil.report.record import SCHEMA_VERSION
from medveil.report.secure_sums import SecureSums
from medveil.study import record

SCHEMA = json.loads(
    (Path(__file__).parents[3] / "docs" / "reference" / "record.schema.json").read_text(encoding="utf-8")
)
CLAIM = {**SCHEMA["$defs"]["privacy"], "$defs": SCHEMA["$defs"]}
SUMS = {**SCHEMA["$defs"]["secure_aggregation"], "$defs": SCHEMA["$defs"]}


def test_the_versions_agree():
    assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION == record.SCHEMA_VERSION


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


def test_secure_sums_follow_the_schema(sums):
    for values in (sums(blocks=1), sums(blocks=4, clipped=0, value_range=1.0, modulus_bits=64, dropped={})):
        jsonschema.validate(values, SUMS)


def test_the_schema_and_the_report_know_the_same_keys_of_secure_sums():
    assert set(SUMS["properties"]) == set(SUMS["required"]) == set(SecureSums.model_fields)


@pytest.mark.parametrize("key", sorted(SUMS["required"]))
def test_every_key_of_secure_sums_is_needed(sums, key):
    values = sums(blocks=1)
    del values[key]
    with pytest.raises(jsonschema.ValidationError, match=key):
        jsonschema.validate(values, SUMS)


@pytest.mark.parametrize(
    "wrong", [{"modulus_bits": 16}, {"groups": [["alone"]]}, {"clipped": -1}, {"resolution": 0}, {"more": 1}]
)
def test_the_schema_refuses_what_is_no_secure_sum(sums, wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(sums(blocks=1, **wrong), SUMS)


def test_shared_noise_needs_its_secure_sum(shared_claim, sums):
    together = {key: SCHEMA[key] for key in ("if", "then", "$defs")}
    jsonschema.validate({"privacy": shared_claim(), "secure_aggregation": sums()}, together)
    jsonschema.validate({"privacy": None, "secure_aggregation": None}, together)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"privacy": shared_claim(), "secure_aggregation": None}, together)
