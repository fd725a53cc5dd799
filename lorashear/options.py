"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def words(given: str) -> tuple[str, ...]:
    """What is between commas."""
    return tuple(word.strip() for word in given.split(",") if word.strip())


Model = Annotated[str, typer.Argument(help="folder or hub id")]
Out = Annotated[Path, typer.Option(help="result folder")]
Revision = Annotated[str | None, typer.Option(help="of a hub id: a branch, tag or commit")]
ShardSize = Annotated[str, typer.Option(help="of a weights file at most: 5GB, 500MB")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="run modelling code that comes with the model")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Text = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FILE",
        help=".txt, .jsonl or .parquet files, folders of them, or hub datasets as owner/name[:config[:split]]; give it once for "
        "each; those with a name are subsets, of which training draws by what each has lost",
    ),
]
Instruct = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE", help="instruction data to train on at last: .jsonl, .json or .parquet; give it once for each"
    ),
]
Tokens = Annotated[int | None, typer.Option(help="of the text to train on, again and again where it is short")]
Mixture = Annotated[str, typer.Option(help="dynamic: subsets that lost most are drawn most; static: all alike")]
Tuning = Annotated[float, typer.Option(help="share of the tokens, the last ones, for --instruct")]
Replay = Annotated[float, typer.Option(help="share of those that are still of the text")]
LearningRate = Annotated[float | None, typer.Option(help="the highest, of training; by default from the model's width")]
Batch = Annotated[int, typer.Option(help="windows a training step, of all processes together")]
MicroBatch = Annotated[
    int | None, typer.Option(help="of them at once in each process; by default as many as keep the logits small")
]
Rank = Annotated[int, typer.Option(help="of the LoRA adapter that is trained")]
Distill = Annotated[
    float | None,
    typer.Option(
        help="share of the loss that is the distance from the dense model; by default 0.8 where that fits into memory"
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="the dense model says this many likeliest next tokens beforehand, to a file, and is not in memory in training"
    ),
]
HowAdapter = Annotated[str, typer.Option(help="merge it into the weights, or keep it beside them")]
Context = Annotated[int | None, typer.Option(help="tokens a window of text")]
Device = Annotated[str, typer.Option(help="cpu, cuda, …")]
Dtype = Annotated[str | None, typer.Option(help="to compute in")]
Seed = Annotated[int, typer.Option(help="of everything random")]
SaveEvery = Annotated[
    str, typer.Option(help="states of training for --resume: a time as 30s, 10m, 1h, or a number of steps")
]
ReportTo = Annotated[
    str,
    typer.Option(
        help="trackers of training: tensorboard,wandb,… or all; TensorBoard's files go to runs beside the result"
    ),
]
Checkpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="train in less memory, and slower")]
Fsdp = Annotated[
    bool, typer.Option("--fsdp", help="under a launcher: each process holds a part of the weights in training")
]
Full = Annotated[bool, typer.Option("--full", help="train all weights of the pruned model, not an adapter")]
Apart = Annotated[
    bool,
    typer.Option("--apart", help="one document a window, not as many as fill it, whose boundaries attention crosses"),
]
Resume = Annotated[bool, typer.Option("--resume", help="go on where an earlier run was stopped in training")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the result folder at the end")]
