"""The JSON schema of a recipe, for editors: made of the flags of its verb and of what the settings refuse."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lorashear.config import Settings
from lorashear.errors import LorashearError
from lorashear.recipes.words import AMOUNTS, CHOICES, COMPILE, LISTS, RECOVER, SUBSETS, VERB, VERBS, Word, words

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
LEAST = 64
"""No setting has a higher lower bound."""
SOME = {"ratio": 0.5, "tokens": 1, "per_layer": True, "target": "vllm"}
"""Settings beside which every other one can have all values that it can ever have."""


def schema() -> dict[str, Any]:
    """Draft 7, which the YAML language servers of editors read."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Recipe of LoRAShear",
        "description": "The words of the flags of `lorashear compile`, or of `lorashear recover`.",
        "type": "object",
        "if": {"properties": {VERB: {"const": RECOVER}}, "required": [VERB]},
        "then": {"$ref": f"#/definitions/{RECOVER}"},
        "else": {"$ref": f"#/definitions/{COMPILE}"},
        "definitions": {verb: _definition(verb) for verb in VERBS},
    }


def _definition(verb: str) -> dict[str, Any]:
    known, place = words(verb), f"#/definitions/{verb}/properties"
    said = {"description": "what the recipe is of", "enum": list(VERBS), "default": COMPILE}
    return {
        "description": f"The words of the flags of `lorashear {verb}`.",
        "additionalProperties": False,
        "properties": {VERB: said, **{name: _property(word) for name, word in known.items()}},
        "patternProperties": {
            f"^{name.replace('-', '_')}$": {"$ref": f"{place}/{name}"} for name in known if "-" in name
        },
    }


def _property(word: Word) -> dict[str, Any]:
    found: dict[str, Any] = {"description": word.help, **_form(word)}
    return found if word.default in (None, "") else {**found, "default": word.default}


def _form(word: Word) -> dict[str, Any]:
    if word.several:
        some = [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
        return (
            {"anyOf": [*some, {"type": "object", "additionalProperties": {"anyOf": some}}]}
            if word.name == SUBSETS
            else {"anyOf": some}
        )
    if word.name in LISTS:
        one = {"enum": list(LISTS[word.name])} if LISTS[word.name] else {"type": "string"}
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": one}]}
    if word.name in AMOUNTS:
        return {"type": ["string", "number"]}
    if word.name in CHOICES:
        return {"enum": list(CHOICES[word.name])}
    return {"type": TYPES[word.type], **(_bounds(word) if word.type in (int, float) else {})}


def _bounds(word: Word) -> dict[str, int]:
    """Between which numbers a setting lies; found by asking what it refuses, so that its bounds stand in one place."""
    name = word.name.replace("-", "_")
    if name not in {field.name for field in fields(Settings)} or _taken(name, -1):
        return {}
    if word.type is int:
        return {"minimum": next(number for number in range(LEAST) if _taken(name, number))}
    low = {"minimum" if _taken(name, 0.0) else "exclusiveMinimum": 0}
    return low if _taken(name, 2.0) else {**low, "maximum" if _taken(name, 1.0) else "exclusiveMaximum": 1}


def _taken(name: str, value: float) -> bool:
    try:
        Settings(**{**SOME, name: value})
    except LorashearError:
        return False
    return True
