"""What each purifier of the zoo may spend on an image: whoever brings waste back has to change this table, and say why."""

import pytest
import torch

from models.catalog import Catalog
from training.counting import counted

# Network passes of one image, forward and backward, classifier and generator together. SOAP: a forward of each view at each
# distinct iterate, logits read off them; AID: the classifier once at the end, its first layers at each step; Reverse: four views
# at each of ten steps and at the start.
SPENT = {
    "none": (1, 0),
    "soap-lc": (12, 10),
    "soap-lc-paper": (32, 22),
    "soap-rp": (24, 20),
    "soap-rp-paper": (64, 44),
    "soap-dr": (16, 11),
    "aid": (11, 10),
    "reverse": (49, 40),
    "nrp": (2, 0),
    "nrp-dynamic": (2, 0),
    "pix2pix": (2, 0),
}
CATALOG = Catalog.open()
OFFERS = {offer.purifier: offer for offer in CATALOG.offers()}


def test_every_purifier_of_the_zoo_has_a_budget_of_passes():
    assert set(OFFERS) == set(SPENT)


@pytest.mark.parametrize("purifier", OFFERS)
def test_an_image_takes_no_pass_more_than_it_needs(purifier):
    defense = CATALOG.load(OFFERS[purifier])
    spec = defense.card.input
    x = torch.rand(2, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0))
    with counted(defense) as passes:
        defense.purify(x, seeds=[1, 2])
    assert (passes.forward / 2, passes.backward / 2) == SPENT[purifier]
    assert (defense.info.forward_passes, defense.info.backward_passes) == SPENT[purifier]
