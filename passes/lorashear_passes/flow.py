"""Who makes and who uses each value of a graph: what pattern matching asks for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

from lorashear_ir.graph import Argument, Graph, Ref, Value

CASTS = frozenset("to _to_copy type_as float".split())
# What rearranges elements and computes nothing.
MOVES = CASTS | frozenset(
    "view reshape _unsafe_view flatten unflatten transpose t numpy_T swapaxes permute movedim unsqueeze squeeze expand "
    "repeat repeat_interleave slice narrow select split split_with_sizes chunk unbind cat stack".split()
)
# The movements that hand on all of one tensor, and only that.
RESHAPES = MOVES - frozenset("repeat repeat_interleave slice narrow select split split_with_sizes chunk unbind".split())
RESHAPES -= {"cat", "stack", "expand"}

Region = frozenset[int]  # positions of nodes


class Flow:
    """A graph with its uses looked up. Nodes are meant by their positions."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = graph.nodes
        self.values: dict[str, Value] = {value.name: value for value in graph.values()}
        self.parameters = {s.value.name for s in graph.sources if s.role == "parameter"}
        self.sources = {s.value.name for s in graph.sources}
        self.results = frozenset(graph.outputs)
        self.maker = {value.name: position for position, node in enumerate(graph.nodes) for value in node.outputs}
        self.users: dict[str, list[int]] = defaultdict(list)
        self.fed = {s.value.name for s in graph.sources if s.role != "input"}  # all else is positions and masks
        for position, node in enumerate(graph.nodes):
            for name in dict.fromkeys(node.references()):
                self.users[name].append(position)
                if name in self.fed:
                    self.fed.update(value.name for value in node.outputs)

    def kind(self, position: int) -> str:
        """The operator, or the kind of composed operator."""
        return self.nodes[position].op.partition(".")[0]

    def made(self, argument: Argument, *kinds: str) -> int | None:
        """Where a value is made, if by one of these kinds."""
        position = self.maker.get(argument.name) if isinstance(argument, Ref) else None
        return position if position is not None and self.kind(position) in kinds else None

    def bare(self, argument: Argument, through: Collection[str] = CASTS) -> tuple[str, Region]:
        """The value before the casts (or other movements) on it, and those casts."""
        assert isinstance(argument, Ref)
        name, passed = argument.name, set[int]()
        while (position := self.made(Ref(name), *through)) is not None:
            first = self.nodes[position].arguments[0]
            if not isinstance(first, Ref):
                break
            name = first.name
            passed.add(position)
        return name, frozenset(passed)

    def only_user(self, position: int, *kinds: str, through: Collection[str] = CASTS) -> tuple[int, Region] | None:
        """The one node that uses a node's value, after casts, if it is of one of these kinds; and the casts."""
        passed = set[int]()
        while True:
            outputs = self.nodes[position].outputs
            users = self.users[outputs[0].name]
            if len(outputs) != 1 or len(users) != 1 or outputs[0].name in self.results:
                return None
            position = users[0]
            if self.kind(position) in kinds:
                return position, frozenset(passed)
            if self.kind(position) not in through:
                return None
            passed.add(position)

    def inputs(self, region: Collection[int]) -> list[str]:
        """The values that a region reads and does not make, in the order of use."""
        made = {value.name for position in region for value in self.nodes[position].outputs}
        read = (name for position in sorted(region) for name in self.nodes[position].references())
        return [name for name in dict.fromkeys(read) if name not in made]

    def outputs(self, region: Collection[int]) -> list[str]:
        """The values that a region makes and something else reads, in the order of definition."""
        made = (value.name for position in sorted(region) for value in self.nodes[position].outputs)
        return [name for name in made if name in self.results or any(u not in region for u in self.users[name])]

    def hides(self, region: Region) -> bool:
        """Whether all but one of the region's values are used nowhere else."""
        return len(self.outputs(region)) == 1

    def behind(self, name: str, stop: Collection[str], kinds: Collection[str]) -> tuple[Region, set[str]]:
        """All nodes of these kinds behind a value, not going past ``stop``; and the values where that ended."""
        region, ends, queue = set[int](), set[str](), [name]
        while queue:
            name = queue.pop()
            position = self.maker.get(name)
            if name in stop or position is None or self.kind(position) not in kinds:
                ends.add(name)
            elif position not in region:
                region.add(position)
                queue.extend(self.nodes[position].references())
        return frozenset(region), ends

    def with_moves_before(self, region: Region) -> Region:
        """The region and every movement that only prepares what it reads. Masks stay as they are."""
        grown = set(region)
        queue = self.inputs(grown)
        while queue:
            position = self.maker.get(queue.pop())
            if position is None or position in grown or self.kind(position) not in MOVES:
                continue
            made = [value.name for value in self.nodes[position].outputs]
            if all(name in self.fed and name not in self.results for name in made) and all(
                user in grown for name in made for user in self.users[name]
            ):
                grown.add(position)
                queue.extend(self.nodes[position].references())
        return frozenset(grown)

    def with_moves_after(self, region: Region, moves: Collection[str] = RESHAPES) -> Region:
        """The region and every movement that only passes on its one result."""
        grown = set(region)
        while len(outputs := self.outputs(grown)) == 1 and outputs[0] not in self.results:
            users = self.users[outputs[0]]
            if len(users) != 1 or self.kind(users[0]) not in moves or len(set(self.nodes[users[0]].references())) != 1:
                break
            grown.add(users[0])
        return frozenset(grown)

    def is_convex(self, region: Region) -> bool:
        """Whether no path leaves the region and comes back."""
        last = max(region)
        queue = [user for name in self.outputs(region) for user in self.users[name] if user not in region]
        seen = set[int]()
        while queue:
            position = queue.pop()
            if position in region:
                return False
            if position < last and position not in seen:
                seen.add(position)
                queue.extend(user for value in self.nodes[position].outputs for user in self.users[value.name])
        return True

    def all(self, *kinds: str) -> Iterator[int]:
        """Positions of every node of these kinds."""
        return (position for position in range(len(self.nodes)) if self.kind(position) in kinds)
