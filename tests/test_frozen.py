"""Never silently wrong: what the analysis does not understand is frozen, and the reason names operator and module."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import lorashear
from lorashear import report
from lorashear.models import analysed
from lorashear_ir.groups import Groups
from tools.cases import tiny

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


@torch.library.custom_op("lorashear_tests::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)


@twist.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Block(nn.Module):
    """``down(middle(up(x)))``; eight channels between."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.weights = nn.Parameter(torch.rand(8))
        self.table = nn.Parameter(torch.rand(8, 6))
        self.register_buffer("passing", torch.rand(8), persistent=False)
        self.register_buffer("kept", torch.rand(8))
        self.constant = torch.rand(8)

    def middle(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.middle(self.up(x), x))


class Custom(Block):
    def middle(self, h, x):
        return twist(h)


class Passing(Block):
    def middle(self, h, x):
        return h * self.passing


class Constant(Block):
    def middle(self, h, x):
        return h * self.constant


class Literal(Block):
    def middle(self, h, x):
        return h + torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])


class Counted(Block):
    def middle(self, h, x):
        return h * torch.arange(8)


class Rows(Block):
    def middle(self, h, x):
        return h * self.table[(x[:, 0] > 0).long()].sum(-1, keepdim=True)


class Gathered(Block):
    def middle(self, h, x):
        return h + h.gather(1, (x[:, :1] > 0).long())


class Ordered(Block):
    def middle(self, h, x):
        return h.sort(-1)[0]


class Flipped(Block):
    def middle(self, h, x):
        return h + h.flip(-1)


class Softmax(Block):
    def middle(self, h, x):
        return h.softmax(-1)


class Written(Block):
    """A view is written to: the channels that it shows are tied to what was written."""

    def middle(self, h, x):
        h[:, :6].copy_(x)
        return h


class Selected(Block):
    def middle(self, h, x):
        return h * h[:, 3:4] + h.select(1, 2)[:, None]


class Unsolved(Block):
    """The same channels as 2 × 4 and as 3 + 5."""

    def middle(self, h, x):
        a, b = h[:, :3], h[:, 3:]
        return torch.cat([b, a], 1) + (h.view(-1, 2, 4) * self.kept.view(2, 4)[:1]).reshape(-1, 8)


class Crossed(Block):
    """Two ways to cut the same channels that do not fit each other."""

    def middle(self, h, x):
        a = torch.cat([h.view(-1, 4, 2).flatten(1)[:, :3], h[:, 3:]], 1)
        return a + h.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8)


class Net(nn.Module):
    def __init__(self, block: type[Block]) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(5, 6), block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.first(x))


def groups_of(block: type[Block]) -> Groups:
    return lorashear.groups(Net(block), torch.randn(3, 5))


def reasons(groups: Groups, parameter: str, dim: int) -> set[str]:
    """Why the groups of a parameter's dim are frozen; the empty string for one that is not."""
    return {each.reason for each in groups.values() if (parameter, dim) in each.slots}


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Custom, "twist in block has no rule"),
        (Passing, "is a dim of block.passing, which is not stored but recomputed .* and read by mul in block"),
        (Constant, "is a dim of the constant block.constant, which mul in block reads"),
        (Literal, "is a dim of the constant block.lifted_tensor_0, which add in block reads"),
        (Counted, "mul in block counts with indices into it"),
        (Gathered, "gather in block looks it up by an index computed from data"),
        (Ordered, "sort in block orders it"),
        (Flipped, "flip in block treats its indices by their order"),
        (Softmax, "softmax in block"),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_the_channels_are_frozen_and_the_reason_names_operator_and_module(block: type[Block], reason: str) -> None:
    groups = groups_of(block)
    found = reasons(groups, "block.up.weight", 0)
    assert all(re.match(reason, each) for each in found), found
    assert reasons(groups, "block.down.weight", 1) == found  # the other side of the operator
    for name, each in groups.items():
        if ("block.up.weight", 0) in each.slots:
            (line,) = (line for line in report.table(groups).splitlines() if line.split()[0] == name)
            assert line.endswith(each.reason)
            with pytest.raises(lorashear.LorashearError, match=f"^{re.escape(name)} cannot be pruned: .*in block"):
                lorashear.prune(Net(block), {name: [0]}, torch.randn(3, 5))


def test_rows_that_data_choose_are_frozen() -> None:
    (reason,) = reasons(groups_of(Rows), "block.table", 0)
    assert reason == "index in block looks it up by an index computed from data"


def test_a_write_through_a_view_ties_what_was_written() -> None:
    groups = groups_of(Written)
    first = [each for each in groups.values() if ("block.up.weight", 0) in each.slots]
    assert {each.size for each in first} == {6, 2}  # the written channels, and the two others
    (written,) = (each for each in first if each.size == 6)
    assert ("first.weight", 0) in written.slots
    assert ("block.down.weight", 1) in written.slots


def test_a_selected_index_stays_alone() -> None:
    """It is in no group at all; the channels before, between and after it are in groups as ever."""
    found = [each for each in groups_of(Selected).values() if ("block.up.weight", 0) in each.slots]
    assert sorted(each.size for each in found) == [2, 4]
    assert all(each.prunable for each in found)
    owned = {row for each in found for i in range(each.size) for row in each.slices(i)[0][2]}
    assert owned == set(range(8)) - {2, 3}


@pytest.mark.parametrize(
    ("block", "equation"),
    [
        (Unsolved, r"view in block needs \(?ffn.1 \+ ffn.2\)? = data.1 × channel.4, which has no solution"),
        (Crossed, r"\w+ in block needs .* = .*an axis of .*, which has no solution"),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_an_equation_without_a_solution_names_the_axes(block: type[Block], equation: str) -> None:
    groups = groups_of(block)
    found = reasons(groups, "block.up.weight", 0)
    assert any(re.fullmatch(equation, each) for each in found), found
    assert not any("@" in each.reason for each in groups.values())  # what the solver called them


def test_what_the_forward_does_not_read_is_frozen() -> None:
    groups = groups_of(Constant)
    assert reasons(groups, "block.table", 1) == {"is a dim of block.table, which the traced forward does not read"}
    assert reasons(groups, "block.kept", 0) == {"is a dim of block.kept, which the traced forward does not read"}


def test_a_stored_buffer_is_cut_like_a_weight() -> None:
    class Kept(Block):
        def middle(self, h, x):
            return h * self.kept

    groups = groups_of(Kept)
    (name,) = (name for name, each in groups.items() if ("block.kept", 0) in each.slots)
    assert groups[name].prunable
    small = lorashear.prune(Net(Kept), {name: [1, 2]}, torch.randn(3, 5))
    assert {tuple(each.shape) for path, each in small.named_buffers() if path.endswith("kept")} == {(6,)}


@pytest.mark.parametrize(
    ("family", "fields", "module"),
    [("bloom", {}, "transformer"), ("mpt", {}, "transformer"), ("falcon", {"alibi": True}, "transformer")],
    ids=["bloom", "mpt", "falcon"],
)
def test_heads_with_slopes_are_frozen(family: str, fields: dict[str, bool], module: str) -> None:
    groups = analysed(AutoModelForCausalLM.from_config(tiny(family, **fields)))
    heads = [each for each in groups.values() if each.kind in ("head", "query") and each.size == 4]
    assert heads
    for each in heads:
        assert not each.prunable
        assert each.reason == f"arange in {module} numbers it"
    assert any(each.kind == "ffn" and each.prunable for each in groups.values())


def test_rows_of_an_embedding_are_frozen() -> None:
    groups = analysed(AutoModelForCausalLM.from_config(tiny("llama")))
    (reason,) = reasons(groups, "model.embed_tokens.weight", 0)
    assert reason == "embedding in model.embed_tokens looks it up by an index computed from data"
