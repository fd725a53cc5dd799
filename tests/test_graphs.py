"""The dependency graph and its files: what one would draw by hand, and the whole of what ties a group together."""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path

import networkx
import pytest
import torch
from peft import LoraConfig, get_peft_model

import lorashear
from lorashear import cli, graphs, report
from lorashear_ir.groups import Groups
from lorashear_passes.groups import group
from test_theorem import groups_of, random_llama

LAYER = "model.layers.0"
PEFT_LAYER = "base_model.model.model.layers.0"
quiet_peft = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@functools.cache
def peft_groups() -> Groups:
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    return lorashear.groups(get_peft_model(random_llama("grouped-query"), config).eval())


def groups_of_case(case: str) -> Groups:
    return peft_groups() if case == "peft" else groups_of(case)


def consumer(graph: networkx.MultiDiGraph, weight: str) -> str:
    """The one operator that reads a weight."""
    (name,) = graph.successors(weight)
    return name


def axes_between(graph: networkx.MultiDiGraph, producer: str, reader: str) -> dict[str, str]:
    """The groups along whose axes a value flows, with their kinds."""
    return {edge["group"]: edge["kind"] for edge in graph.get_edge_data(producer, reader).values()}


def groups_at(graph: networkx.MultiDiGraph, name: str) -> set[str]:
    return set(graph.nodes[name]["groups"].split(", "))


def test_a_linear_stands_in_the_groups_of_its_rows_and_of_its_columns() -> None:
    graph = groups_of("grouped-query").graph()
    weight = f"{LAYER}.self_attn.q_proj.weight"
    linear = consumer(graph, weight)
    rows = {f"{LAYER}.self_attn.head": "head", f"{LAYER}.self_attn.query": "query", "model.layers.channel": "channel"}
    assert graph.nodes[linear]["op"] == "linear"
    assert graph.nodes[linear]["module"] == f"{LAYER}.self_attn.q_proj"
    assert groups_at(graph, linear) == groups_at(graph, weight) == {*rows, "hidden"}
    assert axes_between(graph, weight, linear) == {**rows, "hidden": "hidden"}
    (after,) = graph.successors(linear)
    assert axes_between(graph, linear, after) == rows  # the columns are contracted


def test_nodes_and_edges_say_what_they_are() -> None:
    graph = groups_of("grouped-query").graph()
    weight = f"{LAYER}.mlp.down_proj.weight"
    assert graph.nodes[weight] == {
        "role": "weight",
        "label": weight,
        "path": weight,
        "dtype": "f32",
        "shape": "32, 40",
        "type": "(hidden, ffn.0)",
        "groups": f"hidden, {LAYER}.mlp.ffn",
    }
    linear = consumer(graph, weight)
    type_ = graph.nodes[linear]["type"]
    assert type_.endswith(", hidden)")
    assert graph.nodes[linear] == {
        "role": "operator",
        "label": f"linear\n{LAYER}.mlp.down_proj",
        "op": "linear",
        "module": f"{LAYER}.mlp.down_proj",
        "type": type_,
        "groups": f"hidden, {LAYER}.mlp.ffn",
    }
    edges = {edge["axis"]: edge for edge in graph.get_edge_data(weight, linear).values()}
    ffn = {"axis": "ffn.0", "kind": "ffn", "size": 40, "group": f"{LAYER}.mlp.ffn", "prunable": True, "reason": ""}
    assert edges["ffn.0"] == ffn
    (rotary,) = (edge for _, _, edge in graph.out_edges("%b_model_rotary_emb_inv_freq", data=True))
    assert not rotary["prunable"]
    assert "not stored but recomputed from the config" in rotary["reason"]


@quiet_peft
def test_adapters_stand_in_the_groups_of_the_weight_they_adapt() -> None:
    groups = peft_groups()
    graph = groups.graph()
    base, a, b = (
        f"{PEFT_LAYER}.self_attn.q_proj.{part}.weight" for part in ("base_layer", "lora_A.default", "lora_B.default")
    )
    rank, hidden = f"{PEFT_LAYER}.self_attn.q_proj.rank", "base_model.model.hidden"
    head, query = f"{PEFT_LAYER}.self_attn.head", f"{PEFT_LAYER}.self_attn.query"
    assert groups_at(graph, a) == {rank, hidden}
    assert groups_at(graph, b) == groups_at(graph, base) - {hidden} | {rank} >= {head, query, rank}
    down, up = consumer(graph, a), consumer(graph, b)
    assert axes_between(graph, down, up) == {rank: "rank"}
    tied = {node for edge in graph.edges(data=True) if edge[2]["group"] == rank for node in edge[:2]}
    assert tied == {a, down, b, up}
    (plain,) = (each for each in groups.operators() if base in each.weights)
    assert plain.name == consumer(graph, base)
    assert plain.module == f"{PEFT_LAYER}.self_attn.q_proj.base_layer"
    assert {head, query, hidden} < set(plain.groups)


@quiet_peft
@pytest.mark.parametrize("case", ["grouped-query", "tied", "peft"])
def test_the_edges_of_a_group_tie_its_weights_together_and_no_others(case: str) -> None:
    groups = groups_of_case(case)
    graph = groups.graph()
    assert networkx.is_directed_acyclic_graph(graph)
    whole = networkx.node_connected_component(graph.to_undirected(as_view=True), next(iter(groups.tensors)))
    assert set(groups.tensors) <= whole  # what is left is dead code: an index that LLaMA computes and never uses
    for name, each in groups.items():
        edges = [(a, b, key) for a, b, key, to in graph.edges(keys=True, data="group") if to == name]
        part = graph.edge_subgraph(edges)
        assert networkx.is_weakly_connected(part)
        assert {node for node in part if graph.nodes[node]["role"] == "weight"} == {weight for weight, _ in each.slots}
        assert set(part) == {node for node in graph if name in groups_at(graph, node)}


def test_operators_are_those_that_bring_weights_and_data_together() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.rand(4))
            self.weight = torch.nn.Parameter(torch.rand(4, 3))
            self.unused = torch.nn.Parameter(torch.rand(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x * (1 + self.scale), self.weight.t())

    groups = group(lorashear.trace(Odd(), {"x": torch.zeros(2, 4)}))
    assert [(each.op, list(each.weights)) for each in groups.operators()] == [
        ("mul", ["scale"]),
        ("linear", ["weight"]),
    ]
    assert groups.graph().nodes["unused"]["type"] == "(channel.1)"


def test_a_tied_weight_flows_to_both_its_operators() -> None:
    graph = groups_of("tied").graph()
    assert "lm_head.weight" not in graph
    readers = graph.successors("model.embed_tokens.weight")
    assert sorted(graph.nodes[reader]["op"] for reader in readers) == ["embedding", "linear"]


def test_chosen_groups_keep_the_program() -> None:
    groups = groups_of("grouped-query")
    chosen = groups.only(("ffn",))
    whole, part = groups.graph(), chosen.graph()
    assert set(part.edges(keys=True)) == set(whole.edges(keys=True))
    named = {edge["group"] for *_, edge in part.edges(data=True)}
    assert named == {"", *chosen}
    assert all(edge["prunable"] == bool(edge["group"]) for *_, edge in part.edges(data=True))
    assert {name for each in chosen.operators() for name in each.groups} == set(chosen)
    with pytest.raises(ValueError, match="made without their typed graph"):
        Groups((), {}, (), {}).graph()


@quiet_peft
@pytest.mark.parametrize("case", ["grouped-query", "peft"])
def test_graphml_comes_back_as_it_was(case: str, tmp_path: Path) -> None:
    graph = groups_of_case(case).graph()
    graphs.write(graph, tmp_path / "graph.graphml")
    back = networkx.read_graphml(tmp_path / "graph.graphml", edge_key_type=str)
    assert dict(back.nodes(data=True)) == dict(graph.nodes(data=True))
    ends = [{(a, b, key): edge for a, b, key, edge in g.edges(keys=True, data=True)} for g in (graph, back)]
    assert ends[0] == ends[1]
    assert len({key for *_, key in ends[0]}) == len(ends[0])  # GraphML: an id is unique in the file


class TwoLinears(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module('up "wide"', torch.nn.Linear(4, 6))
        self.add_module("down\\", torch.nn.Linear(6, 3, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = self.children()
        return down(torch.relu(up(x)) * x.amax(-1, keepdim=True))


DOT = r"""digraph "TwoLinears" {
  node [fontsize=10];
  edge [fontsize=8];
  "up \"wide\".weight" [shape="box", label="up \"wide\".weight\n(ffn.0, ffn.1)"];
  "up \"wide\".bias" [shape="box", label="up \"wide\".bias\n(ffn.0)"];
  "down\\.weight" [shape="box", label="down\\.weight\n(channel, ffn.0)"];
  "%x" [shape="box", label="x\n(data, ffn.1)", style="dashed"];
  "%linear" [shape="ellipse", label="linear\nup \"wide\""];
  "%relu" [shape="ellipse", label="relu"];
  "%amax" [shape="ellipse", label="amax"];
  "%mul" [shape="ellipse", label="mul"];
  "%linear_1" [shape="ellipse", label="linear\ndown\\"];
  "up \"wide\".weight" -> "%linear" [label="ffn.0 6", color="#2ca02c", fontcolor="#2ca02c"];
  "up \"wide\".weight" -> "%linear" [label="ffn.1 4", color="#999999", fontcolor="#999999", tooltip="is a dim of the program's input x"];
  "up \"wide\".bias" -> "%linear" [label="ffn.0 6", color="#2ca02c", fontcolor="#2ca02c"];
  "down\\.weight" -> "%linear_1" [label="channel 3", color="#999999", fontcolor="#999999", tooltip="is a dim of the program's output"];
  "down\\.weight" -> "%linear_1" [label="ffn.0 6", color="#2ca02c", fontcolor="#2ca02c"];
  "%x" -> "%linear" [label="ffn.1 4", color="#999999", fontcolor="#999999", tooltip="is a dim of the program's input x"];
  "%x" -> "%amax" [label="ffn.1 4", color="#999999", fontcolor="#999999", tooltip="is a dim of the program's input x"];
  "%linear" -> "%relu" [label="ffn.0 6", color="#2ca02c", fontcolor="#2ca02c"];
  "%relu" -> "%mul" [label="ffn.0 6", color="#2ca02c", fontcolor="#2ca02c"];
  "%amax" -> "%mul" [color="#999999", style="dotted"];
  "%mul" -> "%linear_1" [label="ffn.0 6", color="#2ca02c", fontcolor="#2ca02c"];
}
"""


def test_dot_is_pinned() -> None:
    text = graphs.dot(lorashear.groups(TwoLinears(), {"x": torch.zeros(2, 4)}).graph())
    assert text == DOT


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> object:
    monkeypatch.setattr(sys, "argv", ["lorashear", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.fixture(scope="module")
def groups(folder: Path) -> Groups:
    return lorashear.groups(folder)


def test_the_command_writes_the_graph_and_prints_the_groups(
    folder: Path, groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "graph.dot"
    assert run(monkeypatch, "groups", folder, "--json", "--graph", file) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(groups)
    ffn = "model.layers.1.mlp.ffn"
    assert rows[ffn]["slots"] == [list(slot) for slot in groups[ffn].slots]
    assert rows[ffn]["operators"] == [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert file.read_text(encoding="utf-8") == graphs.dot(groups.graph())
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_replaced_only_where_asked(groups: Groups, tmp_path: Path) -> None:
    file = tmp_path / "graph.dot"
    file.write_text("old")
    with pytest.raises(lorashear.LorashearError, match="graph.dot' exists; choose another one or pass --overwrite"):
        graphs.write(groups.graph(), file)
    assert file.read_text() == "old"
    graphs.write(groups.graph(), file, overwrite=True)
    assert file.read_text(encoding="utf-8").startswith("digraph")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("graph.png", "is written to *.graphml or *.dot, and"),
        ("none/graph.dot", "no output file can be made at"),
        ("folder.dot", "is a folder; choose a file"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_analysis(
    file: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.dot").mkdir()
    assert run(monkeypatch, "groups", tmp_path / "no model", "--graph", tmp_path / file) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.dot"]


def test_a_graph_that_fails_half_way_leaves_no_file(tmp_path: Path) -> None:
    graph = networkx.MultiDiGraph()
    graph.add_node("a", groups=["no text"])
    with pytest.raises(networkx.NetworkXError):
        graphs.write(graph, tmp_path / "graph.graphml")
    assert list(tmp_path.iterdir()) == []


def test_operators_are_printed_with_all_their_groups(
    folder: Path, groups: Groups, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = "model.layers.0.self_attn.o_proj"
    type_ = "(hidden, head.0 × query.0 × channel.2)"
    stands_in = ["model.hidden", *(f"model.layers.0.self_attn.{kind}" for kind in ("head", "query", "channel"))]
    (line,) = (line for line in report.operator_table(groups).splitlines() if line.startswith(module))
    assert re.split("  +", line) == [module, "linear", f"weight {type_}", ", ".join(stands_in)]
    assert run(monkeypatch, "groups", folder, "--operators", "--json") == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["module"] == module)
    assert row.pop("name").startswith("%linear")
    assert row == {"op": "linear", "module": module, "weights": {f"{module}.weight": type_}, "groups": stands_in}
