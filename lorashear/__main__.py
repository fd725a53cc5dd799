"""``python -m lorashear``."""

from lorashear.cli import main

main()
