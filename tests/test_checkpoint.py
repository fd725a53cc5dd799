"""Every way a model folder can be wrong, and the sentence it gets; files are made byte by byte."""

import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from lorashear.disk.checkpoint import INDEX, SINGLE, Checkpoint, resolve
from lorashear.errors import LorashearError

CONFIG = {"model_type": "llama", "hidden_size": 4}
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1}

Edit = Callable[[dict[str, Any]], Any]


def raw(tensors: dict[str, tuple[str, list[int]]], edit: Edit | None = None, data: bytes | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    if edit:
        edit(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + (bytes(begin) if data is None else data)


def folder_of(folder: Path, files: dict[str, bytes | dict[str, Any]], config: Any = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": json.dumps(config).encode(), **files}.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


A = {"a": ("BF16", [2, 3])}
B = {"b": ("F32", [5])}


def refused(folder: Path, words: str) -> None:
    with pytest.raises(LorashearError, match=words) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


def test_reads_views_and_sizes(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<u2")
    file = raw({**A, **B, "none": ("F16", [0, 3]), "one": ("I64", [])}, data=values.tobytes() + bytes(28))
    checkpoint = Checkpoint.open(folder_of(tmp_path, {SINGLE: file}))
    assert list(checkpoint.tensors) == ["a", "b", "none", "one"]
    assert checkpoint.bytes == 12 + 20 + 8
    array = checkpoint.read("a")
    assert type(array) is np.ndarray
    assert array.dtype == np.uint16
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not array.flags.writeable
    assert checkpoint.read("none").shape == (0, 3)
    assert checkpoint.read("one").shape == ()
    assert checkpoint.read("b").dtype == np.float32
    assert checkpoint.tensors["b"].end == len(file) - 8
    with pytest.raises(LorashearError, match="holds no tensor 'c'"):
        checkpoint.read("c")


def test_order_is_that_of_the_bytes_not_of_the_header(tmp_path: Path) -> None:
    def swap(header: dict[str, Any]) -> None:
        header["a"] = header.pop("a")

    checkpoint = Checkpoint.open(folder_of(tmp_path, {SINGLE: raw({**A, **B}, swap)}))
    assert list(checkpoint.tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"{", "config.json' is not sound JSON"),
        (b"\xff\xfe\x00", "config.json' is not sound JSON"),
        (b"[" * 100_000, "config.json' is not sound JSON"),
        (b"[]", "config.json' is not a JSON object but a list"),
        (b"{}", "no model_type"),
        (b'{"model_type": "llama", "quantization_config": {"bits": 4}}', "dequantise the model first"),
    ],
)
def test_broken_config(tmp_path: Path, config: bytes, words: str) -> None:
    refused(folder_of(tmp_path, {SINGLE: raw(A), "config.json": config}), words)


def test_missing_files(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no model folder")
    refused(tmp_path, "holds no config.json")
    refused(folder_of(tmp_path, {}), "neither model.safetensors nor model.safetensors.index.json")
    refused(folder_of(tmp_path, {"pytorch_model.bin": b""}), "pickle only.*never loaded.*convert")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", fail)
    refused(folder_of(tmp_path, {SINGLE: raw(A)}), "config.json' cannot be read: Permission denied")


def entry(**changes: Any) -> bytes:
    return raw(A, lambda header: header["a"].update(changes))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"abc", r"too short for safetensors \(3 bytes\)"),
        (raw(A)[:40], "claims a header of .* bytes but has 40 in all"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (struct.pack("<Q", 3) + b"{a}", "header of .* is not sound JSON"),
        (struct.pack("<Q", 2) + b"[]", "header of .* not a JSON object but a list"),
        (raw(A)[:-1], r"has \d+ bytes but its tensors end at \d+; it is cut short"),
        (raw(A) + b"x", r"has \d+ bytes but its tensors end at \d+"),
        (raw(A, lambda h: h["a"].pop("dtype")), "lacks a dtype, a shape or two data_offsets"),
        (raw(A, lambda h: h.update(a=3)), "lacks a dtype, a shape or two data_offsets"),
        (entry(shape=6), "lacks a dtype, a shape or two data_offsets"),
        (entry(data_offsets=[0, 6, 12]), "lacks a dtype, a shape or two data_offsets"),
        (entry(shape=[2, -3]), "no whole numbers"),
        (entry(shape=[True, 6]), "no whole numbers"),
        (entry(dtype="Q7"), "unknown dtype 'Q7'"),
        (entry(shape=[2, 4]), r"'a' in .* has 12 bytes, but BF16 of shape \[2, 4\] takes 16"),
        (entry(data_offsets=[12, 0]), "has -12 bytes"),
        (entry(data_offsets=[4, 16]), "leaves a gap before it"),
        (raw({**A, **B}, lambda h: h["b"].update(data_offsets=[0, 20])), "'b' in .* overlaps"),
        (entry(shape=[0, 10**30], data_offsets=[0, 0]), r"has the shape \[0, 10+\], which no tensor can have"),
        (raw({"q": ("I8", [4])}), r"'q' in .* is quantised \(I8\): dequantise"),
        (raw({"q": ("U8", [4])}), r"is quantised \(U8\): dequantise"),
        (raw({"q": ("F8_E4M3", [4])}), r"is quantised \(F8_E4M3\): dequantise"),
    ],
)
def test_broken_safetensors(tmp_path: Path, file: bytes, words: str) -> None:
    refused(folder_of(tmp_path, {SINGLE: file}), words)


def test_repeated_names(tmp_path: Path) -> None:
    one = b'"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}'
    text = b"{" + one + b"," + one + b"}"
    refused(folder_of(tmp_path, {SINGLE: struct.pack("<Q", len(text)) + text + bytes(2)}), "the name 'a' appears twice")
    (tmp_path / SINGLE).unlink()
    refused(folder_of(tmp_path, {INDEX: b'{"weight_map":{"a":"x","a":"x"}}'}), "the name 'a' appears twice")


SHARDS: dict[str, Any] = {
    "1.safetensors": raw(A),
    "2.safetensors": raw(B),
    INDEX: {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}},
}


def test_shards(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(folder_of(tmp_path, SHARDS))
    assert {name: info.file.name for name, info in checkpoint.tensors.items()} == SHARDS[INDEX]["weight_map"]
    folder_of(tmp_path, {SINGLE: raw({"c": ("F16", [1])})})
    assert list(Checkpoint.open(tmp_path).tensors) == ["c"]  # the single file goes first, as in transformers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({INDEX: b"{"}, "index.json' is not sound JSON"),
        ({INDEX: {}}, "has no weight_map"),
        ({INDEX: {"weight_map": {"a": 1}}}, "has no weight_map"),
        ({INDEX: {"weight_map": {"a": "1.safetensors"}, "x": 0}, "2.safetensors": b""}, None),
        ({INDEX: {"weight_map": {"a": "1.safetensors", "b": "3.safetensors"}}}, "lacks the shard '3.safetensors'"),
        ({INDEX: {"weight_map": {"a": "/etc/passwd"}}}, "'/etc/passwd' lies outside"),
        ({INDEX: {"weight_map": {"a": "../1.safetensors"}}}, "'../1.safetensors' lies outside"),
        ({INDEX: {"weight_map": {"a": "1\0"}}}, "lies outside"),
        ({INDEX: {"weight_map": {"a": "\ud800"}}}, "lies outside"),
        ({"1.safetensors": raw({**A, "c": ("F16", [1])})}, "holds tensor 'c', which .* does not list for that file"),
        ({"1.safetensors": raw({**A, **B})}, "holds tensor 'b', which .* does not list for that file"),
        ({"2.safetensors": raw({})}, "lists tensor 'b' for '2.safetensors', which does not hold it"),
    ],
)
def test_broken_shards(tmp_path: Path, change: dict[str, Any], words: str | None) -> None:
    folder = folder_of(tmp_path, {**SHARDS, **change})
    if words is None:  # a file that the index does not name is nobody's business
        assert list(Checkpoint.open(folder).tensors) == ["a"]
    else:
        refused(folder, words)


@pytest.mark.parametrize("name", [SINGLE, "1.safetensors"])
def test_links_may_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(raw(A))
    folder = folder_of(tmp_path / "model", {} if name == SINGLE else {INDEX: {"weight_map": {"a": name}}})
    (folder / name).symlink_to("../secret")
    refused(folder, f"'{name}' lies outside")


def test_hub_cache_links_stay_in_the_models_cache(tmp_path: Path) -> None:
    snapshot = folder_of(tmp_path / "models--x--y" / "snapshots" / "0123", {})
    blobs = tmp_path / "models--x--y" / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_bytes(raw(A))
    (snapshot / SINGLE).symlink_to("../../blobs/abc")
    assert list(Checkpoint.open(snapshot).tensors) == ["a"]
    other = tmp_path / "models--x--z"
    other.mkdir()
    (other / "abc").write_bytes(raw(A))
    (snapshot / SINGLE).unlink()
    (snapshot / SINGLE).symlink_to("../../../models--x--z/abc")
    refused(snapshot, "lies outside")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_check_finite(tmp_path: Path, dtype: str) -> None:
    size = 5_000_000 if dtype == "BF16" else 10  # more than one block
    bad = {"BF16": np.array([0x7FC0, 0xFF80], "<u2")}.get(dtype)
    if bad is None:
        bad = np.array([np.nan, -np.inf], f"<f{SIZES[dtype]}")
    values = np.zeros(size, bad.dtype)
    values[0] = {"BF16": 0xFF7F}.get(dtype, 1)  # the most negative BF16 is finite
    tensors = {"good": (dtype, [size]), "bad": (dtype, [size]), "count": ("I64", [1])}
    good = values.tobytes()
    values[[1, -1]] = bad
    data = good + values.tobytes() + b"\xff" * 8
    checkpoint = Checkpoint.open(folder_of(tmp_path, {SINGLE: raw(tensors, data=data)}))
    checkpoint.check_finite(["good", "count"])
    with pytest.raises(LorashearError, match=rf"'bad' .* holds 2 values that are NaN or infinite \(of {size}\)"):
        checkpoint.check_finite()


def test_check_shapes(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(folder_of(tmp_path, {SINGLE: raw({**A, **B})}))
    shapes = {"a": (2, 3), "b": (5,)}
    checkpoint.check_shapes(shapes, {})
    checkpoint.check_shapes({**shapes, "tied": (2, 3)}, {"tied": "a"})
    checkpoint.check_shapes({"head": (2, 3), "b": (5,)}, {"head": "a"})
    checkpoint.check_shapes({"embedding": (2, 3), "b": (5,)}, {"a": "embedding"})  # stored under the other name
    for wanted, aliases, words in [
        ({"a": (2, 3)}, {}, r"unexpected tensor 'b' of shape \[5\]"),
        ({**shapes, "c": (7,)}, {}, r"holds no tensor 'c', which its config asks for with shape \[7\]"),
        ({**shapes, "c": (7,)}, {"d": "c"}, "holds no tensor 'c' or 'd'"),
        ({**shapes, "b": (6,)}, {}, r"'b' .* has shape \[5\], but its config asks for \[6\]"),
        ({"head": (3, 2), "b": (5,)}, {"head": "a"}, r"'a' .* has shape \[2, 3\], but its config asks for \[3, 2\]"),
    ]:
        with pytest.raises(LorashearError, match=words):
            checkpoint.check_shapes(wanted, aliases)
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    checkpoint = Checkpoint.open(folder_of(tmp_path, {SINGLE: raw({**A, old: ("F32", [1])})}))
    checkpoint.check_shapes({"a": (2, 3)}, {})


def test_several_in_one(tmp_path: Path) -> None:
    """Rows of a tensor are read as tensors of their own, from the bytes where they lie."""
    values = np.arange(11, dtype="<f4")
    file = raw({"a": ("F32", [5, 2]), "b": ("F32", [1])}, data=values.tobytes())
    whole = Checkpoint.open(folder_of(tmp_path, {SINGLE: file}))
    found = whole.apart({"a": {"first": 3, "second": 2}})
    assert list(found.tensors) == ["first", "second", "b"]
    assert np.array_equal(np.concatenate([found.read("first"), found.read("second")]), whole.read("a"))
    assert found.read("second").shape == (2, 2) and found.bytes == whole.bytes
    with pytest.raises(LorashearError, match=r"tensor 'a' in .* has shape \[5, 2\], but 4 rows are asked for"):
        whole.apart({"a": {"first": 4}})


def test_digest_sees_config_and_layout_only(tmp_path: Path) -> None:
    def digest(file: bytes, config: dict[str, Any]) -> str:
        return Checkpoint.open(folder_of(tmp_path, {SINGLE: file}, config)).digest()

    first = digest(raw(A), CONFIG)
    assert len(first) == 64
    assert first == digest(raw(A, data=b"x" * 12), dict(reversed(CONFIG.items())))
    changed = {digest(raw(A), {**CONFIG, "x": 1}), digest(raw({"a": ("F16", [2, 3])}), CONFIG)}
    changed |= {digest(raw({"a": ("BF16", [3, 2])}), CONFIG), digest(raw({"b": ("BF16", [2, 3])}), CONFIG)}
    assert len(changed | {first}) == 5


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve(tmp_path) == tmp_path
    assert not asked
    assert resolve("owner/name-7b", "main") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/name-7b", "main")
    assert "*.bin" not in asked["allow_patterns"]

    def fail(name: str, **_: Any) -> str:
        raise OSError("offline\n\nat last")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        LorashearError, match=r"no model 'gpt2': there is no such folder, and the hub .*offline at last"
    ):
        resolve("gpt2")
    with pytest.raises(LorashearError, match="at revision 'v2'"):
        resolve("owner/name", "v2")
    (tmp_path / "file").touch()
    with pytest.raises(LorashearError, match=r"no model folder .* it is a file"):
        resolve(tmp_path / "file")
    for path in ("/no/where", "./no", "../no", "~/no-such", "a/b/c", "", "a b", "folder/"):
        with pytest.raises(LorashearError, match=r"no model folder .* give an existing folder or a hub id"):
            resolve(path)


def test_imports_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import lorashear.disk.checkpoint, lorashear.disk.slicing, lorashear.disk.output;"
        "assert 'transformers' not in sys.modules"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    "name", ["weight_scale_inv", "weight_scale", "q.qweight", "q.scales", "q.weight.absmax", "weight_packed"]
)
def test_tensors_of_quantised_weights_are_told_by_their_names(tmp_path: Path, name: str) -> None:
    refused(
        folder_of(tmp_path, {SINGLE: raw({name: ("F32", [2])})}),
        f"'{name}' .* belongs to quantised weights: dequantise",
    )


def test_contents_do_not_depend_on_files(tmp_path: Path) -> None:
    data = {"a": bytes(range(12)), "b": bytes(range(20, 40))}
    one = Checkpoint.open(folder_of(tmp_path / "1", {SINGLE: raw({**A, **B}, data=data["a"] + data["b"])}))
    shards = {"1.safetensors": raw(B, data=data["b"]), "2.safetensors": raw(A, data=data["a"])}
    index = {INDEX: {"weight_map": {"b": "1.safetensors", "a": "2.safetensors"}}}
    two = Checkpoint.open(folder_of(tmp_path / "2", {**shards, **index}))
    assert one.contents() == two.contents()
    other = Checkpoint.open(folder_of(tmp_path / "3", {SINGLE: raw({**A, **B}, data=data["a"] + bytes(20))}))
    assert other.contents() != one.contents() and other.digest() == one.digest()
