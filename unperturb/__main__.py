"""`python -m unperturb` is `unperturb`."""

from unperturb.cli import main

main()
