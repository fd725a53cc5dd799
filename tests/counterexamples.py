"""Programs that broke the analysis once, as hypothesis shrank them; the name of each says what it showed."""

from __future__ import annotations

from tests.programs import Sketch, Step

COUNTEREXAMPLES: dict[str, Sketch] = {}
