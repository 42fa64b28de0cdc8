"""The command line, which knows both the service and the training."""

from importlib.metadata import version

__version__ = version("unperturb")
