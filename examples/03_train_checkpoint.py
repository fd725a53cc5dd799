"""Train the checkpoint that ships with the repository, from nothing, in about 80 CPU minutes.

    python examples/03_train_checkpoint.py --out FOLDER

A grouped-query LLaMA of 2.8 million parameters and its byte-level BPE tokenizer, trained on the source text of the
standard library of the Python that runs this. Ctrl-C saves; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import math
import platform
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import stdlib_text

VOCABULARY, CONTEXT, BATCH, BOUNDARY = 2048, 256, 8, "<|module|>"


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; one special token opens every document and, when generated, ends it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOUNDARY], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOUNDARY} $A", special_tokens=[(BOUNDARY, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOUNDARY, eos_token=BOUNDARY, model_max_length=CONTEXT
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Every document with its boundary token, joined: one long row of token ids."""
    return torch.tensor([i for ids in tokenizer(texts, verbose=False)["input_ids"] for i in ids])


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


@torch.inference_mode()
def evaluate(model: LlamaForCausalLM, tokens: torch.Tensor, windows: int | None = None) -> float:
    """Mean loss in nats over non-overlapping windows of the context length, every token but the first of each."""
    rows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:windows]
    losses = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in rows.split(16)]
    return sum(losses) / len(rows)


def learning_rate(step: int, steps: int, peak: float) -> float:
    warm_up = steps // 50
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


class State:
    """Weights, optimizer moments and counters in one safetensors file, so that training can stop and go on."""

    def __init__(self, folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> None:
        self.path, self.model, self.optimizer = folder / "state.safetensors", model, optimizer
        self.step, self.cpu_seconds, self.valid_loss_at_nine_tenths = 0, 0.0, math.nan

    def save(self) -> None:
        tensors = {f"weight.{name}": value for name, value in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        counters = {k: repr(getattr(self, k)) for k in ("step", "cpu_seconds", "valid_loss_at_nine_tenths")}
        temporary = self.path.with_suffix(".tmp")
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, metadata=counters)
        temporary.replace(self.path)

    def load(self) -> None:
        if not self.path.is_file():
            return
        from safetensors import safe_open

        tensors = load_file(self.path)
        with safe_open(self.path, "pt") as file:
            counters = file.metadata()
        self.step, self.cpu_seconds = int(counters["step"]), float(counters["cpu_seconds"])
        self.valid_loss_at_nine_tenths = float(counters["valid_loss_at_nine_tenths"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors.pop(f"weight.{name}"))
        for key, value in tensors.items():
            kind, name = key.split(".", 1)
            self.optimizer.state[self.model.get_parameter(name)][kind] = value


def train(model: LlamaForCausalLM, data: dict[str, torch.Tensor], folder: Path, steps: int, peak: float) -> State:
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    state = State(folder, model, optimizer)
    state.load()
    before, started = state.cpu_seconds, time.process_time()
    try:
        for step in tqdm(range(state.step, steps), initial=state.step, total=steps, mininterval=10, unit="step"):
            if step == steps * 9 // 10:
                state.valid_loss_at_nine_tenths = evaluate(model, data["valid"])
            # The batch depends on the step alone, so a resumed run reads what an unbroken one would have read.
            rows = torch.randint(len(data["train"]) - CONTEXT, (BATCH,), generator=torch.Generator().manual_seed(step))
            batch = torch.stack([data["train"][row : row + CONTEXT] for row in rows.tolist()])
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            state.step = step + 1
            state.cpu_seconds = before + time.process_time() - started
            if state.step % 250 == 0:
                valid = evaluate(model, data["valid"], windows=64)
                tqdm.write(f"step {state.step}: train {loss.item():.4f}, valid (64 windows) {valid:.4f}")
                state.save()
    finally:
        if state.step:
            state.save()
    return state


CARD = """---
library_name: transformers
pipeline_tag: text-generation
language: code
tags: [python, llama, lorashear]
---
# stdlib-llama-2.8m

A grouped-query LLaMA of {parameters:,} parameters ({embedding:.1%} of them the tied embedding) that has read the source of
the Python standard library. It ships with LoRAShear so that everyone has a real, trained model to prune. It is a
test object, not a programmer.

| | |
|---|---|
| made by | `python examples/03_train_checkpoint.py` |
| text | standard library of Python {python}, tests and idlelib left out, {modules} modules, {bytes:,} bytes, split by hash of the module name |
| SHA-256 of names and texts | `{text_hash}` |
| tokens | {train:,} train, {valid:,} validation, {test:,} test (byte-level BPE, {vocabulary} pieces) |
| training | {steps} steps of {batch} windows of {context} tokens, AdamW, peak rate {peak}, cosine, seed {seed}, {minutes:.0f} CPU minutes |
| validation loss | {valid_loss:.4f} nats a token; the last tenth of the steps gained {gain:.2%} |
| test perplexity | {test_ppl:.3f} (packed windows of {context} tokens, bf16 weights computed in fp32) |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.out.exists():
        raise SystemExit(f"{options.out} exists; name a folder that does not")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    work = options.out.with_name(options.out.name + ".training")
    work.mkdir(parents=True, exist_ok=True)

    texts = stdlib_text.modules()
    by_split = {s: [t for n, t in texts.items() if stdlib_text.split_of(n) == s] for s in stdlib_text.SPLITS}
    tokenizer = build_tokenizer(by_split["train"])
    data = {split: pack(tokenizer, documents) for split, documents in by_split.items()}
    model = build_model()
    state = train(model, data, work, options.steps, options.rate)

    valid_loss = evaluate(model, data["valid"])
    result = work / "result"
    model.bfloat16().save_pretrained(result)
    tokenizer.save_pretrained(result)
    stored = LlamaForCausalLM.from_pretrained(result, dtype=torch.float32)
    test_loss = evaluate(stored, data["test"])
    parameters = sum(p.numel() for p in stored.parameters())
    card = CARD.format(
        parameters=parameters,
        embedding=stored.model.embed_tokens.weight.numel() / parameters,
        python=platform.python_version(),
        modules=len(texts),
        bytes=sum(len(t.encode()) for t in texts.values()),
        text_hash=stdlib_text.text_hash(texts),
        **{split: len(tokens) for split, tokens in data.items()},
        vocabulary=VOCABULARY,
        steps=options.steps,
        batch=BATCH,
        context=CONTEXT,
        peak=options.rate,
        seed=options.seed,
        minutes=state.cpu_seconds / 60,
        valid_loss=valid_loss,
        gain=1 - valid_loss / state.valid_loss_at_nine_tenths,
        test_ppl=math.exp(test_loss),
    )
    (result / "README.md").write_text(card)
    result.rename(options.out)
    shutil.rmtree(work)
    print(card)


if __name__ == "__main__":
    main()
