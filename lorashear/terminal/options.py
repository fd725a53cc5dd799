"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorashear.terminal import completing

PANELS = (
    REMOVE := "What to remove",
    CHOOSE := "How to choose",
    TEXT := "Text",
    TASKS := "Multiple choice",
    SPEED := "Speed",
    TRAINING := "Training",
    LHSPG := "LHSPG",
    FILES := "Device and files",
    OUTPUT := "Output",
)
"""Groups of options in a verb's help, in this order."""


def words(given: str) -> tuple[str, ...]:
    """What is between commas."""
    return tuple(word.strip() for word in given.split(",") if word.strip())


Model = Annotated[str, typer.Argument(help="folder or hub id")]
Out = Annotated[Path, typer.Option(help="result folder", rich_help_panel=OUTPUT)]
Revision = Annotated[str | None, typer.Option(help="of a hub id: a branch, tag or commit", rich_help_panel=FILES)]
ShardSize = Annotated[str, typer.Option(help="of a weights file at most: 5GB, 500MB", rich_help_panel=OUTPUT)]
Remote = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="run modelling code that comes with the model", rich_help_panel=FILES),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON", rich_help_panel=OUTPUT)]
Text = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FILE",
        help=".txt, .jsonl or .parquet files, folders of them, or hub datasets as owner/name[:config[:split]]; give it once for "
        "each; those with a name are subsets, of which training draws by what each has lost",
        rich_help_panel=TEXT,
    ),
]
Instruct = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="instruction data to train on at last: .jsonl, .json or .parquet; give it once for each",
        rich_help_panel=TEXT,
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(help="of the text to train on, again and again where it is short", rich_help_panel=TRAINING),
]
Mixture = Annotated[
    str,
    typer.Option(
        help="dynamic: subsets that lost most are drawn most; static: all alike",
        rich_help_panel=TRAINING,
        autocompletion=completing.mixtures,
    ),
]
Tuning = Annotated[
    float, typer.Option(help="share of the tokens, the last ones, for --instruct", rich_help_panel=TRAINING)
]
Replay = Annotated[float, typer.Option(help="share of those that are still of the text", rich_help_panel=TRAINING)]
LearningRate = Annotated[
    float | None,
    typer.Option(help="the highest, of training; by default from the model's width", rich_help_panel=TRAINING),
]
Batch = Annotated[
    int, typer.Option(help="windows a training step, of all processes together", rich_help_panel=TRAINING)
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        help="of them at once in each process; by default as many as keep the logits small", rich_help_panel=TRAINING
    ),
]
Rank = Annotated[int, typer.Option(help="of the LoRA adapter that is trained", rich_help_panel=TRAINING)]
Distill = Annotated[
    float | None,
    typer.Option(
        help="share of the loss that is the distance from the dense model; by default 0.8 where that fits into memory",
        rich_help_panel=TRAINING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="the dense model says this many likeliest next tokens beforehand, to a file, and is not in memory in training",
        rich_help_panel=TRAINING,
    ),
]
HowAdapter = Annotated[
    str,
    typer.Option(
        help="merge it into the weights, or keep it beside them",
        rich_help_panel=TRAINING,
        autocompletion=completing.adapters,
    ),
]
Context = Annotated[int | None, typer.Option(help="tokens a window of text", rich_help_panel=TEXT)]
Device = Annotated[str, typer.Option(help="cpu, cuda, …", rich_help_panel=FILES)]
Dtype = Annotated[str | None, typer.Option(help="to compute in", rich_help_panel=FILES)]
Seed = Annotated[int, typer.Option(help="of everything random", rich_help_panel=FILES)]
SaveEvery = Annotated[
    str,
    typer.Option(
        help="states of training for --resume: a time as 30s, 10m, 1h, or a number of steps", rich_help_panel=TRAINING
    ),
]
ReportTo = Annotated[
    str,
    typer.Option(
        help="trackers of training: tensorboard,wandb,… or all; TensorBoard's files go to runs beside the result",
        rich_help_panel=OUTPUT,
    ),
]
Checkpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="train in less memory, and slower", rich_help_panel=TRAINING)
]
Fsdp = Annotated[
    bool,
    typer.Option(
        "--fsdp",
        help="under a launcher: each process holds a part of the weights in training",
        rich_help_panel=TRAINING,
    ),
]
Full = Annotated[
    bool, typer.Option("--full", help="train all weights of the pruned model, not an adapter", rich_help_panel=TRAINING)
]
Apart = Annotated[
    bool,
    typer.Option(
        "--apart",
        help="one document a window, not as many as fill it, whose boundaries attention crosses",
        rich_help_panel=TEXT,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="go on where an earlier run was stopped in training", rich_help_panel=OUTPUT)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace the result folder at the end", rich_help_panel=OUTPUT)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="only errors on stderr, and the result on stdout", rich_help_panel=OUTPUT),
]
