"""The service as its callers meet it: over a socket."""

import asyncio
import io
import random
import socket
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from models.catalog import Catalog
from service.decode import decode

# How far the same image's numbers may differ between batch sizes; other images' differ by more.
ABS, REL = 1e-3, 1e-3


def picture(seed: int, size: tuple[int, int], bands: int, format: str = "PNG") -> bytes:
    width, height = size
    # Smooth and different: noise looks the same to an untrained network.
    generator = np.random.default_rng(seed)
    corners = generator.integers(0, 256, (2, 2, bands) if bands > 1 else (2, 2), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC).save(file, format=format)
    return file.getvalue()


@dataclass(frozen=True)
class Case:
    """One request of the crowd."""

    seed: int
    model: str
    purifier: str
    data: bytes
    code: str | None  # of the problem that is expected


def crowd() -> list[Case]:
    """64 requests: two models, five defenses, right and wrong sizes, three formats, every eighth broken or misdirected."""
    offers = [
        ("cifar10", "none"),
        ("cifar10", "soap-lc"),
        ("cifar10", "soap-rp"),
        ("mnist", "none"),
        ("mnist", "soap-dr"),
    ]
    cases = []
    for seed in range(64):
        model, purifier = offers[seed % 5]
        bands, side = (3, 32) if model == "cifar10" else (1, 28)
        size = (side, side) if seed % 3 else (40 + seed, 90 - seed)
        data, code = picture(seed, size, bands, ("PNG", "JPEG", "WEBP")[seed % 3 if bands == 3 else 0]), None
        if seed % 16 == 7:
            data, code = data[: len(data) // 2], "broken-image"
        elif seed % 16 == 15:
            purifier, code = "soup", "unknown-purifier"
        cases.append(Case(seed, model, purifier, data, code))
    random.Random(0).shuffle(cases)
    return cases


async def ask_all(url: str, cases: list[Case]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:

        async def ask(case: Case) -> httpx.Response:
            query: dict[str, Any] = {"model": case.model, "purifier": case.purifier, "top_k": 10, "seed": case.seed}
            headers = {"X-Request-ID": f"case-{case.seed}"}
            if case.seed % 2:
                return await client.post("/classify", params=query, content=case.data, headers=headers)
            return await client.post("/classify", params=query, files={"image": case.data}, headers=headers)

        return await asyncio.gather(*(ask(case) for case in cases))


def fingerprint(case: Case, catalog: Catalog) -> tuple[torch.Tensor, float | None]:
    """What tells whose answer it is: the objective on the incoming image, or without one the probabilities.

    Not the probabilities after descending: sign steps amplify the rounding differences between batch sizes.
    """
    defense = catalog.defense(case.model, case.purifier)
    alone = defense.purify(decode(case.data, defense.card.input, 200_000)[None])
    before = None if alone.objective_before is None else float(alone.objective_before[0])
    return alone.logits[0].softmax(dim=0), before


def test_64_concurrent_requests_each_get_the_answer_to_their_own_image(url: str, catalog: Catalog) -> None:
    cases = crowd()
    responses = asyncio.run(ask_all(url, cases))
    for case, response in zip(cases, responses, strict=True):
        reply = response.json()
        assert reply["request_id"] == f"case-{case.seed}"
        if case.code:
            assert reply["code"] == case.code
            continue
        assert response.status_code == 200, reply
        assert (reply["model"], reply["purifier"], reply["seed"]) == (case.model, case.purifier, case.seed)
        probabilities, before = fingerprint(case, catalog)
        if before is None:
            got = {each["index"]: each["probability"] for each in reply["predictions"]}
            assert [got[i] for i in range(10)] == pytest.approx(probabilities.tolist(), abs=ABS)
        else:
            assert reply["purification"]["objective_before"] == pytest.approx(before, rel=REL)
    assert max(each.json()["timings"]["batch_size"] for each in responses if each.status_code == 200) > 1


def test_every_answer_of_the_crowd_is_recognisable(catalog: Catalog) -> None:
    """Else the test above could not tell whose answer it sees."""
    seen: dict[tuple[str, str], list[tuple[torch.Tensor, float | None]]] = {}
    for case in crowd():
        if case.code is None:
            seen.setdefault((case.model, case.purifier), []).append(fingerprint(case, catalog))
    for prints in seen.values():
        for (one, one_before), (other, other_before) in combinations(prints, 2):
            if one_before is None or other_before is None:
                assert float((one - other).abs().max()) > 2 * ABS
            else:
                assert one_before != pytest.approx(other_before, rel=2 * REL)


def test_raw_body(url: str) -> None:
    response = httpx.post(f"{url}/classify", content=picture(1, (32, 32), 3))
    assert (response.status_code, response.json()["model"]) == (200, "cifar10")


def test_multipart_body(url: str) -> None:
    response = httpx.post(f"{url}/classify", files={"image": ("x.png", picture(1, (32, 32), 3), "image/png")})
    assert (response.status_code, response.json()["model"]) == (200, "cifar10")


def test_batch_of_good_and_broken(url: str) -> None:
    parts = [picture(1, (32, 32), 3), b"junk", picture(2, (50, 20), 3, "JPEG")]
    items = httpx.post(f"{url}/classify/batch", files=[("image", part) for part in parts]).json()["items"]
    assert [item["problem"] is None for item in items] == [True, False, True]


def test_purified_image_comes_back_as_png(url: str, catalog: Catalog) -> None:
    data = picture(3, (32, 32), 3)
    response = httpx.post(f"{url}/purify", params={"purifier": "soap-lc"}, content=data)
    spec = catalog.defense("cifar10", "soap-lc").card.input
    change = decode(response.content, spec, 200_000) - decode(data, spec, 200_000)
    assert float(change.abs().max()) <= float(response.headers["X-Unperturb-Linf"]) + 0.501 / 255


def test_problem_over_the_wire(url: str) -> None:
    response = httpx.post(f"{url}/classify?purifier=soup", content=picture(1, (32, 32), 3))
    assert (response.status_code, response.headers["Content-Type"]) == (422, "application/problem+json")


@pytest.mark.parametrize("query", ["", "?purifier=soup"])
def test_large_upload_that_is_refused_still_reads_its_answer(url: str, query: str) -> None:
    response = httpx.post(f"{url}/classify{query}", content=b"x" * 2**23)
    assert response.status_code == (422 if query else 413)


def test_endless_upload_is_refused_on_the_way(url: str) -> None:
    """Chunks without a Content-Length: the answer comes although the body never ends."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    with socket.create_connection((host, port or 80), timeout=10) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(17):
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_client_that_hangs_up_harms_nobody(url: str) -> None:
    data = picture(1, (32, 32), 3)
    host, port = httpx.URL(url).host, httpx.URL(url).port
    for _ in range(8):
        with socket.create_connection((host, port or 80), timeout=10) as connection:
            head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)
    assert httpx.post(f"{url}/classify", content=data).status_code == 200
    assert httpx.get(f"{url}/readyz").status_code == 200
