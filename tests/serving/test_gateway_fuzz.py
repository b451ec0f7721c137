"""Generated requests against the gateway's own OpenAPI description: whatever comes, it is no server error."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.xdist_group("serving")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def operations(served):
    description = schemathesis.openapi.from_url(f"{served.endpoint}/openapi.json")
    return {each.ok().path: each.ok() for each in description.get_all_operations()}


def attack(strategy, examples: int, **change) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def run(case) -> None:
        if change and isinstance(case.body, dict):
            case.body |= change
        case.call_and_validate(checks=CHECKS, timeout=60)

    run()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_generated_chat_is_a_server_error(operations, mode):
    attack(operations[CHAT].as_strategy(generation_mode=mode), 60)


def test_no_generated_chat_with_the_served_model_is_a_server_error(operations):
    strategy = operations[CHAT].as_strategy(generation_mode=GenerationMode.POSITIVE)
    attack(strategy, 60, model="fovea", max_tokens=2, max_completion_tokens=None)


@pytest.mark.parametrize("path", ["/v1/models", "/healthz"])
def test_what_has_no_parameters_answers_as_described(operations, path):
    attack(operations[path].as_strategy(generation_mode=GenerationMode.POSITIVE), 1)
