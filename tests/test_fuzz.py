"""The reader of checkpoints on broken bytes: a sentence, or a checkpoint of which every tensor can be read and written.

`make test` tries some hundred; LORASHEAR_FUZZ sets how many.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorashear.disk.checkpoint import INDEX, SINGLE, Checkpoint
from lorashear.disk.layout import layout
from lorashear.disk.slicing import Slice, write_slice
from lorashear.errors import LorashearError

MANY = int(os.environ.get("LORASHEAR_FUZZ", "300"))
profile = settings(
    max_examples=MANY, deadline=None, derandomize=MANY <= 300, suppress_health_check=list(HealthCheck), database=None
)

TENSORS = {"a": ("F32", (2, 3)), "b": ("BF16", (5,)), "c": ("I64", ()), "d": ("BOOL", (0, 4)), "e": ("F16", (2, 1, 2))}
ODD: list[Any] = [
    *(0, 1, -1, 7, 8, 2**31, 2**63, 2**64, 10**30, 1.5, 1e400, True, None, "", "a", "F32", "BF16", "F8_E4M3", "I8"),
    *("U128", "\x00", "é", "../x", "/etc/passwd", "model-00001-of-00002.safetensors", [], {}, [0, 0], [1, 2, 3]),
    *([[1]], {"a": 1}, {"dtype": "F32"}, "a" * 300, [2**40, 2**40], [2**32, 2**32]),
]


def sound(folder: Path, most: int = 10**9) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "x": {"y": [1, 2]}}')
    placed = layout(TENSORS, most)
    for shard in placed.shards:
        body = bytes(range(256))[: shard.bytes - len(shard.header)]
        (folder / shard.name).write_bytes(shard.header + body)
    if placed.index:
        (folder / INDEX).write_bytes(placed.index)
    return folder


def changed_json(content: Any, rng: random.Random) -> Any:
    """The same JSON with one value, or one name, another one."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        name = rng.choice(list(content))
        roll = rng.random()
        if roll < 0.1:
            return {k: v for k, v in content.items() if k != name}
        if roll < 0.2:
            return {**content, str(rng.choice(ODD)): content[name]}
        return {**content, name: changed_json(content[name], rng)}
    if isinstance(content, list) and content and rng.random() < 0.8:
        at = rng.randrange(len(content))
        return [changed_json(part, rng) if i == at else part for i, part in enumerate(content)]
    if isinstance(content, int) and rng.random() < 0.5:
        return content + rng.choice((-8, -4, -2, -1, 1, 2, 4, 8))
    return rng.choice(ODD)


def changed_bytes(raw: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw) + 1)
        raw = rng.choice(
            (
                raw[:at],
                raw[:at] + rng.randbytes(rng.randint(1, 9)) + raw[at:],
                raw[:at] + rng.randbytes(1) + raw[at + 1 :],
                raw[:at] + raw[at + rng.randint(1, 9) :],
                raw[:at] + rng.choice(b'{}[]",:0-e\\').to_bytes(1, "little") + raw[at + 1 :],
                raw + raw[at:],
            )
        )
    return raw


def changed_header(raw: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is other JSON, its length told rightly, mostly."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for _ in range(rng.randint(1, 3)):
        header = changed_json(header, rng)
    text = json.dumps(header).encode()
    told = len(text) + rng.choice((0, 0, 0, 0, 0, -1, 1, 8))
    return max(0, told).to_bytes(8, "little") + text + raw[8 + length :]


def broken(folder: Path, rng: random.Random) -> None:
    """Change one file of a sound folder."""
    file = rng.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
    raw = made = file.read_bytes()
    with suppress(ValueError, AttributeError):  # it was broken before
        if rng.random() < 0.6:
            other = changed_header(raw, rng) if file.suffix == ".safetensors" else None
            made = other or json.dumps(changed_json(json.loads(raw), rng)).encode()
    file.write_bytes(made if made != raw else changed_bytes(raw, rng))


def holds(folder: Path, out: Path) -> None:
    """A sentence, or all of it can be used."""
    try:
        found = Checkpoint.open(folder)
    except LorashearError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, error
        return
    for name, info in found.tensors.items():
        assert found.read(name).shape == info.shape
    found.digest()
    out.mkdir()
    write_slice(Slice.of(found, {}, shard_bytes=40), out)
    again = Checkpoint.open(_with_config(folder, out))
    assert set(again.tensors) == set(found.tensors)
    for name in found.tensors:
        assert again.read(name).tobytes() == found.read(name).tobytes()


def _with_config(source: Path, out: Path) -> Path:
    shutil.copyfile(source / "config.json", out / "config.json")
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Path, Path]]:
    work = tmp_path_factory.mktemp("fuzz")

    def fresh() -> tuple[Path, Path]:
        for path in work.iterdir():
            shutil.rmtree(path)
        return work / "model", work / "out"

    return fresh


@profile
@given(seed=st.integers(0, 2**63), sharded=st.booleans())
def test_whatever_the_bytes_are(folders: Callable[[], tuple[Path, Path]], seed: int, sharded: bool) -> None:
    folder, out = folders()
    sound(folder, 16 if sharded else 10**9)
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 1, 2))):
        broken(folder, rng)
    holds(folder, out)


@profile
@given(raw=st.binary(max_size=64))
def test_arbitrary_bytes(folders: Callable[[], tuple[Path, Path]], raw: bytes) -> None:
    folder, out = folders()
    sound(folder)
    (folder / SINGLE).write_bytes(raw)
    holds(folder, out)
