"""What llama.cpp makes of an export to GGUF: the same tokens and logits as torch, its own tokenizer, adapters, quantisation.

llama-cpp-python is built from source, which takes some minutes: `make test-llama-cpp` builds it and runs this.
"""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lorashear
from lorashear.engines.gguf_tokenizer import EXPRESSIONS

try:
    import llama_cpp
    from gguf import GGUFReader
except ImportError:
    llama_cpp = None

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(llama_cpp is None, reason="no llama.cpp: `make test-llama-cpp` builds and tests it"),
]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ("stories260k", "tinystories-656k", "babyllama-105")
MODELS = ("uniform", "layers", *(f"{name}/{form}" for name in SHARED for form in ("uniform", "layers")))
BOUNDS = {"f32": 1e-4, "f16": 0.05, "bf16": 0.5, "q8_0": 1.0}
"""Largest difference of a logit; logits reach 13 to 30. In all but f32, llama.cpp rounds what it multiplies weights with as well."""
TEXTS = (
    "",
    'Once upon a time, there was a girl named Lily. She said, "hi!"\nThen',
    "def f(x):\n    return x+1  # done\n",
    "  two  spaces ",
    "a\n\nb\tc",
    "1234567 12.5%",
    "It's they'll I'M",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600\U0001f600 x",
    "\u2581odd",
)


@pytest.fixture(scope="module")
def pruned(shipped: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """Results by name, made when they are first asked for."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("pruned")

    def get(name: str) -> Path:
        if name not in made:
            model, _, form = name.rpartition("/")
            source = request.getfixturevalue("shared_data") / "models" / model if model else shipped
            made[name] = root / name.replace("/", "-")
            lorashear.compile(source, 0.3, made[name], one_shot=True, per_layer=form == "layers", windows=8)
        return made[name]

    return get


@contextmanager
def opened(path: Path, **more: Any) -> Iterator[Any]:
    """A file in llama.cpp, which remembers keys and values in float32."""
    assert llama_cpp is not None
    model = llama_cpp.Llama(
        str(path), n_ctx=256, logits_all=True, type_k=0, type_v=0, n_threads=1, n_threads_batch=1, verbose=False, **more
    )
    try:
        yield model
    finally:
        model.close()


def logits(model: Any, ids: list[int]) -> np.ndarray:
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    model.reset()
    model.eval(prompt)
    told = list(prompt)
    for _ in range(count):
        told.append(int(np.argmax(model.scores[len(told) - 1])))
        model.eval(told[-1:])
    return told


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()


def wanted(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def told(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, min_new_tokens=count,
        eos_token_id=None, pad_token_id=0,
    )[0].tolist()  # fmt: skip


def some(model: Any, count: int) -> list[int]:
    return torch.randint(3, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_torch_does(name: str, pruned: Any, tmp_path: Path) -> None:
    folder, out = pruned(name), tmp_path / "out.gguf"
    model = loaded(folder)
    ids = some(model, 200)
    want = wanted(model, ids)
    for dtype, bound in BOUNDS.items():
        lorashear.export(folder, "gguf", out, dtype=dtype, overwrite=True)
        with opened(out) as found:
            difference = float(np.abs(logits(found, ids) - want).max())
            print(f"{name} {dtype}: largest difference of a logit {difference:.2e} of {np.abs(want).max():.1f}")
            assert difference < bound
            if dtype == "f32":
                for prompt in (ids[:1], ids[10:18], ids[40:64]):
                    assert greedy(found, prompt, 64) == told(model, prompt, 64)


@pytest.mark.parametrize("name", ["shipped", *SHARED])
def test_it_splits_text_as_the_tokenizer_does(
    name: str, shipped: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder, out, texts = shipped, tmp_path / "out.gguf", list(TEXTS)
    if name != "shipped":
        data = request.getfixturevalue("shared_data")
        folder = data / "models" / name
        for file in ("text/tinystories/test.jsonl", "text/c4/valid.jsonl"):
            lines = (data / file).read_text(encoding="utf-8").splitlines()[:200]
            texts += [json.loads(line)["text"][:3000] for line in lines]
    said = lorashear.export(folder, "gguf", out)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if "no tokens for bytes" in said:
        known = set("".join(tokenizer.get_vocab())) | {" "}
        texts = [text for text in texts if set(text) <= known]
        assert len(texts) > 100
    with opened(out, vocab_only=True) as model:
        for text in texts:
            assert model.tokenize(text.encode(), add_bos=True, special=True) == tokenizer.encode(text).ids, text


def blank(folder: Path, rows: int) -> Path:
    """A model of no worth with so many rows of embeddings, for a tokenizer."""
    config = LlamaConfig(
        vocab_size=rows, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, eos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", *EXPRESSIONS.values()])
def test_it_cuts_words_as_byte_level_tokenizers_do(pre: str, tmp_path: Path) -> None:
    """Trained on this repository's own text, and held against the tests', in which there is more than English."""
    sources = [
        file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("*.md")) + sorted((ROOT / "tests").glob("*.py"))
    ]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    expression, ignore_merges = next((key for key, name in EXPRESSIONS.items() if name == pre), ("", False))
    made = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(expression), "isolated")
    level.use_regex = not expression
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, level]) if expression else level
    if pre == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:-20]  # letters of bytes that it lacks are left out by both
    made.train_from_iterator(sources, BpeTrainer(vocab_size=2000, special_tokens=["<s>"], initial_alphabet=alphabet))
    folder = blank(tmp_path / "model", 2000)
    made.save(str(folder / "tokenizer.json"))
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["ignore_merges"] = ignore_merges
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>", "bos_token": "<s>"}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lorashear.export(folder, "gguf", tmp_path / "out.gguf")
    assert GGUFReader(tmp_path / "out.gguf").fields["tokenizer.ggml.pre"].contents() == pre
    with opened(tmp_path / "out.gguf", vocab_only=True) as model:
        for text in (*TEXTS, *sources):
            assert model.tokenize(text.encode(), add_bos=True, special=True) == tokenizer.encode(text).ids, text


def test_it_splits_text_as_sentencepiece_does(shared_data: Path, tmp_path: Path) -> None:
    judge = pytest.importorskip("sentencepiece").SentencePieceProcessor()
    judge.Load(str(shared_data / "tokenizers" / "llama-32k" / "tokenizer.model"))
    folder = blank(tmp_path / "model", 32000)
    shutil.copy(shared_data / "tokenizers" / "llama-32k" / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    lorashear.export(folder, "gguf", tmp_path / "out.gguf")
    lines = (shared_data / "text/c4/valid.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    with opened(tmp_path / "out.gguf", vocab_only=True) as model:
        for text in (*TEXTS, *(json.loads(line)["text"] for line in lines)):
            assert model.tokenize(text.encode(), add_bos=True) == [1, *judge.Encode(text)], text


@pytest.mark.parametrize("form", ["uniform", "layers"])
def test_an_adapter_is_what_it_is_in_peft(form: str, pruned: Any, tmp_path: Path) -> None:
    """Ranks and alphas differ by module."""
    folder = tmp_path / "model"
    shutil.copytree(pruned(form), folder)
    base = loaded(folder)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    patterns = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"down_proj": 3}}
    adapted = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, **patterns)
    )
    adapted.save_pretrained(folder / "adapter")
    lorashear.export(folder, "gguf", tmp_path / "model.gguf", dtype="f32")
    lorashear.export(folder / "adapter", "gguf", tmp_path / "lora.gguf")
    model = PeftModel.from_pretrained(loaded(folder), folder / "adapter").eval()
    ids = some(model, 100)
    want, plain = wanted(model, ids), wanted(loaded(folder), ids)
    with opened(tmp_path / "model.gguf", lora_path=str(tmp_path / "lora.gguf")) as found:
        difference = float(np.abs(logits(found, ids) - want).max())
        print(
            f"{form} with adapter: {difference:.2e} of {np.abs(want).max():.1f}; without it, {np.abs(plain - want).max():.1f}"
        )
        assert difference < BOUNDS["f32"] < 1 < np.abs(plain - want).max()
        assert greedy(found, ids[:5], 64) == told(model, ids[:5], 64)


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("form", ["uniform", "layers"])
@pytest.mark.parametrize("rope", ROPES)
def test_rotary_embeddings_are_scaled_alike(rope: str, form: str, tmp_path: Path) -> None:
    """Heads do not divide the hidden size, and the output has weights of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, max_position_embeddings=256, rope_parameters={"rope_theta": 10000.0, **ROPES[rope]},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.02, 0.3)
    model.save_pretrained(tmp_path / "model")
    removed = {f"model.layers.{at}.self_attn.head": [0] if form == "uniform" or at else [] for at in range(3)}
    lorashear.apply(lorashear.plan(tmp_path / "model", removed), tmp_path / "model", tmp_path / "small")
    lorashear.export(tmp_path / "small", "gguf", tmp_path / "out.gguf")
    small = loaded(tmp_path / "small")
    ids = some(small, 250)
    want = wanted(small, ids)
    with opened(tmp_path / "out.gguf") as found:
        difference = float(np.abs(logits(found, ids) - want).max())
        print(f"{rope} {form}: {difference:.2e} of {np.abs(want).max():.1f}")
        assert difference < BOUNDS["f32"]


def test_k_quants_of_either_architecture_load(pruned: Any, tmp_path: Path) -> None:
    assert llama_cpp is not None
    for form in ("uniform", "layers"):
        lorashear.export(pruned(form), "gguf", tmp_path / "f16.gguf", dtype="f16", overwrite=True)
        asked = llama_cpp.llama_model_quantize_default_params()
        asked.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        whole, small = (str(tmp_path / name).encode() for name in ("f16.gguf", "q4.gguf"))
        assert llama_cpp.llama_model_quantize(whole, small, ctypes.byref(asked)) == 0
        assert (tmp_path / "q4.gguf").stat().st_size < (tmp_path / "f16.gguf").stat().st_size
        model = loaded(pruned(form))
        ids = some(model, 100)
        with opened(tmp_path / "q4.gguf") as found:
            assert np.corrcoef(logits(found, ids).ravel(), wanted(model, ids).ravel())[0, 1] > 0.9
