"""The REST API is as its OpenAPI document says, whatever is sent: tried by Schemathesis."""

from __future__ import annotations

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from inference.openapi import document
from tests.network_world import Setup, served, tiny_model
from tests.tokens import Issuer

pytestmark = pytest.mark.tf

load_all_checks()
# A tensor that fits its description need not fit the model; a candidate need not be known.
TENSORS_ARE_THE_MODELS = [CHECKS.get_one("positive_data_acceptance")]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def described(issuer, tmp_path_factory):
    model = tiny_model(tmp_path_factory.mktemp("model") / "1")
    setup = Setup(rules=issuer.rules())
    setup.started.set()
    with served(model, setup) as rest:
        url = f"http://127.0.0.1:{rest.network.http_port}/openapi.json"
        yield schemathesis.openapi.from_url(url)


OPERATIONS = [
    (method, path)
    for path, item in document("m")["paths"].items()
    for method in item.keys() - {"parameters"}
]


# With what fits the description, and, where there is anything to describe, with what does not.
CASES = [
    (method, path, mode)
    for method, path in OPERATIONS
    for mode in GenerationMode
    if path.startswith("/v1/") or mode is GenerationMode.POSITIVE
]


@pytest.mark.parametrize(("method", "path", "mode"), CASES, ids=str)
def test_every_answer_is_one_that_the_document_allows(described, issuer, method, path, mode):
    operation = described[path][method]

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case) -> None:
        headers = {"Authorization": issuer.bearer()}
        case.call_and_validate(headers=headers, excluded_checks=TENSORS_ARE_THE_MODELS)

    holds()


def test_the_document_describes_every_route(described):
    assert len(OPERATIONS) == 14
    text = str(described.raw_schema)
    for word in ("RecommendBody", "EventBody", "PredictBody", "bearer", "candidates", "CLICK"):
        assert word in text


def test_the_document_s_schemas_are_schemas():
    for one in document("m")["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(one)
