"""The command line: the same words and defaults as the functions."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorashear.engines.command import export
from lorashear.engines.needs import NEEDS
from lorashear.errors import Fault, LorashearError
from lorashear.evaluation.command import eval_
from lorashear.learning import launched
from lorashear.recipes.command import Recipe, RecipeOfRecover, Repeatable, recipe, texts
from lorashear.terminal import closing, completing, stopping
from lorashear.terminal.environment import env
from lorashear.terminal.options import (
    CHOOSE,
    FILES,
    LHSPG,
    OUTPUT,
    REMOVE,
    TEXT,
    TRAINING,
    Apart,
    AsJson,
    Batch,
    Checkpointing,
    Context,
    Device,
    Distill,
    Dtype,
    Fsdp,
    Full,
    HowAdapter,
    Instruct,
    LearningRate,
    MicroBatch,
    Mixture,
    Model,
    Out,
    Overwrite,
    Quiet,
    Rank,
    Remote,
    Replay,
    ReportTo,
    Resume,
    Revision,
    SaveEvery,
    Seed,
    ShardSize,
    Text,
    Tokens,
    TopK,
    Tuning,
    words,
)
from lorashear.terminal.progress import Terminal
from lorashear.terminal.verbs import Ordered, about, group
from lorashear.viewer.command import view

if TYPE_CHECKING:
    from lorashear.disk.estimate import Estimate

app = typer.Typer(
    cls=Ordered,
    pretty_exceptions_enable=False,
    help="Make a language model smaller by removing whole structures of it, and write an ordinary model folder.",
    epilog="lorashear VERB --help has an example of each. With --debug an error comes with its traceback.",
)
TERMINATED = 143  # for SIGTERM
RESUMED = {
    **dict.fromkeys(("apply", "compile", "recover"), "; --resume goes on from here"),
    "eval": "; the same command goes on from here",
}
STOPPED = 130  # what a shell gives for Ctrl-C; typer turns the interrupt into this code, or raises Abort


def main() -> None:
    """Exit code 0 done; 2 the request or the input is wrong, one sentence on stderr; 1 everything else."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    stopping.raising()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(arguments or ["--help"], prog_name="lorashear", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except SystemExit as stopped:  # by SIGTERM
        code = stopped.code
        if isinstance(stopped.__context__, launched.Lost):  # the launcher stops those that a dead one leaves
            print(f"lorashear: {stopped.__context__}", file=sys.stderr)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if debug:
            traceback.print_exc()
        if isinstance(error, launched.Ended):
            raise SystemExit(0) from None  # how it ended is for the first process to say
        print(f"lorashear: {sentence}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, Fault) else 2) from None
    if code in (STOPPED, TERMINATED) and not launched.follower():
        on = RESUMED.get(arguments[0], "")
        print(f"lorashear: stopped; nothing was written under the final name{on}", file=sys.stderr)
    raise SystemExit(code or 0)


def _sentence(error: Exception) -> str | None:
    """What to tell the user of a request or an input that is wrong; None for a fault of ours that nobody foresaw."""
    if isinstance(error, LorashearError):
        return str(error)
    usage = getattr(error, "format_message", None)  # typer's own, whose class moved between its versions
    if usage is None:
        return None
    said = usage().rstrip(".")
    read = getattr(error.__cause__, "errors", None)  # some of its versions do not say what they were given
    given = read()[0].get("input") if read else None
    if isinstance(given, str) and given not in said:
        said += f", and was given {given!r}"
    if isinstance(given, str) and (share := re.fullmatch(r"\s*([\d.]+)\s*%\s*", given)):
        said += f": write {given} as {float(share[1]) / 100:g}"
    context = getattr(error, "ctx", None)
    return f"{said}; see {context.command_path if context else 'lorashear'} --help"


@app.command(**about("compile", Repeatable))
def compile_(
    context_: typer.Context,
    model: Model,
    out: Out,
    recipe: Recipe = None,
    ratio: Annotated[
        float | None, typer.Option(help="share to remove of all parameters, or of another cost", rich_help_panel=REMOVE)
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="instead of a ratio: parameters left at most: 5e9, 5B, 700M", rich_help_panel=REMOVE
        ),
    ] = None,
    bytes_: Annotated[
        str | None,
        typer.Option(
            "--bytes", metavar="SIZE", help="instead of a ratio: bytes left at most: 8GB, 500MB", rich_help_panel=REMOVE
        ),
    ] = None,
    text: Text = None,
    instruct: Instruct = None,
    lora: Annotated[
        Path | None, typer.Option(help="folder of a LoRA adapter that belongs to the model", rich_help_panel=FILES)
    ] = None,
    one_shot: Annotated[
        bool, typer.Option("--one-shot", help="prune without training", rich_help_panel=TRAINING)
    ] = False,
    tokens: Tokens = None,
    cost: Annotated[
        str,
        typer.Option(
            help="what the ratio is of: parameters, bytes, flops or latency, the last two a token",
            rich_help_panel=REMOVE,
            autocompletion=completing.costs,
        ),
    ] = "parameters",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="let widths differ between layers", rich_help_panel=REMOVE)
    ] = False,
    prune: Annotated[
        str, typer.Option(help="kinds: head,query,ffn,hidden", rich_help_panel=REMOVE, autocompletion=completing.kinds)
    ] = "head,query,ffn",
    round_to: Annotated[
        int, typer.Option(help="MLP and hidden widths are multiples of this", rich_help_panel=REMOVE)
    ] = 1,
    target: Annotated[
        str | None,
        typer.Option(
            help=f"an engine, for widths that suit it: {', '.join(NEEDS)}",
            rich_help_panel=REMOVE,
            autocompletion=completing.engines,
        ),
    ] = None,
    tensor_parallel: Annotated[
        int, typer.Option(help="devices that will split each layer, with --target vllm", rich_help_panel=REMOVE)
    ] = 1,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="obs, wanda, flap, taylor, lora, magnitude or random",
            rich_help_panel=CHOOSE,
            autocompletion=completing.criteria,
        ),
    ] = None,
    unprunable_ratio: Annotated[
        float | None,
        typer.Option(
            help="with --per-layer: share of groups, those worth most, kept whole; by default those before the knee, if better",
            rich_help_panel=CHOOSE,
        ),
    ] = None,
    lhspg: Annotated[
        float,
        typer.Option(
            help="share of the tokens of text in which structures fade while the dense model trains",
            rich_help_panel=LHSPG,
        ),
    ] = 0.0,
    periods: Annotated[
        int, typer.Option(help="of LHSPG: a part of the structures starts to fade in each", rich_help_panel=LHSPG)
    ] = 1,
    policy: Annotated[
        str,
        typer.Option(
            help="of LHSPG: decay, one ramp for all, or half-space, a gate each",
            rich_help_panel=LHSPG,
            autocompletion=completing.policies,
        ),
    ] = "decay",
    warm_up: Annotated[
        float, typer.Option(help="share of LHSPG's steps before anything fades", rich_help_panel=LHSPG)
    ] = 0.0,
    windows: Annotated[int, typer.Option(help="of text to calibrate on", rich_help_panel=TEXT)] = 128,
    compensate: Annotated[
        bool,
        typer.Option(
            "--compensate/--no-compensate",
            help="refit what stays by least squares where there is text",
            rich_help_panel=REMOVE,
        ),
    ] = True,
    mixture: Mixture = "dynamic",
    tuning: Tuning = 0.25,
    replay: Replay = 0.5,
    learning_rate: LearningRate = None,
    batch: Batch = 8,
    micro_batch: MicroBatch = None,
    gradient_checkpointing: Checkpointing = False,
    fsdp: Fsdp = False,
    full: Full = False,
    rank: Rank = 16,
    distill: Distill = None,
    distill_top_k: TopK = None,
    adapter: HowAdapter = "merge",
    context: Context = None,
    apart: Apart = False,
    shard_size: ShardSize = "5GB",
    device: Device = "cpu",
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: Remote = False,
    seed: Seed = 0,
    save_every: SaveEvery = "10m",
    resume: Resume = False,
    report_to: ReportTo = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what it will take, and stop", rich_help_panel=OUTPUT)
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A model folder in, a smaller ordinary one out."""
    from lorashear.amounts import byte_count
    from lorashear.compiler import compile

    with Terminal(quiet=quiet) as terminal:

        def estimated(estimate: Estimate) -> None:
            if dry_run and quiet:
                print(estimate)  # it is the result
            terminal.say(str(estimate))
            if dry_run:
                raise typer.Exit

        result = compile(
            model,
            ratio,
            out,
            text=texts(context_, text),
            instruct=list(instruct or ()),
            lora=lora,
            params=params,
            bytes=bytes_,
            one_shot=one_shot,
            tokens=tokens,
            lhspg=lhspg,
            periods=periods,
            policy=policy,
            warm_up=warm_up,
            mixture=mixture,
            tuning=tuning,
            replay=replay,
            learning_rate=learning_rate,
            batch=batch,
            micro_batch=micro_batch,
            gradient_checkpointing=gradient_checkpointing,
            fsdp=fsdp,
            full=full,
            rank=rank,
            distill=distill,
            distill_top_k=distill_top_k,
            adapter=adapter,
            cost=cost,
            per_layer=per_layer,
            prune=words(prune),
            round_to=round_to,
            target=target,
            tensor_parallel=tensor_parallel,
            criterion=criterion,
            unprunable_ratio=unprunable_ratio,
            windows=windows,
            compensate=compensate,
            context=context,
            packed=not apart,
            shard_bytes=byte_count(shard_size, "shard size"),
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            seed=seed,
            save_every=save_every,
            overwrite=overwrite,
            resume=resume,
            estimated=estimated,
            say=terminal.say,
            progress=terminal.progress,
            stepped=terminal.stepped,
            report_to=words(report_to),
        )
    closing.finish(result.report, out, as_json=as_json, quiet=quiet)


@app.command(**about("recover", Repeatable))
def recover(
    context_: typer.Context,
    folder: Annotated[Path, typer.Argument(help="a folder that LoRAShear wrote")],
    out: Out,
    recipe: RecipeOfRecover = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="to train on in all, again and again where the text is short; by default as many as there are, at most 10 million",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    text: Text = None,
    instruct: Instruct = None,
    dense: Annotated[
        str | None,
        typer.Option(
            help="folder or hub id of the model that it was pruned from; or none; by default a hub id that the report names",
            rich_help_panel=FILES,
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(help="folder of a LoRA adapter that belongs to that model", rich_help_panel=FILES)
    ] = None,
    mixture: Mixture = "dynamic",
    tuning: Tuning = 0.25,
    replay: Replay = 0.5,
    learning_rate: LearningRate = None,
    batch: Batch = 8,
    micro_batch: MicroBatch = None,
    gradient_checkpointing: Checkpointing = False,
    fsdp: Fsdp = False,
    full: Full = False,
    rank: Rank = 16,
    distill: Distill = None,
    distill_top_k: TopK = None,
    adapter: HowAdapter = "merge",
    context: Context = None,
    apart: Apart = False,
    shard_size: ShardSize = "5GB",
    device: Device = "cpu",
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: Remote = False,
    seed: Seed = 0,
    save_every: SaveEvery = "10m",
    resume: Resume = False,
    report_to: ReportTo = "",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a pruned folder: text first, by what each subset of it has lost, then instructions."""
    from lorashear.amounts import byte_count
    from lorashear.recoverer import recover

    with Terminal(quiet=quiet) as terminal:
        result = recover(
            folder,
            out,
            text=texts(context_, text),
            instruct=list(instruct or ()),
            tokens=tokens,
            dense=dense,
            lora=lora,
            mixture=mixture,
            tuning=tuning,
            replay=replay,
            learning_rate=learning_rate,
            batch=batch,
            micro_batch=micro_batch,
            gradient_checkpointing=gradient_checkpointing,
            fsdp=fsdp,
            full=full,
            rank=rank,
            distill=distill,
            distill_top_k=distill_top_k,
            adapter=adapter,
            context=context,
            packed=not apart,
            shard_bytes=byte_count(shard_size, "shard size"),
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            seed=seed,
            save_every=save_every,
            overwrite=overwrite,
            resume=resume,
            say=terminal.say,
            progress=terminal.progress,
            stepped=terminal.stepped,
            report_to=words(report_to),
        )
    closing.finish(result.report, out, as_json=as_json, quiet=quiet)


@app.command(**about("groups"))
def groups(
    model: Model,
    as_operators: Annotated[
        bool, typer.Option("--operators", help="each operator with all groups it stands in")
    ] = False,
    graph: Annotated[Path | None, typer.Option(help="dependency graph to write: FILE.graphml or FILE.dot")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the graph's file")] = False,
    knowledge: Annotated[
        Path | None, typer.Option(help="report.json, or the folder, of a compile: what each group is worth")
    ] = None,
    as_json: AsJson = False,
    revision: Revision = None,
    trust_remote_code: Remote = False,
) -> None:
    """The node groups: name, kind, structures, weights each, prunable or the reason."""
    from lorashear import graphs, report
    from lorashear import knowledge as analysis
    from lorashear.models import groups as groups_of

    if graph:
        graphs.check_target(graph, overwrite=overwrite)
    found = groups_of(model, revision=revision, trust_remote_code=trust_remote_code)
    if graph:
        graphs.write(found.graph(), graph, overwrite=overwrite)
    if knowledge:
        known = analysis.read(found, knowledge)
        print(json.dumps(known, indent=2) if as_json else analysis.table(found, known))
    elif as_json:
        print(json.dumps(report.operator_rows(found) if as_operators else report.group_rows(found), indent=2))
    else:
        print(report.operator_table(found) if as_operators else report.table(found))


@app.command(**about("trace"))
def trace(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="file to write instead of printing")] = None,
    revision: Revision = None,
    trust_remote_code: Remote = False,
) -> None:
    """The typed graph as text, which `lorashear.parse` reads back."""
    from lorashear.models import trace as trace_of

    text = str(trace_of(model, revision=revision, trust_remote_code=trust_remote_code))
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


@app.command(**about("apply"))
def apply(
    plan: Annotated[Path, typer.Argument(help="plan.json")],
    model: Model,
    out: Out,
    lora: Annotated[
        Path | None, typer.Option(help="folder of a trained LoRA adapter of the model", rich_help_panel=FILES)
    ] = None,
    adapter: Annotated[
        str,
        typer.Option(
            help="merge it into the weights, or keep it, cut to fit",
            rich_help_panel=FILES,
            autocompletion=completing.adapters,
        ),
    ] = "merge",
    shard_size: ShardSize = "5GB",
    check_contents: Annotated[
        bool,
        typer.Option(
            "--check-contents",
            help="refuse other weights too, not only other shapes; reads them once more",
            rich_help_panel=FILES,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what it will take, and stop", rich_help_panel=OUTPUT)
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on where an earlier run was stopped", rich_help_panel=OUTPUT)
    ] = False,
    revision: Revision = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The slice that a plan describes, tensor by tensor and without torch."""
    from lorashear.amounts import byte_count
    from lorashear.applying import apply as apply_plan
    from lorashear.plans import Plan

    loaded = Plan.load(plan)
    with Terminal(quiet=quiet) as terminal:
        apply_plan(
            loaded,
            model,
            out,
            revision=revision,
            overwrite=overwrite,
            resume=resume,
            dry_run=dry_run,
            check_contents=check_contents,
            lora=lora,
            adapter=adapter,
            shard_bytes=byte_count(shard_size, "shard size"),
            estimated=print if quiet and dry_run else lambda estimate: terminal.say(str(estimate)),
            progress=partial(terminal.progress, "slice"),
        )
    if dry_run:
        return
    if not quiet:
        closing.compared(model, out, revision=revision)
    print(f"written to {out}")
    if loaded.changed and not quiet:
        print(
            f"{len(loaded.changed)} tensors that compensation changed are plain slices here: a plan does not replay it"
        )


@app.command(**about("verify"))
def verify(
    model: Model,
    pruned: Annotated[Path, typer.Argument(help="a folder that LoRAShear wrote")],
    revision: Revision = None,
    quiet: Quiet = False,
) -> None:
    """Check a pruned folder against its original and its plan."""
    from lorashear.verifying import verify as verify_pair

    with Terminal(quiet=quiet):
        held = verify_pair(model, pruned, revision=revision)
    for line in held[-1:] if quiet else held:  # the last is of what they compute
        print(line)


app.command(**about("eval"))(eval_)
app.command(**about("export"))(export)
app.command(**about("view"))(view)
app.command(**about("env"))(env)
app.add_typer(recipe, **group("recipe"))
