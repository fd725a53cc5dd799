"""Export to GGUF, read back with the library `gguf`: tensors, keys, tokenizers and adapters. tests/test_llama_cpp.py runs the files."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import lorashear
from lorashear.disk.checkpoint import Checkpoint
from lorashear.engines import exporter, gguf_tensors, gguf_tokenizer
from lorashear.engines.gguf_file import NAMES, Gguf
from lorashear.errors import LorashearError

gguf = pytest.importorskip("gguf", reason="no gguf: pip install 'lorashear[gguf]'")
pytestmark = pytest.mark.usefixtures("one_thread")

LAYER = "model.layers.{}.{}"
REMOVED = {
    "uniform": {"self_attn.head": ([0], [2]), "mlp.ffn": ([*range(16)], [*range(16)])},
    "layers": {"self_attn.head": ([0], [2, 3]), "self_attn.query": ([], [0, 3]), "mlp.ffn": ([1, 7], [3, 4, 8, 30])},
}
"""Of two layers with 8 heads in 4 groups, 48 columns and a hidden size of 32."""


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Without a tokenizer, since the folder's is not one that llama.cpp has."""
    made: dict[str, Path] = {}
    for name, by_kind in REMOVED.items():
        removed = {LAYER.format(at, kind): some for kind, layers in by_kind.items() for at, some in enumerate(layers)}
        made[name] = tmp_path_factory.mktemp("results") / name
        lorashear.apply(lorashear.plan(folder, removed), folder, made[name])
        for file in made[name].glob("*token*"):
            file.unlink()
    return made


@pytest.fixture
def bare(results: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(results["layers"], tmp_path / "bare"))


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()


def keys(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {each.name: gguf.dequantize(each.data, each.tensor_type) for each in gguf.GGUFReader(path).tensors}


def kinds(path: Path) -> dict[str, str]:
    return {each.name: each.tensor_type.name.lower() for each in gguf.GGUFReader(path).tensors}


def turned_back(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """From neighbouring pairs to halves of a head."""
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def in_file(model: Any, head_dim: int = 8) -> dict[str, tuple[np.ndarray, bool]]:
    """Each tensor of a model by its name in the file, and whether its rows lie there as pairs."""
    found = {
        "token_embd.weight": (model.model.embed_tokens.weight, False),
        "output_norm.weight": (model.model.norm.weight, False),
    }
    for at, layer in enumerate(model.model.layers):
        for part, called in NAMES.items():
            found[f"blk.{at}.{called}.weight"] = (layer.get_submodule(part).weight, part[-6] in "qk" and "attn" in part)
    if not model.config.tie_word_embeddings:
        found["output.weight"] = (model.lm_head.weight, False)
    return {name: (weight.detach().numpy(), turned) for name, (weight, turned) in found.items()}


def edited(folder: Path, **values: Any) -> None:
    """Change config.json; None removes."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


@pytest.mark.parametrize("name", REMOVED)
def test_the_tensors_are_those_of_torch(name: str, results: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    want = in_file(loaded(results[name]))
    for dtype in (None, *gguf_tensors.DTYPES):
        said = lorashear.export(results[name], "gguf", out, dtype=dtype, overwrite=True)
        found, kind = tensors(out), kinds(out)
        assert set(found) == set(want)
        for called, (weight, turned) in want.items():
            got = turned_back(found[called], 8) if turned else found[called]
            expected = {"f32": weight, "bf16": weight, "f16": weight.astype(np.float16).astype(np.float32)}
            if weight.ndim == 1:
                assert kind[called] == "f32" and np.array_equal(got, weight)
                continue
            asked = dtype or "bf16"
            if asked == "q8_0" and weight.shape[1] % 32:
                asked = "f16"
            assert kind[called] == asked
            if asked == "q8_0":
                largest = np.abs(weight.reshape(len(weight), -1, 32)).max(2, keepdims=True)
                off = np.abs(got - weight).reshape(len(weight), -1, 32)
                assert (off <= largest / 127 * 0.51 + np.abs(largest) * 2**-11 * 1.01).all() and off.max() > 0
            else:
                assert np.array_equal(got, expected[asked])
        narrow = sum(each.ndim > 1 and each.shape[1] % 32 != 0 for each, _ in want.values())
        if dtype == "q8_0":
            assert said.startswith(f"{narrow} of 15 matrices are f16, since their rows are no multiples of 32; ")
        else:
            assert said.startswith("rows of 15 of 15 matrices are no multiples of 256, so that K-quants of llama.cpp ")
        assert keys(out)["general.file_type"] == {None: 32, "f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[dtype]


def test_the_keys_are_numbers_for_equal_layers_and_lists_for_others(results: dict[str, Path], tmp_path: Path) -> None:
    shared = {
        "vocab_size": 96, "context_length": 64, "embedding_length": 32, "block_count": 2, "attention.key_length": 8,
        "attention.value_length": 8, "rope.dimension_count": 8, "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
    }  # fmt: skip
    own = {
        ("uniform", "llama"): {"feed_forward_length": 32, "attention.head_count": 6, "attention.head_count_kv": 3},
        ("layers", "deci"): {
            "feed_forward_length": [46, 44], "attention.head_count": [6, 2], "attention.head_count_kv": [3, 2]
        },
    }  # fmt: skip
    for (name, architecture), values in own.items():
        out = tmp_path / f"{name}.gguf"
        lorashear.export(results[name], "gguf", out)
        found = keys(out)
        assert (found["general.architecture"], found["general.type"]) == (architecture, "model")
        assert found["tokenizer.ggml.model"] == "none"
        assert {key: found[f"{architecture}.{key}"] for key in shared | values} == shared | values


def test_untied_heads_and_other_names_of_the_embedding(results: dict[str, Path], tmp_path: Path) -> None:
    """An output of its own is there; where one tensor is both, it may be stored under the other name."""
    model = loaded(results["uniform"])
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() + 1)
    model.save_pretrained(tmp_path / "untied")
    lorashear.export(tmp_path / "untied", "gguf", tmp_path / "untied.gguf")
    assert np.array_equal(tensors(tmp_path / "untied.gguf")["output.weight"], model.lm_head.weight.detach().numpy())
    edited(tmp_path / "untied", tie_word_embeddings=True)
    held = {
        name: np.array(Checkpoint.open(tmp_path / "untied").read(name))
        for name in Checkpoint.open(tmp_path / "untied").tensors
    }
    save_file(
        {n: v for n, v in held.items() if n != "model.embed_tokens.weight"}, tmp_path / "untied" / "model.safetensors"
    )
    lorashear.export(tmp_path / "untied", "gguf", tmp_path / "tied.gguf")
    found = tensors(tmp_path / "tied.gguf")
    assert "output.weight" not in found and np.array_equal(found["token_embd.weight"], held["lm_head.weight"])


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def test_rotary_embeddings(bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"

    def of(rope: Mapping[str, Any]) -> dict[str, Any]:
        edited(bare, rope_parameters=rope)
        lorashear.export(bare, "gguf", out, overwrite=True)
        return {name.removeprefix("deci.rope."): value for name, value in keys(out).items() if ".rope." in name}

    plain = {"dimension_count": 8, "freq_base": 10000.0}
    assert of({"rope_type": "default", "rope_theta": 10000.0}) == plain
    assert of({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}) == {
        **plain, "scaling.type": "linear", "scaling.factor": 2.0
    }  # fmt: skip
    assert of({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32, "beta_slow": 1.0}) == {
        **plain, "scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64
    }  # fmt: skip
    assert of(LLAMA3) == {**plain, "freq_base": 5e5}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, head_dim=8, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    given = 5e5 ** (-np.arange(0, 8, 2) / 8)
    assert np.allclose(tensors(out)["rope_freqs.weight"], given / scaled.numpy(), rtol=1e-5)
    before = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    edited(bare, rope_parameters=None, rope_scaling=before, rope_theta=5e5)
    lorashear.export(bare, "gguf", tmp_path / "before.gguf")
    assert out.read_bytes() == (tmp_path / "before.gguf").read_bytes()


def test_a_model_is_never_whole_in_memory(tmp_path: Path) -> None:
    """The larger file takes no more than the smaller one; a big tensor no more than some of its rows."""
    most = []
    for layers, vocabulary in ((2, 4096), (8, 65536)):
        folder, out = tmp_path / f"model-{layers}", tmp_path / "out.gguf"
        folder.mkdir()
        config = {
            "model_type": "llama", "hidden_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4, "head_dim": 64,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "rope_theta": 1e4,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        held = {
            name: np.ones((vocabulary, 256), np.float32) for name in ("model.embed_tokens.weight", "lm_head.weight")
        }
        held["model.norm.weight"] = np.ones(256, np.float32)
        for at in range(layers):
            for part in NAMES:
                shape = {"layernorm": (256,), "down_proj": (256, 1024)}
                shape |= dict.fromkeys(("gate_proj", "up_proj"), (1024, 256))
                kind = next((kind for kind in shape if part.endswith(kind)), "")
                held[f"model.layers.{at}.{part}.weight"] = np.ones(shape.get(kind, (256, 256)), np.float32)
        save_file(held, folder / "model.safetensors")
        for dtype in gguf_tensors.DTYPES:
            tracemalloc.start()
            lorashear.export(folder, "gguf", out, dtype=dtype, overwrite=True)
            most.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        whole = Checkpoint.open(folder).bytes
    smaller, larger = most[: len(most) // 2], most[len(most) // 2 :]
    assert max(larger) < max(smaller) + 4_000_000 < 20_000_000 < whole / 8


def saved(tokenizer: Tokenizer, folder: Path, **settings: Any) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>", **settings}))


def byte_level(cut: Any = None, ignore_merges: bool = False, leave_out: str = "") -> Tokenizer:
    letters = [each for each in sorted(pre_tokenizers.ByteLevel.alphabet()) if each not in leave_out]
    vocabulary = {each: at for at, each in enumerate(["<s>", "</s>", *letters, "ab"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")], ignore_merges=ignore_merges))
    made.add_special_tokens(["<s>", "</s>"])
    made.pre_tokenizer = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def split(expression: str) -> Any:
    cut = pre_tokenizers.Split(Regex(expression), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentencepiece(*, bytes_too: bool = True, words: bool = True, unknown: bool = True) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *([f"<0x{each:02X}>" for each in range(256)] if bytes_too else []), "▁", "a", "b"]
    tokens += ["ab", "▁ab"] if words else []
    merges = [("a", "b"), ("▁", "ab")] if words else []
    made = Tokenizer(models.BPE(
        vocab={each: at for at, each in enumerate(tokens)}, merges=merges, unk_token="<unk>" if unknown else None, fuse_unk=True,
        byte_fallback=bytes_too,
    ))  # fmt: skip
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bos = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    made.post_processor = bos
    return made


def wide_enough(folder: Path) -> None:
    """An embedding of 320 rows, for the tokens of a byte-level tokenizer."""
    source = Checkpoint.open(folder)
    held = {name: np.array(source.read(name)).view(np.uint16) for name in source.tensors}
    held["model.embed_tokens.weight"] = np.resize(held["model.embed_tokens.weight"], (320, 32))
    save_file(
        {name: (v.astype(np.uint32) << 16).view(np.float32) for name, v in held.items()}, folder / "model.safetensors"
    )


@pytest.fixture
def wide(bare: Path) -> Path:
    wide_enough(bare)
    return bare


def test_byte_level_tokenizers_by_the_way_they_cut(wide: Path, tmp_path: Path) -> None:
    words = {pre: expression for (expression, _), pre in gguf_tokenizer.EXPRESSIONS.items()}
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ways: dict[str, Tokenizer] = {"gpt-2": byte_level(), "smollm": byte_level(digits)}
    ways |= {pre: byte_level(split(words[pre]), pre in ("llama-bpe", "tekken")) for pre in words}
    for pre, tokenizer in ways.items():
        saved(tokenizer, wide, chat_template="{{ messages }}")
        lorashear.export(wide, "gguf", tmp_path / "out.gguf", overwrite=True)
        found = keys(tmp_path / "out.gguf")
        assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", pre)
        assert found["tokenizer.ggml.tokens"][:3] == ["<s>", "</s>", "!"] and found["tokenizer.ggml.merges"] == ["a b"]
        assert found["tokenizer.ggml.tokens"][259:] == [f"[PAD{at}]" for at in range(259, 320)]
        assert found["tokenizer.ggml.token_type"] == [3, 3, *[1] * 257, *[5] * 61]
        assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (0, 1)
        assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (False, False)
        assert found["tokenizer.chat_template"] == "{{ messages }}" and "tokenizer.ggml.scores" not in found


def test_tokenizers_of_pieces_get_scores_from_their_merges(wide: Path, tmp_path: Path) -> None:
    saved(
        sentencepiece(), wide, chat_template=[{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}]
    )
    said = lorashear.export(wide, "gguf", tmp_path / "out.gguf")
    found = keys(tmp_path / "out.gguf")
    assert found["tokenizer.ggml.model"] == "llama" and "bytes" not in said and "joins" not in said
    assert found["tokenizer.ggml.token_type"][:264] == [2, 3, 3, *[6] * 256, *[1] * 5]
    assert found["tokenizer.ggml.scores"][262:264] == [0.0, -1.0] and found["tokenizer.ggml.scores"][261] < -1e6
    assert found["tokenizer.ggml.unknown_token_id"] == 0 and found["tokenizer.chat_template"] == "y"
    assert [found[f"tokenizer.ggml.add_{name}"] for name in ("bos_token", "eos_token", "space_prefix")] == [
        True,
        False,
        True,
    ]
    saved(sentencepiece(bytes_too=False, words=False), wide)
    said = lorashear.export(wide, "gguf", tmp_path / "characters.gguf")
    assert "bytes" not in said and said.endswith("; text of nothing but spaces gets one less in llama.cpp")
    assert keys(tmp_path / "characters.gguf")["tokenizer.ggml.model"] == "t5"
    saved(sentencepiece(bytes_too=False), wide)
    (wide / "chat_template.jinja").write_text("z")
    assert gguf_tokenizer.NO_BYTES in lorashear.export(wide, "gguf", tmp_path / "no-bytes.gguf")
    assert keys(tmp_path / "no-bytes.gguf")["tokenizer.chat_template"] == "z"


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model_of_pieces(kind: int = 2, normaliser: bytes = field(3, 1) + field(4, 0)) -> bytes:
    """A protobuf message as SentencePiece writes it."""
    pieces = [
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        *((f"<0x{byte:02X}>", 6) for byte in range(256)),
        ("a", 1),
        ("ab", 1),
    ]
    made = b""
    for at, (text, type) in enumerate(pieces):
        score = varint(2 << 3 | 5) + struct.pack("<f", -at / 2)
        made += field(1, field(1, text.encode()) + score + (field(3, type) if type > 1 else b""))
    return made + field(2, field(3, kind)) + field(3, normaliser)


def test_a_tokenizer_of_sentencepiece_alone(wide: Path, tmp_path: Path) -> None:
    (wide / "tokenizer.model").write_bytes(model_of_pieces())
    (wide / "added_tokens.json").write_text(json.dumps({"<tool>": 261}))
    (wide / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}))
    lorashear.export(wide, "gguf", tmp_path / "out.gguf")
    found = keys(tmp_path / "out.gguf")
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.tokens"][259:262] == ["a", "ab", "<tool>"]
    assert found["tokenizer.ggml.scores"][259:262] == [-129.5, -130.0, 0.0]
    assert found["tokenizer.ggml.token_type"][:262] == [2, 3, 3, *[6] * 256, 1, 1, 4]
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.add_bos_token"]) == (2, True)


def test_the_scores_of_sentencepiece_are_taken_where_it_has_the_same_tokens(wide: Path, tmp_path: Path) -> None:
    (wide / "tokenizer.model").write_bytes(model_of_pieces())
    made = sentencepiece()
    described = json.loads(made.to_str())
    described["model"] |= {
        "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": b + 3 for b in range(256)} | {"a": 259, "ab": 260}
    }
    described["model"]["merges"] = []
    described["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    described["post_processor"] = None
    (wide / "tokenizer.json").write_text(json.dumps(described))
    lorashear.export(wide, "gguf", tmp_path / "out.gguf")
    found = keys(tmp_path / "out.gguf")
    assert found["tokenizer.ggml.scores"][259:261] == [-129.5, -130.0] and not found["tokenizer.ggml.add_space_prefix"]


def test_llama_2_is_read_as_sentencepiece_has_it(shared_data: Path) -> None:
    folder = shared_data / "tokenizers" / "llama-32k"
    found = gguf_tokenizer.read(folder, {"bos_token_id": 1, "eos_token_id": 2}, 32000)
    assert found is not None and (found.model, found.notes) == ("llama", [])
    assert (
        found.tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
        and found.tokens[278] == "▁the"
        and len(found.tokens) == 32000
    )
    assert found.types[:4] == [2, 3, 3, 6] and found.scores[260:263] == [-1.0, -2.0, -3.0]
    assert found.adds == {"bos_token": True, "eos_token": False, "space_prefix": True}


def changed(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder, **values)


def tokenized(
    make: Callable[[], Tokenizer], change: Callable[[dict[str, Any]], object] = lambda _: None, **settings: Any
) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        described = json.loads(make().to_str())
        change(described)
        (folder / "tokenizer.json").write_text(json.dumps(described))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>", **settings}))

    return do


def pieces(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "tokenizer.model").write_bytes(content)  # type: ignore[return-value]


def words() -> Tokenizer:
    return Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))


def strange() -> Tokenizer:
    return byte_level(split(r"\w+|\W+"))


def rope(**values: Any) -> Callable[[Path], None]:
    return changed(rope_parameters={"rope_theta": 1e4, **values})


REFUSED: dict[str, Callable[[Path], None]] = {
    "its model type is gemma, and no LLaMA": changed(model_type="gemma"),
    "its rotary embeddings are of type dynamic; llama.cpp has default, linear, llama3, yarn": rope(rope_type="dynamic", factor=2.0),
    "its rotary embeddings have a beta_fast of 16, and llama.cpp 32": rope(rope_type="yarn", factor=2.0, beta_fast=16),
    "its rotary embeddings of type yarn have mscale, which llama.cpp has no key for": rope(rope_type="yarn", factor=2.0, mscale=1.0),
    "its rotary embeddings turn a part of each head": rope(partial_rotary_factor=0.5),
    "its tokenizer is WordLevel, and llama.cpp follows BPE": tokenized(words),
    "cuts words by Split, ByteLevel in a way that llama.cpp has no name for": tokenized(strange),
    "cuts words by ByteLevel in a way": tokenized(byte_level, lambda d: d["pre_tokenizer"].update(add_prefix_space=True)),
    "its tokenizer lacks 1 of 256 bytes": tokenized(
        lambda: byte_level(leave_out="Z"), lambda d: d["model"].update(unk_token="</s>")
    ),
    "changes text before it splits it (Lowercase)": tokenized(byte_level, lambda d: d.update(normalizer={"type": "Lowercase"})),
    "its tokenizer has no eos token": lambda f: (tokenized(byte_level, eos_token=None)(f), edited(f, eos_token_id=None)),  # type: ignore
    "its tokenizer has dropout": tokenized(byte_level, lambda d: d["model"].update(dropout=0.1)),
    "its token <s> has lstrip": tokenized(byte_level, lambda d: d["added_tokens"][0].update(lstrip=True)),
    "its tokenizer has ignore_merges": tokenized(sentencepiece, lambda d: d["model"].update(ignore_merges=True)),
    "changes and cuts text by Whitespace in a way": tokenized(
        sentencepiece, lambda d: d.update(normalizer=None, pre_tokenizer={"type": "Whitespace"})
    ),
    "adds other tokens to a text than bos in front": tokenized(
        sentencepiece, lambda d: d["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "</s>", "type_id": 0}})
    ),
    "its tokenizer leaves numbers out": tokenized(byte_level, lambda d: d["model"]["vocab"].update(abc=300)),
    "its tokenizer.model is no model of SentencePiece": pieces(b"\x0a\xff\x01"),
    "its tokenizer.model is no BPE of text as it is": pieces(model_of_pieces(kind=1)),
    "its tokenizer is in neither tokenizer.json nor tokenizer.model": lambda f: (f / "vocab.json").write_text("{}"),  # type: ignore
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_llama_cpp_would_not_do_alike_is_refused(sentence: str, wide: Path, tmp_path: Path) -> None:
    REFUSED[sentence](wide)
    refusal = Gguf().refusal(Checkpoint.open(wide))
    assert refusal and sentence in refusal and not refusal.endswith(".") and "\n" not in refusal
    with pytest.raises(LorashearError, match=f"^'{wide}' cannot go to gguf: ") as caught:
        lorashear.export(wide, "gguf", tmp_path / "out.gguf")
    assert refusal in str(caught.value) and [each.name for each in tmp_path.iterdir()] == ["bare"]


def test_more_tokens_than_rows_and_what_is_only_said(bare: Path, tmp_path: Path) -> None:
    saved(byte_level(), bare)
    assert Gguf().refusal(Checkpoint.open(bare)) == "its tokenizer has 259 tokens for 96 rows of embeddings"
    wide_enough(bare)
    made = byte_level()
    made.normalizer = normalizers.NFC()
    saved(made, bare)
    (bare / "adapter").mkdir()
    said = lorashear.export(bare, "gguf", tmp_path / "out.gguf")
    assert (
        "composes characters (NFC), and llama.cpp takes them as they come" in said
        and f"export '{bare / 'adapter'}'" in said
    )
    made = sentencepiece()
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    saved(made, bare)
    assert "a space before text that begins with one" in lorashear.export(bare, "gguf", tmp_path / "first.gguf")
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never", split=False)
    saved(made, bare)
    assert "space" not in lorashear.export(bare, "gguf", tmp_path / "never.gguf")


def test_errors_of_writing_leave_nothing(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("old")
    with pytest.raises(LorashearError, match="^dtype is q4, which gguf does not have; there is f32, f16, bf16, q8_0$"):
        lorashear.export(wide, "gguf", out, dtype="q4", overwrite=True)
    with pytest.raises(LorashearError, match="exists; choose another one or pass --overwrite$"):
        lorashear.export(wide, "gguf", out)
    source = Checkpoint.open(wide)
    held = {name: np.array(source.read(name)) for name in source.tensors}
    held["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(held, wide / "model.safetensors")
    sentence = "^tensor 'model.layers.1.mlp.up_proj.weight' has values beyond 65504, which f16 cannot hold: pass dtype bf16 or f32$"
    with pytest.raises(LorashearError, match=sentence):
        lorashear.export(wide, "gguf", out, dtype="f16", overwrite=True)

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gguf_tensors, "packed", stop)
        lorashear.export(wide, "gguf", out, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        with pytest.raises(
            LorashearError, match=r"^the library gguf is not installed, .*: pip install 'lorashear\[gguf\]'$"
        ):
            lorashear.export(wide, "gguf", out, overwrite=True)
        assert Gguf().refusal(Checkpoint.open(wide)) is None
    assert out.read_text() == "old" and sorted(each.name for each in tmp_path.iterdir()) == ["bare", "out.gguf"]
    told: list[tuple[str, int, int]] = []
    lorashear.export(wide, "gguf", out, overwrite=True, progress=lambda *said: told.append(said))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told) and told[-1][1] == told[-1][2]
    assert out.stat().st_size - told[-1][2] < 65536


def adapter(folder: Path, **more: Any) -> Path:
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "down_proj"], **more})
    torch.manual_seed(0)
    made = get_peft_model(loaded(folder), config)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    made.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.filterwarnings("ignore")  # of peft, and of transformers for what peft calls
def test_an_adapter_is_a_file_of_its_own(bare: Path, tmp_path: Path) -> None:
    """Its A and B make what they make in PEFT, whose ranks and alphas may differ by module."""
    beside = adapter(bare, rank_pattern={"k_proj": 2}, alpha_pattern={"down_proj": 3}, use_rslora=True)
    out = tmp_path / "lora.gguf"
    assert exporter.refusals(beside) == {"gguf": None}
    assert f"fits the export of '{bare}'" in lorashear.export(beside, "gguf", out)
    found, held = keys(out), tensors(out)
    assert [found[key] for key in ("general.type", "general.architecture", "adapter.type")] == [
        "adapter",
        "deci",
        "lora",
    ]
    merged = in_file(_merged(bare))
    for called, (weight, turned) in in_file(loaded(bare)).items():
        if f"{called}.lora_a" in held:
            a, b = held[f"{called}.lora_a"], held[f"{called}.lora_b"]
            added = b @ a * found["adapter.lora.alpha"] / len(a)
            assert np.allclose(turned_back(added, 8) if turned else added, merged[called][0] - weight, atol=1e-4)
    assert len(held) == 12 and not any(np.array_equal(each, 0 * each) for each in held.values())
    lorashear.export(beside, "gguf", out, dtype="f16", overwrite=True)
    assert set(kinds(out).values()) == {"f16"}


def _merged(folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(loaded(folder), folder / "adapter").merge_and_unload()


@pytest.mark.filterwarnings("ignore")  # of peft, and of transformers for what peft calls
def test_adapters_that_llama_cpp_cannot_add(bare: Path, tmp_path: Path) -> None:
    for more, sentence in (
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": ["embed_tokens"]}, "by more than A and B, or an embedding, which llama.cpp cannot"),
    ):
        beside = adapter(bare, **more)
        with pytest.raises(LorashearError, match=f"^'{beside}' cannot go to gguf: .*{sentence}"):
            lorashear.export(beside, "gguf", tmp_path / "lora.gguf")
        shutil.rmtree(beside)
    alone = Path(shutil.move(adapter(bare), tmp_path / "alone"))
    config = json.loads((alone / "adapter_config.json").read_text())
    (alone / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(
        LorashearError, match="its base model is neither the folder that it lies in nor one that its config names"
    ):
        lorashear.export(alone, "gguf", tmp_path / "lora.gguf")
    with pytest.raises(LorashearError, match="^there is no export of an adapter to padded; there is gguf$"):
        lorashear.export(alone, "padded", tmp_path / "lora.gguf")
    (alone / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(bare)}))
    lorashear.export(alone, "gguf", tmp_path / "lora.gguf")
    with pytest.raises(LorashearError, match="^dtype is q8_0, which gguf does not have; there is f32, f16$"):
        lorashear.export(alone, "gguf", tmp_path / "lora.gguf", dtype="q8_0", overwrite=True)
