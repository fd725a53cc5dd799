"""A model folder's tokenizer as llama.cpp has it. No torch, no tokenizers here.

llama.cpp splits text in one of a few ways, which the file names, and each is taken only where the tokenizer splits so:

* ``gpt2``: byte-level BPE, with the name of the expression that cuts words;
* ``llama``: pieces of SentencePiece, joined by their scores, with tokens for bytes;
* ``t5``: here for single characters alone, because it is the only one that has an unknown token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from lorashear.disk.checkpoint import json_object
from lorashear.engines.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePiece,
)
from lorashear.errors import LorashearError

SPACE = "▁"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXPRESSIONS = {
    (_WORDS % "{1,3}", True): "llama-bpe",
    (_WORDS % "{1,3}", False): "smaug-bpe",
    (_WORDS % "", False): "qwen2",
    (_CASES, True): "tekken",
}
"""What llama.cpp calls them, by whether words that are tokens are left whole (`ignore_merges`)."""
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
NO_BYTES = "its tokenizer has no tokens for bytes, so that llama.cpp stops the program at a character that it does not know, where it says unk"
UNLISTED = "llama.cpp joins every two pieces that make a token, of which the tokenizer lists some alone: seldom, it splits text otherwise"
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of a tokenizer. ``notes``: where llama.cpp differs from it."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]
    adds: Mapping[str, bool]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    pre: str = "default"
    template: str | None = None
    notes: Sequence[str] = field(default=())

    def values(self, rows: int) -> dict[str, Any]:
        """The keys of the file, for a model with so many rows of embeddings: those beyond its tokens are never used."""
        more = rows - len(self.tokens)
        found: dict[str, Any] = {
            "model": self.model,
            "pre": self.pre,
            "tokens": [*self.tokens, *(f"[PAD{at}]" for at in range(len(self.tokens), rows))],
            "token_type": [*self.types, *[UNUSED] * more],
            "scores": [*self.scores, *[-1e9] * more] if self.scores else [],
            "merges": self.merges,
            **{f"{name}_token_id": number for name, number in self.ids.items()},
            **{f"add_{name}": adds for name, adds in self.adds.items()},
        }
        values = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
        return values | ({"tokenizer.chat_template": self.template} if self.template else {})


def read(folder: Path, config: Mapping[str, Any], rows: int) -> Vocabulary | None:
    """Of a model folder; None where there is no tokenizer.

    Raises LorashearError, half a sentence, for one that llama.cpp would not follow.
    """
    if not any((folder / name).exists() for name in FILES):
        return None
    settings = _object(folder / "tokenizer_config.json")
    pieces = SentencePiece.of(folder / "tokenizer.model") if (folder / "tokenizer.model").exists() else None
    if (folder / "tokenizer.json").exists():
        found = _of_json(_object(folder / "tokenizer.json"), pieces, settings, config)
    elif pieces is not None:
        found = _of_pieces(pieces, _object(folder / "added_tokens.json"), settings, config)
    else:
        raise LorashearError("its tokenizer is in neither tokenizer.json nor tokenizer.model: save it anew")
    if len(found.tokens) > rows:
        raise LorashearError(f"its tokenizer has {len(found.tokens)} tokens for {rows} rows of embeddings")
    if len(set(found.tokens)) < len(found.tokens) or "" in found.tokens:
        raise LorashearError("its tokenizer has two tokens of the same text, or an empty one")
    template = _template(folder, settings)
    return Vocabulary(**{**vars(found), "template": template})


def _object(file: Path) -> dict[str, Any]:
    return json_object(file.read_bytes(), f"'{file}'") if file.exists() else {}


def _of_json(
    found: Mapping[str, Any], pieces: SentencePiece | None, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Vocabulary:
    model = found["model"]
    if model.get("type") != "BPE":
        raise LorashearError(f"its tokenizer is {model.get('type')}, and llama.cpp follows BPE")
    if odd := next((n for n in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(n)), None):
        raise LorashearError(f"its tokenizer has {odd}, which llama.cpp does not")
    added = found.get("added_tokens") or []
    for each in added:
        if odd := next((name for name in ("single_word", "lstrip", "rstrip") if each.get(name)), None):
            raise LorashearError(f"its token {each['content']} has {odd}, which llama.cpp does not")
    tokens = _by_id({**model["vocab"], **{each["content"]: each["id"] for each in added}})
    unknown = model.get("unk_token")
    types = [UNKNOWN if each == unknown else NORMAL for each in tokens]
    for each in added:
        if each["content"] != unknown:
            types[each["id"]] = CONTROL if each.get("special") else USER_DEFINED
    ids = _ids(tokens, unknown, settings, config)
    adds = _adds(found.get("post_processor"), ids, tokens)
    before, cutters = _flat(found.get("normalizer"), "normalizers"), _flat(found.get("pre_tokenizer"), "pretokenizers")
    merges = [tuple(each) if isinstance(each, list) else tuple(each.split(" ", 1)) for each in model["merges"]]
    if any(step["type"] == "ByteLevel" for step in cutters):
        return _byte_level(
            tokens, types, ids, adds, merges, before, _expression(cutters, bool(model.get("ignore_merges")))
        )
    return _joined(model, pieces, tokens, types, ids, adds, merges, before, cutters)


def _joined(
    model: Mapping[str, Any], pieces: SentencePiece | None, tokens: list[str], types: list[int], ids: Mapping[str, int],
    adds: Mapping[str, bool], merges: list[tuple[str, ...]], before: list[dict[str, Any]], cutters: list[dict[str, Any]],
) -> Vocabulary:  # fmt: skip
    """Of pieces in which spaces are `SPACE`."""
    if model.get("ignore_merges"):
        raise LorashearError("its tokenizer has ignore_merges, which llama.cpp has for byte-level BPE alone")
    adds, notes = {**adds, "space_prefix": _space(before, cutters)}, []
    if any(step.get("prepend_scheme", "never") != "never" for step in cutters):
        notes.append("llama.cpp puts a space before text that begins with one, or follows a special token, too")
    has_bytes = bool(model.get("byte_fallback")) and not _bytes_missing(tokens)
    long = any(len(each) > 1 for each, kind in zip(tokens, types, strict=True) if kind == NORMAL)
    if not (has_bytes or long or merges) and model.get("fuse_unk") and UNKNOWN in types:
        if adds["space_prefix"]:
            notes.append("text of nothing but spaces gets one less in llama.cpp")
        return Vocabulary("t5", tokens, types, ids, adds, [-1.0] * len(tokens), notes=notes)
    if has_bytes:
        types = [BYTE if _BYTE.fullmatch(each) else kind for each, kind in zip(tokens, types, strict=True)]
    else:
        notes.append(NO_BYTES)
    if not _as_scored(tokens, types, merges):
        notes.append(UNLISTED)
    if pieces is not None and [each.text for each in pieces.pieces] == tokens[: len(pieces.pieces)]:
        scores = [each.score for each in pieces.pieces] + [0.0] * (len(tokens) - len(pieces.pieces))
    else:
        scores = _scores(tokens, merges)
    return Vocabulary("llama", tokens, types, ids, adds, scores, notes=notes)


def _byte_level(
    tokens: list[str], types: list[int], ids: Mapping[str, int], adds: Mapping[str, bool],
    merges: list[tuple[str, ...]], before: list[dict[str, Any]], expression: str,
) -> Vocabulary:  # fmt: skip
    notes = []
    if [step["type"] for step in before] == ["NFC"]:
        notes.append("its tokenizer composes characters (NFC), and llama.cpp takes them as they come")
    elif before:
        raise LorashearError(
            f"its tokenizer changes text before it splits it ({before[0]['type']}), and llama.cpp does not"
        )
    if UNKNOWN in types and (missing := set(_letters()) - set(tokens)):
        raise LorashearError(
            f"its tokenizer lacks {len(missing)} of 256 bytes, which are unk in it, and llama.cpp leaves out of a text"
        )
    if "eos" not in ids:
        raise LorashearError(
            "its tokenizer has no eos token, and llama.cpp would take another one: name it in tokenizer_config.json"
        )
    return Vocabulary(
        "gpt2", tokens, types, ids, adds, merges=[" ".join(each) for each in merges], pre=expression, notes=notes
    )


def _expression(cutters: Sequence[Mapping[str, Any]], ignore_merges: bool) -> str:
    """llama.cpp's name for the way that words are cut."""
    *first, last = cutters
    kinds = [step["type"] for step in cutters]
    plain = kinds[-1] == "ByteLevel" and not last.get("add_prefix_space", True)
    if plain and last.get("use_regex", True) and not ignore_merges:
        if not first:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and first[0].get("individual_digits"):
            return "smollm"
    if plain and kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        pattern = first[0].get("pattern", {}).get("Regex")
        as_known = first[0].get("behavior") == "Isolated" and not first[0].get("invert")
        if as_known and (pattern, ignore_merges) in EXPRESSIONS:
            return EXPRESSIONS[pattern, ignore_merges]
    raise LorashearError(f"its tokenizer cuts words by {', '.join(kinds)} in a way that llama.cpp has no name for")


def _space(before: Sequence[Mapping[str, Any]], cutters: Sequence[Mapping[str, Any]]) -> bool:
    """Whether text gets a space in front, where spaces become `SPACE` and nothing else is changed."""
    steps = [(step["type"], step.get("prepend"), step.get("pattern"), step.get("content")) for step in before]
    replaced = ("Replace", None, {"String": " "}, SPACE)
    if not cutters and steps in ([replaced], [("Prepend", SPACE, None, None), replaced]):
        return len(steps) == 2
    if not steps and [step["type"] for step in cutters] == ["Metaspace"] and cutters[0].get("replacement") == SPACE:
        if cutters[0].get("split", True) is False:
            return cutters[0].get("prepend_scheme", "always") != "never"
    kinds = ", ".join(step["type"] for step in (*before, *cutters)) or "nothing"
    raise LorashearError(f"its tokenizer changes and cuts text by {kinds} in a way that llama.cpp does not")


def _of_pieces(
    found: SentencePiece, added: Mapping[str, int], settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Vocabulary:
    if found.kind != BPE or found.folds_spaces or found.normalises:
        raise LorashearError("its tokenizer.model is no BPE of text as it is, which alone llama.cpp follows")
    tokens = _by_id({**{each.text: at for at, each in enumerate(found.pieces)}, **added})
    more = len(tokens) - len(found.pieces)
    types = [each.type for each in found.pieces] + [USER_DEFINED] * more
    special = {_content(settings.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
    types = [
        CONTROL if each in special and kind == USER_DEFINED else kind for each, kind in zip(tokens, types, strict=True)
    ]
    unknown = next((each.text for each in found.pieces if each.type == UNKNOWN), None)
    ids = _ids(tokens, unknown, settings, config)
    adds = {
        "bos_token": bool(settings.get("add_bos_token", True)) and "bos" in ids,
        "eos_token": bool(settings.get("add_eos_token", False)) and "eos" in ids,
        "space_prefix": found.adds_space,
    }
    notes = [NO_BYTES] if _bytes_missing(tokens) else []
    scores = [each.score for each in found.pieces] + [0.0] * more
    return Vocabulary("llama", tokens, types, ids, adds, scores, notes=notes)


def _by_id(vocabulary: Mapping[str, int]) -> list[str]:
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[each] for each in tokens] != list(range(len(tokens))):
        raise LorashearError("its tokenizer leaves numbers out, or has two tokens of one number")
    return tokens


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


def _ids(
    tokens: list[str], unknown: str | None, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, int]:
    """Of special tokens, by the names of the file: as the tokenizer has them, or else as the config has."""
    numbers = {each: at for at, each in enumerate(tokens)}
    found: dict[str, int] = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")):
        named = _content(settings.get(f"{theirs}_token")) or (unknown if theirs == "unk" else None)
        number = numbers.get(named) if named else config.get(f"{theirs}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[ours] = number
    return found


def _adds(post: Mapping[str, Any] | None, ids: Mapping[str, int], tokens: list[str]) -> dict[str, bool]:
    """Whether text gets bos in front and eos behind, which is all that llama.cpp can add."""
    steps = [step for step in _flat(post, "processors") if step["type"] != "ByteLevel"]
    template = (
        [_told(part) for part in steps[0]["single"]] if steps and steps[0]["type"] == "TemplateProcessing" else None
    )
    begin, end = (tokens[ids[name]] if name in ids else None for name in ("bos", "eos"))
    if not steps:
        return {"bos_token": False, "eos_token": False}
    for bos in (False, True):
        for eos in (False, True):
            if len(steps) == 1 and template == [*([begin] if bos else []), ("text",), *([end] if eos else [])]:
                return {"bos_token": bos, "eos_token": eos}
    raise LorashearError("its tokenizer adds other tokens to a text than bos in front and eos behind")


def _told(part: Mapping[str, Any]) -> Any:
    return part["SpecialToken"]["id"] if "SpecialToken" in part else ("text",)


def _flat(step: Mapping[str, Any] | None, many: str) -> list[dict[str, Any]]:
    """The steps that a sequence is of."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [each for inner in step[many] for each in _flat(inner, many)]
    return [dict(step)]


def _letters() -> list[str]:
    """What byte-level BPE writes for each byte: itself where it shows, and else the next character past 255."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


def _bytes_missing(tokens: Sequence[str]) -> bool:
    return not {f"<0x{byte:02X}>" for byte in range(256)} <= set(tokens)


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """A token that is made earlier is worth more."""
    first: dict[str, float] = {}
    for rank, pair in enumerate(merges):
        first.setdefault("".join(pair), -float(rank))
    return [first.get(each, -1e9) for each in tokens]


def _as_scored(tokens: Sequence[str], types: Sequence[int], merges: Sequence[tuple[str, ...]]) -> bool:
    """Whether merging by listed pairs is the same as by what results: every pair is listed, those of a token together."""
    known = {each for each, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    pairs = {(each[:at], each[at:]) for each in known for at in range(1, len(each))}
    listed = set(merges)
    if any(one in known and other in known for one, other in pairs - listed):
        return False
    made = [token for token, _ in groupby("".join(pair) for pair in merges)]
    return len(made) == len(set(made))


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: of its own file, or in tokenizer_config.json, where it may be the one that is called default."""
    if (file := folder / "chat_template.jinja").exists():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = next((each.get("template") for each in found if each.get("name") == "default"), None)
    return found if isinstance(found, str) else None
