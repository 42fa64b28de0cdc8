"""Rewrite the pictures in `docs/results/` from the results there and the shipped checkpoints, and the captions on the pages."""

from models.catalog import Catalog
from training.pictures import draw, strips
from training.pictures.pages import IMAGES, PAGES, illustrated
from training.tables import RESULTS

if __name__ == "__main__":
    captions = dict(draw(RESULTS, IMAGES))
    for strip in strips.pictures(Catalog.open()):
        strip.save(IMAGES)
        captions[strip.name] = strip.caption
    for page in PAGES:
        page.write_text(illustrated(page, captions), encoding="utf-8")
