"""Prune the checkpoint that ships here, then train a LoRA adapter on the result with nothing but peft and transformers.

    python examples/05_prune_then_adapt.py [FOLDER]        results go to FOLDER, by default ./out/adapted

A result is a model folder like any other: what comes after pruning needs no LoRAShear. Here 20 % of the parameters go by
magnitude, without text; transformers' Trainer adapts what is left on a little of the standard library's source; peft merges
the adapter into the weights. Perplexities are of modules that the training does not read. (`lorashear compile --text FILE
--tokens N` does all of this better: it chooses by text, refits what stays, and trains beside the dense model.)
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

import lorashear
from stdlib_text import modules, split_of

MODEL = Path(__file__).with_name("stdlib-llama-2.8m")
CONTEXT, HELD_OUT, STEPS, BATCH = 128, 64, 30, 8


def windows(split: str, count: int) -> list[dict[str, list[int]]]:
    """The first tokens of a split, in windows: what Trainer and the models take."""
    tokenizer, tokens = AutoTokenizer.from_pretrained(MODEL), list[int]()
    for name, text in modules().items():
        if split_of(name) == split and len(tokens) < count * CONTEXT:
            tokens += tokenizer(text, verbose=False)["input_ids"]
    cuts = [tokens[i * CONTEXT : (i + 1) * CONTEXT] for i in range(count)]
    return [{"input_ids": cut, "labels": cut} for cut in cuts]


@torch.inference_mode()
def perplexity(folder: Path, held_out: list[dict[str, list[int]]]) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([window["input_ids"] for window in held_out])
    return math.exp(sum(float(model(input_ids=rows, labels=rows).loss) for rows in tokens.split(8)) / (len(tokens) / 8))


def main() -> None:
    disable_progress_bar()
    set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # what transformers says to peft, not to us
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/adapted")
    pruned, adapted = out / "pruned", out / "merged"
    result = lorashear.compile(MODEL, 0.2, pruned, one_shot=True, overwrite=True)
    print(f"{result.report['parameters']['before']:,} → {result.report['parameters']['after']:,} parameters")

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    arguments = TrainingArguments(
        output_dir=str(out / "training"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(model, arguments, train_dataset=windows("train", STEPS * BATCH))  # pyright: ignore
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    merged = cast(PreTrainedModel, model.merge_and_unload())  # pyright: ignore
    merged.save_pretrained(adapted)
    AutoTokenizer.from_pretrained(pruned).save_pretrained(adapted)

    held_out = windows("test", HELD_OUT)
    dense, before, after = (perplexity(folder, held_out) for folder in (MODEL, pruned, adapted))
    print(f"perplexity: {dense:.2f} dense, {before:.2f} pruned, {after:.2f} pruned and adapted, in {adapted}")


if __name__ == "__main__":
    main()
