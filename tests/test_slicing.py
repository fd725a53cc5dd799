"""The streaming writer against numpy, torch, safetensors and transformers."""

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lorashear.disk import slicing
from lorashear.disk.checkpoint import INDEX, SINGLE, Checkpoint
from lorashear.disk.layout import SHARD_BYTES
from lorashear.disk.slicing import Slice, sliced, write_slice
from lorashear.errors import LorashearError
from lorashear_ir.groups import TensorCut

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / SINGLE)
    return Checkpoint.open(folder)


def written(source: Checkpoint, folder: Path, cuts: dict[str, TensorCut], **options: Any) -> Checkpoint:
    """Writes and reopens, which checks every offset anew."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    wanted = Slice.of(source, cuts, options.pop("replace", {}), options.pop("shard_bytes", SHARD_BYTES))
    write_slice(wanted, folder, **options)
    result = Checkpoint.open(folder)
    placed = {each.name: each.shape for shard in wanted.layout.shards for each in shard.tensors}
    assert {name: info.shape for name, info in result.tensors.items()} == placed
    assert wanted.layout.bytes == sum(file.stat().st_size for file in folder.iterdir() if file.name != "config.json")
    return result


def a_few(rng: random.Random, size: int) -> tuple[int, ...]:
    """Indices scattered, or in whole runs of two or four as heads are."""
    run = rng.choice([run for run in (1, 2, 4) if size % run == 0])
    chosen = rng.sample(range(size // run), rng.randint(0 if rng.random() < 0.1 else 1, size // run))
    return tuple(index * run + i for index in sorted(chosen) for i in range(run))


@pytest.mark.parametrize("block", [16, 64, 1 << 20])
def test_agrees_with_numpy_for_every_rank_dtype_and_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(slicing, "_BLOCK", block)
    rng = random.Random(block)
    torch.manual_seed(0)
    tensors, cuts = {}, {}
    for i in range(120):
        shape = [rng.choice([1, 4, 6, 8, 12]) for _ in range(rng.randint(0, 4))]
        name, dtype = f"t{i}", rng.choice([*DTYPES.values(), torch.int64, torch.bool])
        tensors[name] = (torch.randn(shape) * 100).to(dtype)
        keep = {dim: a_few(rng, size) for dim, size in enumerate(shape) if rng.random() < 0.6}
        floats = dtype in DTYPES.values()
        cuts[name] = TensorCut(keep, rng.choice([1.0, 1.1]) if floats else 1.0, rng.choice([0.0, 1.0]))
    source = checkpoint(tmp_path / "in", tensors)
    result = written(source, tmp_path / "out", cuts)
    for name, cut in cuts.items():
        wanted = sliced(source.read(name), cut, source.tensors[name].dtype)
        assert result.read(name).dtype == wanted.dtype
        assert result.read(name).tobytes() == wanted.tobytes(), (name, cut)
        given = tensors[name].numpy() if tensors[name].dtype != torch.bfloat16 else source.read(name)
        if cut.scale == 1.0:  # the reference's own reference
            assert np.array_equal(
                wanted, given[np.ix_(*(cut.keep.get(d, range(n)) for d, n in enumerate(given.shape)))]
            )


def misaligned(folder: Path) -> Checkpoint:
    """The same checkpoint with one more space after its header, as old writers left it."""
    content = (folder / SINGLE).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    (folder / SINGLE).write_bytes((start - 7).to_bytes(8, "little") + content[8:start] + b" " + content[start:])
    return Checkpoint.open(folder)


def test_a_source_that_is_not_aligned(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    checkpoint(tmp_path / "in", {"a": values})
    source = misaligned(tmp_path / "in")
    assert source.tensors["a"].begin % 4 == 1
    cut = TensorCut({0: (1, 3), 1: (0, 5)}, 0.5)
    result = written(source, tmp_path / "out", {"a": cut})
    assert result.tensors["a"].begin % 8 == 0
    assert result.read("a").tolist() == (values[[1, 3]][:, [0, 5]] * 0.5).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.5, 1.0 / 3.0, 0.9128709291752769, 1.0009765625])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_scales_to_the_bits_that_torch_gives(dtype: str, scale: float, offset: float) -> None:
    if DTYPES[dtype].itemsize == 2:  # all of them, subnormal ones too
        values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(DTYPES[dtype])
        values = values[values.isfinite() & (values.abs() < torch.finfo(values.dtype).max / 4)]
    else:
        values = torch.randn(5000, dtype=DTYPES[dtype], generator=torch.Generator().manual_seed(1))
    wanted = ((values.double() + offset) * scale - offset).to(values.dtype)
    bits = values.view(torch.uint16).numpy() if dtype == "BF16" else values.numpy()
    found = sliced(bits, TensorCut({}, scale, offset), dtype)
    assert found.dtype == bits.dtype
    assert found.tobytes() == wanted.view(torch.uint8).numpy().tobytes()


def test_bf16_ties_go_to_even() -> None:
    values = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)  # the last bit is 2**-7
    found = sliced(values.view(torch.uint16).numpy(), TensorCut({}, 1 + 2**-8), "BF16")
    assert found.tolist() == [0x3F80, 0x3F82]


@pytest.mark.parametrize(
    ("dtype", "value"), [("BF16", 3e38), ("F16", 6e4), ("F32", 3e38), ("F64", 1e308), ("BF16", np.nan)]
)
def test_a_scale_may_not_leave_the_range(tmp_path: Path, dtype: str, value: float) -> None:
    source = checkpoint(tmp_path / "in", {"a": torch.tensor([1.0, value], dtype=DTYPES[dtype])})
    with pytest.raises(LorashearError, match=f"tensor 'a' times 2.0 leaves the range of {dtype}"):
        written(source, tmp_path / "out", {"a": TensorCut({}, 2.0)})


A = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        ({"x": TensorCut({})}, "holds no tensor 'x'; the plan belongs to another model"),
        ({"a": TensorCut({2: (0,)})}, r"'a' of shape \[3, 4\] has no dimension 2"),
        ({"a": TensorCut({-1: (0,)})}, "has no dimension -1"),
        ({"a": TensorCut({0: (0, 3)})}, "'a' has 3 entries in dimension 0, but indices 0 to 3 are to be kept"),
        ({"a": TensorCut({1: (-1, 0)})}, "'a' has 4 entries in dimension 1, but indices -1 to 0"),
        ({"a": TensorCut({1: (2, 1)})}, "of dimension 1 must ascend without repeats"),
        ({"a": TensorCut({1: (1, 1)})}, "must ascend without repeats"),
        ({"a": TensorCut({}, float("inf"))}, "scale and offset must be finite, not inf and 0.0"),
    ],
)
def test_cuts_that_do_not_fit(tmp_path: Path, cuts: dict[str, TensorCut], words: str) -> None:
    source = checkpoint(tmp_path / "in", {"a": A})
    with pytest.raises(LorashearError, match=words):
        written(source, tmp_path / "out", cuts)
    assert not (tmp_path / "out" / SINGLE).exists()
    if "x" not in cuts:
        with pytest.raises(LorashearError, match=words.replace("'a'", "'in memory'")):
            sliced(A.numpy(), cuts["a"], "F32")


def test_only_floats_are_scaled(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", {"a": A.long()})
    with pytest.raises(LorashearError, match="'a' is I64, which cannot be scaled"):
        written(source, tmp_path / "out", {"a": TensorCut({}, 2.0)})


def test_replacements(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", {"a": A, "b": A.bfloat16(), "c": A})
    cut = TensorCut({0: (0, 2)})
    new = np.asfortranarray(np.arange(8, dtype=np.uint16).reshape(2, 4))
    result = written(source, tmp_path / "out", {"b": cut, "c": cut}, replace={"b": new})
    assert result.read("b").tolist() == new.tolist()
    assert result.read("a").tolist() == A.tolist()
    assert result.read("c").tolist() == A[[0, 2]].tolist()
    for wrong in (new.astype(np.float32), new.T):
        with pytest.raises(
            LorashearError, match=r"replacement of tensor 'b' is .*, but uint16 of shape \[2, 4\] is want"
        ):
            written(source, tmp_path / f"no{wrong.dtype}", {"b": cut}, replace={"b": wrong})
    with pytest.raises(LorashearError, match="holds no tensor 'x'"):
        written(source, tmp_path / "x", {}, replace={"x": new})


def test_one_file_as_safetensors_wants_it(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", {"a": A, "odd": torch.ones(3, dtype=torch.bool), "z": A.bfloat16()})
    before, steps = os.umask(0o027), []
    try:
        written(source, tmp_path / "out", {}, progress=lambda *step: steps.append(step))
    finally:
        os.umask(before)
    file = tmp_path / "out" / SINGLE
    assert file.stat().st_mode & 0o777 == 0o640
    start, total = file.stat().st_size - 75, file.stat().st_size
    assert steps == [(start + 48, total), (start + 72, total), (total, total)]
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert {name: tensor.tolist() for name, tensor in load_file(file).items()} == {
        "a": A.tolist(),
        "odd": [True] * 3,
        "z": A.tolist(),
    }
    with pytest.raises(LorashearError, match="exists already; write into an empty folder"):
        write_slice(Slice.of(source, {}), tmp_path / "out")


def test_wide_dtypes_lie_first_so_that_all_are_aligned(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", {"a": A[:1, :3].half(), "b": A.double()})
    file = tmp_path / "in" / SINGLE
    header = json.loads((content := file.read_bytes())[8 : (start := 8 + int.from_bytes(content[:8], "little"))])
    header["a"]["data_offsets"], header["b"]["data_offsets"] = [0, 6], [6, 102]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[start + 96 :] + content[start : start + 96])
    source = Checkpoint.open(tmp_path / "in")
    assert list(source.tensors) == ["a", "b"]
    result = written(source, tmp_path / "out", {})
    assert list(result.tensors) == ["b", "a"]
    assert result.read("b").tolist() == A.tolist()
    assert result.read("a").tolist() == A[:1, :3].tolist()


@pytest.mark.parametrize(
    ("most", "names"), [(1, [["a"], ["b"], ["c"]]), (96, [["a", "b"], ["c"]]), (95, [["a"], ["b", "c"]]), (143, None)]
)
def test_shards(tmp_path: Path, most: int, names: list[list[str]] | None) -> None:
    source = checkpoint(tmp_path / "in", {"a": A, "b": A, "c": A[:, :3]})
    written(source, tmp_path / "out", {}, shard_bytes=most)
    if names is None:
        assert sorted(os.listdir(tmp_path / "out")) == ["config.json", SINGLE]
        return
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == 132
    files = [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    assert index["weight_map"] == {name: file for file, row in zip(files, names, strict=True) for name in row}
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", *files, INDEX]


def test_transformers_reads_a_cut_and_sharded_model(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16().eval()
    model.save_pretrained(tmp_path / "in")
    source = Checkpoint.open(tmp_path / "in")
    kept = tuple(range(0, 24, 2))
    dims = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    cuts = {name: TensorCut({dims[part]: kept}) for name in source.tensors if (part := name.split(".")[-2]) in dims}
    assert len(cuts) == 6
    out = tmp_path / "out"
    out.mkdir()
    write_slice(Slice.of(source, cuts, shard_bytes=2000), out)
    config.intermediate_size = len(kept)
    config.save_pretrained(out)
    assert len(list(out.glob("model-*.safetensors"))) > 2
    small = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    wanted = {name: tensor.detach() for name, tensor in model.named_parameters()}
    for name, parameter in small.named_parameters():
        cut = cuts.get(name)
        for dim, rows in cut.keep.items() if cut else ():
            wanted[name] = wanted[name].index_select(dim, torch.tensor(rows))
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, wanted[name])


@pytest.mark.parametrize("aligned", [True, False])
def test_memory_stays_small(tmp_path: Path, aligned: bool) -> None:
    big = torch.zeros(4096, 2048, dtype=torch.bfloat16)  # 16 MiB
    source = checkpoint(tmp_path / "in", {"a": big, "b": big})
    source = source if aligned else misaligned(tmp_path / "in")
    odd = tuple(range(1, 2048, 2))
    tracemalloc.start()
    try:
        written(source, tmp_path / "out", {"a": TensorCut({0: odd, 1: odd}, 0.5), "b": TensorCut({1: odd})})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20  # two buffers, and a block's worth in float64 on either side of the scale
