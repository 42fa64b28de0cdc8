from typing import Any

import pytest

from service.schemas import BatchReply, ClassifyReply, ProblemReply


@pytest.fixture(scope="module")
def page(api: Any) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/openapi.json").json()
    return found


@pytest.mark.parametrize("path", ["/classify", "/purify"])
def test_both_kinds_of_body_are_declared_and_required(page: dict[str, Any], path: str) -> None:
    body = page["paths"][path]["post"]["requestBody"]
    assert body["required"]
    assert {"image/png", "image/jpeg", "image/webp", "multipart/form-data"} <= set(body["content"])
    assert body["content"]["image/png"]["schema"]["format"] == "binary"
    assert body["content"]["multipart/form-data"]["schema"]["required"] == ["image"]


@pytest.mark.parametrize("path", ["/classify", "/classify/batch", "/purify"])
def test_every_problem_is_declared_with_a_real_example(page: dict[str, Any], path: str) -> None:
    responses = page["paths"][path]["post"]["responses"]
    assert {"200", "400", "408", "413", "415", "422", "500", "503"} <= set(responses)
    for status, response in responses.items():
        if status == "200":
            continue
        assert list(response["content"]) == ["application/problem+json"]
        for code, example in response["content"]["application/problem+json"]["examples"].items():
            problem = ProblemReply.model_validate(example["value"])
            assert (str(problem.status), problem.code) == (status, code)


def test_examples_are_valid_replies(page: dict[str, Any]) -> None:
    def example(path: str) -> Any:
        return page["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["example"]

    assert ClassifyReply.model_validate(example("/classify")).predictions
    assert BatchReply.model_validate(example("/classify/batch")).items[1].problem


def test_parameters_are_explained(page: dict[str, Any]) -> None:
    parameters = page["paths"]["/classify"]["post"]["parameters"]
    assert {each["name"] for each in parameters} == {
        *(
            "purifier",
            "model",
            "classifier",
            "seed",
            "epsilon",
            "steps",
            "timeout_ms",
            "stop_after_ms",
            "top_k",
            "votes",
        )
    }
    assert all(each["description"] for each in parameters)


def test_framework_adds_no_second_error_shape(page: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in page["components"]["schemas"]


def test_docs_page_is_there(api: Any) -> None:
    assert api.get("/docs").status_code == 200
