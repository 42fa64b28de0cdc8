import inspect
import pickle
import re

import pytest

from service import errors
from service.errors import HttpProblem, Problem, QueueFull, TooManyPixels, UnsupportedMediaType

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Problem)]


@pytest.mark.parametrize("kind", KINDS)
def test_tree_in_the_docstring_is_complete(kind: type[Problem]) -> None:
    assert errors.__doc__ is not None
    assert re.search(rf"\b{kind.__name__}\b", errors.__doc__)


def test_every_final_kind_has_a_code_of_its_own() -> None:
    leaves = [kind for kind in KINDS if not kind.__subclasses__() and kind is not HttpProblem]
    codes = [kind.code for kind in leaves]
    assert len(set(codes)) == len(codes)
    assert all(code in (errors.__doc__ or "") for code in codes)


def test_problem_has_the_members_of_rfc_9457_and_ours() -> None:
    rendered = TooManyPixels((20_000, 20_000), 1000).render("/classify", "abc")
    assert rendered == {
        "type": "urn:problem-type:unperturb:too-many-pixels",
        "title": "Too many pixels",
        "status": 413,
        "detail": "the image claims 20000x20000 pixels; at most 1000 pixels are decoded: scale it down first",
        "instance": "/classify",
        "code": "too-many-pixels",
        "request_id": "abc",
        "limit": 1000,
    }


@pytest.mark.parametrize(
    "problem", [TooManyPixels((20_000, 20_000), 1000), QueueFull("full", 7.1), HttpProblem(405, "no")]
)
def test_a_problem_can_be_sent_to_another_process(problem: Problem) -> None:
    sent = pickle.loads(pickle.dumps(problem))
    assert type(sent) is type(problem)
    assert sent.render("/classify", "abc") == problem.render("/classify", "abc")
    assert (sent.headers(), str(sent)) == (problem.headers(), str(problem))


@pytest.mark.parametrize(("expected_s", "header"), [(0.0, "1"), (0.2, "1"), (7.1, "8")])
def test_retry_after_is_the_expected_wait_in_whole_seconds(expected_s: float, header: str) -> None:
    assert QueueFull("full", expected_s).headers() == {"Retry-After": header}


def test_what_came_is_shortened() -> None:
    assert len(UnsupportedMediaType("x" * 10_000, ["image/png"]).detail) < 200


def test_frameworks_own_errors_have_the_same_shape() -> None:
    rendered = HttpProblem(405, "no", {"Allow": "POST"}).render("/classify", "abc")
    assert rendered["type"] == "about:blank"
    assert (rendered["title"], rendered["status"], rendered["code"]) == (
        "Method Not Allowed",
        405,
        "method-not-allowed",
    )
