"""Networks that purifiers bring along: a discriminator, a feature head, a generator. Built by name, as classifiers are."""

from models.networks import aid as _aid  # noqa: F401  (registers its networks)
from models.networks import nrp as _nrp  # noqa: F401
from models.networks import pix2pix as _pix2pix  # noqa: F401
from models.networks import reverse as _reverse  # noqa: F401
from models.networks.base import build_network, frozen_network, networks, register_network
from models.networks.generator import Generator

__all__ = ["Generator", "build_network", "frozen_network", "networks", "register_network"]
