"""Amounts as people write them: ``5e9``, ``700M``, ``8GB``."""

from __future__ import annotations

import re

from lorashear.errors import LorashearError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
NUMBER = r"\d+(?:\.\d*)?(?:e\+?\d+)?"


def count(given: str | float, name: str) -> int:
    """A number of parameters: 5e9, 5B or 700M. ``name`` is what the sentence calls it.

    Raises:
        LorashearError: it says none.
    """
    return _amount(given, name, rf"({NUMBER})\s*([KMBT]?)", "parameters such as 5e9, 5B or 700M")


def byte_count(given: str | float, name: str) -> int:
    """A number of bytes: 8GB or 500 MB; units count in thousands, as in transformers.

    Raises:
        LorashearError: it says none.
    """
    return _amount(given, name, rf"({NUMBER})\s*([KMGT]?)B?", "bytes such as 5GB or 500MB")


def _amount(given: str | float, name: str, form: str, such: str) -> int:
    found = re.fullmatch(form, str(given).strip(), re.IGNORECASE)
    amount = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    if amount < 1:
        raise LorashearError(f"{name} is {given!r}; give a number of {such}")
    return amount
