"""In which precision frozen networks compute. fp32 unless somebody asks: bf16 changes answers (docs/performance.md)."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
