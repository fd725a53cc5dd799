"""What a step of training costs: LoRA on the dense model, LHSPG on it, and recovery of a half-sized one beside the dense one.

    python tools/bench_training.py [--shape 100m|1b|7b] [--device cuda] [--dtype bfloat16] [--length 256] [--rounds 6]

LLaMA shapes with random weights, every linear map adapted at rank 16; LHSPG takes half of the MLP channels and of the KV heads
away, and recovery trains what is left of them. The three take turns, in one run, two steps each time; of the second one the
median is printed, and the median of its ratio to LoRA's. Then each runs alone in a process of its own, for its peak of memory:
beyond that of the imports on a CPU, of tensors on a GPU.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorashear import models
from lorashear.config import BATCH
from lorashear.learning import attaching, training
from lorashear.learning.mixture import Mixture
from lorashear.learning.teaching import Online
from lorashear_passes.lhspg import Lhspg, Schedule
from lorashear_passes.surgery import Settings, units

FORMS = ("LoRA", "LHSPG", "recovery")
SHAPES: dict[str, dict[str, Any]] = {
    "100m": {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 15}
    | {"num_attention_heads": 12, "num_key_value_heads": 6},
    "1b": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22}
    | {"num_attention_heads": 32, "num_key_value_heads": 4},
    "7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the weights; adapters are float32")
    parser.add_argument("--windows", type=int, default=BATCH, help="windows a step")
    parser.add_argument("--micro-batch", type=int, help="windows at once")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--alone", choices=FORMS, help="only this one, for its memory")
    args = parser.parse_args()
    if args.alone:
        before = peak(args.device)
        step = FORM[args.alone](args)
        for _ in range(2):
            step()
        print(peak(args.device) - before)
        return
    command = [
        sys.executable,
        *sys.argv,
        "--alone",
    ]  # first, since a process begins with the peak of the one that starts it
    held = [int(subprocess.run([*command, name], capture_output=True, text=True, check=True).stdout) for name in FORMS]
    steps = {name: FORM[name](args) for name in FORMS}
    print(
        f"{args.shape} LLaMA shape, {args.windows} × {args.length} tokens a step, {args.dtype}, {_machine(args.device)}, "
        f"torch {torch.__version__}"
    )
    speeds: dict[str, list[float]] = {name: [] for name in FORMS}
    for number in range(args.rounds + 1):
        for name, step in steps.items():
            speed = step()
            if number:  # the first round is slow whatever it does
                speeds[name].append(speed)
    print("form      tokens/s  of LoRA's time    memory  of LoRA's")
    for name, most in zip(FORMS, held, strict=True):
        ratio = statistics.median(one / other for one, other in zip(speeds["LoRA"], speeds[name], strict=True))
        speed = statistics.median(speeds[name])
        print(f"{name:8}  {speed:8,.0f}  {ratio:14.3f}  {most / 1e9:5.2f} GB  {most / held[0]:9.3f}")


def model(args: argparse.Namespace, kept: float = 1.0) -> Any:
    """The shape with random weights; of heads and MLP channels a share is kept."""
    shape = dict(SHAPES[args.shape])
    head = shape["hidden_size"] // shape["num_attention_heads"]
    for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
        shape[name] = round(shape[name] * kept)
    torch.manual_seed(0)
    config: Any = LlamaConfig(**shape, head_dim=head, tie_word_embeddings=args.shape == "100m")
    with torch.device(args.device):
        return LlamaForCausalLM._from_config(config, dtype=getattr(torch, args.dtype))


def stepping(args: argparse.Namespace, carrying: Any, **more: Any) -> Callable[[], float]:
    """Trains two steps, and gives the tokens a second of the second one."""
    if args.gradient_checkpointing:
        attaching.checkpoint_activations(carrying)
    windows = torch.randint(0, SHAPES[args.shape]["vocab_size"], (args.windows, args.length))
    distill = 0.8 if "teacher" in more else 0.0
    hyper = training.Hyperparameters(2, 1e-5, batch=args.windows, distill=distill, micro_batch=args.micro_batch)

    def step() -> float:
        found: list[float] = []
        training.train(carrying, Mixture.of(windows, hyper), stepped=lambda each: found.append(each.speed), **more)
        return found[-1]

    return step


def lora(args: argparse.Namespace) -> Callable[[], float]:
    return stepping(args, attaching.attach(model(args), rank=16))


def fading(args: argparse.Namespace) -> Callable[[], float]:
    carrying = attaching.attach(model(args), rank=16)
    chosen = dict(models.analysed(carrying).only(("head", "ffn")).items())
    widths = {name: units(group) // 2 for name, group in chosen.items()}
    ids = torch.randint(0, SHAPES[args.shape]["vocab_size"], (1, args.length), device=args.device)
    settings = Settings(criterion="wanda", compensate=True)
    lhspg = Lhspg(
        carrying, chosen, widths, [{"input_ids": ids, "use_cache": False}], Schedule(0, 1, 1_000_000), settings
    )
    lhspg(0)  # once a period, and no part of a step

    class Going:
        """Steps within the period, on and on."""

        at = 0

        def start(self, step: int, state: Any) -> None: ...

        def __call__(self, step: int) -> None:
            self.at += 1
            lhspg(self.at)

        def state(self) -> dict[str, torch.Tensor]:
            return {}

    return stepping(args, carrying, companion=Going())


def recovery(args: argparse.Namespace) -> Callable[[], float]:
    return stepping(args, attaching.attach(model(args, 0.5), rank=16), teacher=Online(model(args)))


FORM = {"LoRA": lora, "LHSPG": fading, "recovery": recovery}


def peak(device: str) -> int:
    """The most memory so far, in bytes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU with {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
