"""Captions on the pages. A picture stands between `<!-- picture:FILE -->` and `<!-- end -->`; a test compares both."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from training.tables import PAGES, ROOT

IMAGES = ROOT / "docs" / "images"

__all__ = ["IMAGES", "PAGES", "illustrated", "shown"]


def illustrated(page: Path, captions: Mapping[str, str]) -> str:
    """A page's text with each marked picture and its caption made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        where = Path(os.path.relpath(IMAGES / name, page.parent)).as_posix()
        return (
            f"<!-- picture:{name} -->\n![{_alternative(captions[name])}]({where})\n\n*{captions[name]}*\n<!-- end -->"
        )

    text = page.read_text(encoding="utf-8")
    return re.sub(r"<!-- picture:(?P<name>[\w.+-]+) -->\n.*?<!-- end -->", replace, text, flags=re.S)


def shown(page: Path) -> list[str]:
    """The marked pictures of a page."""
    return re.findall(r"<!-- picture:([\w.+-]+) -->", page.read_text(encoding="utf-8"))


def _alternative(caption: str) -> str:
    """For who can't see the picture: how the caption begins."""
    return caption.split(" (")[0].split(". ")[0].replace("`", "")
