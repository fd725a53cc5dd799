"""Which values may share memory, so that an in-place operator on one changes the others."""

from __future__ import annotations

from lorashear_ir.graph import Node

VIEWS = frozenset(
    "view reshape _unsafe_view flatten unflatten transpose t permute movedim unsqueeze squeeze expand slice select "
    "split split_with_sizes chunk unbind to contiguous detach alias numpy_T swapaxes narrow".split()
)


def in_place(node: Node) -> bool:
    """Whether the operator writes into its first argument."""
    return node.op.endswith("_") and not node.op.endswith("__")


class Aliases:
    """The memory of each value, named by the value that it was made for; nodes are shown in their order."""

    def __init__(self) -> None:
        self._root: dict[str, str] = {}
        self._members: dict[str, list[str]] = {}

    def root(self, value: str) -> str:
        """The value whose memory this one may share."""
        return self._root.get(value, value)

    def written(self, node: Node) -> list[str]:
        """Take in the next node; the earlier values that it writes to, if it works in place."""
        first = next(iter(node.references()), None)
        if first is None or not (in_place(node) or node.op in VIEWS):
            return []
        root = self.root(first)
        members = self._members.setdefault(root, [root])
        touched = list(members) if in_place(node) else []
        for value in node.outputs:
            self._root[value.name] = root
            members.append(value.name)
        return touched
