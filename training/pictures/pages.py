"""Pictures on the pages, each between `<!-- picture:FILE -->` and `<!-- end -->`; a test compares their captions."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from training.tables import NOTHING, PAGES, ROOT

IMAGES = ROOT / "docs" / "results"

__all__ = ["IMAGES", "PAGES", "illustrated"]


def illustrated(page: Path, captions: Mapping[str, str]) -> str:
    """A page's text with each marked picture and its caption made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in captions:
            return f"<!-- picture:{name} -->\n{NOTHING}\n<!-- end -->"
        where = Path(os.path.relpath(IMAGES / name, page.parent)).as_posix()
        return (
            f"<!-- picture:{name} -->\n![{_alternative(captions[name])}]({where})\n\n*{captions[name]}*\n<!-- end -->"
        )

    text = page.read_text(encoding="utf-8")
    return re.sub(r"<!-- picture:(?P<name>[\w.+-]+) -->\n.*?<!-- end -->", replace, text, flags=re.S)


def _alternative(caption: str) -> str:
    """For who can't see the picture: how the caption begins."""
    return re.split(r" \(|\. (?=\D)", caption)[0].replace("`", "")
