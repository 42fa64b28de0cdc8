"""The command line, which knows both the service and the training."""

import os
from importlib.metadata import version

__version__ = version("unperturb")

# How often OpenMP's helpers look for more work before they sleep; read when PyTorch is loaded. Long enough for the next operation
# of a network, short enough to leave the core to the service's event loop after the last one.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
