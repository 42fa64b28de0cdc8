"""One purifier as our service runs it, for servers that aren't ours: the same decoding, the same weights, the same threads."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.catalog import Catalog
from service.decode import decode
from service.settings import Settings


class Network:
    """`Defense.purify` for the image files of one model. Settings come from the environment, as the service's do."""

    def __init__(self, purifier: str) -> None:
        self._settings = Settings()
        if self._settings.threads is not None:
            torch.set_num_threads(self._settings.threads)
        self._device = self._settings.torch_device()
        catalog = Catalog.open(self._settings.zoo, self._device)
        self._defense = catalog.defense(self._settings.default_model, purifier)

    def decode(self, data: bytes) -> Tensor:
        """Image file to (C, H, W) float32 in [0, 1]."""
        settings = self._settings
        return decode(
            data,
            self._defense.card.input,
            settings.max_pixels,
            max_side=settings.max_side,
            formats=settings.formats,
        )

    def answers(self, images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Purify and classify a batch of (C, H, W). `timings` are the batch's, under the names that our service gives them."""
        started = time.perf_counter()
        with torch.no_grad():
            x = torch.stack(list(images)).to(self._device)
            logits = self._defense.purify(x, list(range(len(images)))).logits
            best = logits.softmax(dim=1).max(dim=1)
            found = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        labels, purify_ms = self._defense.card.labels, 1000 * (time.perf_counter() - started)
        timings = {"purify_ms": round(purify_ms, 3), "batch_size": len(images)}
        return [
            {"label": labels[index], "probability": round(value, self._settings.probability_digits), "timings": timings}
            for index, value in found
        ]
