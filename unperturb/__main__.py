"""The `unperturb` command and `python -m unperturb`: in which order the slow imports begin."""

import os
import sys

from service import ahead


def main() -> None:
    """Entry point. Nothing that is imported before the helpers begin may import PyTorch."""
    if sys.argv[1:2] == ["serve"] and "--help" not in sys.argv:
        ahead.begin(sys.argv[2:], os.environ)
    from unperturb import cli

    cli.main()


if __name__ == "__main__":
    main()
