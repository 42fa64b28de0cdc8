"""Networks that purifiers bring along: a discriminator, a feature head, a generator. Built by name, as classifiers are."""

from models.networks import reverse as _reverse  # noqa: F401  (registers its network)
from models.networks.base import build_network, frozen_network, networks, register_network

__all__ = ["build_network", "frozen_network", "networks", "register_network"]
