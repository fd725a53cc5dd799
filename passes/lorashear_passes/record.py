"""Recording: one forward on fake tensors, each ATen call written down as a node while it runs.

The calls are those that torch.export sees (before dispatch, hence before any decomposition), without an FX graph of
proxies in between: about four forwards on the meta device, where torch.export takes twenty.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import BaseTorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import TensorWeakRef

from lorashear_ir.graph import Argument, Graph, Node, Ref, Role, Source
from lorashear_passes import aten
from lorashear_passes.calls import Calls
from lorashear_passes.numbers import Numbers
from lorashear_passes.tracing import CannotRecord, Names, finished, untouched


class SearchError(ValueError):
    """What went wrong in a module where a search was taken to find every place."""


BY_DATA = (DataDependentOutputException, DynamicOutputShapeException, SearchError)
"""Why a forward cannot be recorded unless choices are made up."""

BACKENDS = (torch.backends.mkldnn, torch.backends.nnpack, torch.backends.cudnn)


def record(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Graph:
    """The graph of ``model(**inputs)``. No weight is read or copied, and the model is left as it was.

    A forward that goes by what top-k chose (how many tokens for each expert) is recorded for choices that are made up.

    Raises:
        CannotRecord: the forward raises, or does what a recording would not show.
    """
    try:
        return _recorded(model, inputs, made_up=False)
    except CannotRecord as refused:
        if not isinstance(refused.cause, BY_DATA):
            raise
        try:
            return _recorded(model, inputs, made_up=True)
        except CannotRecord as again:
            raise max(refused, again, key=_progress) from again


def _progress(stopped: CannotRecord) -> tuple[int, int]:
    """How far a forward came: the modules it was in, since what is made up makes loops shorter, then the nodes."""
    nodes = stopped.partial.nodes if stopped.partial else ()
    return len({node.module for node in nodes}), len(nodes)


def _recorded(model: torch.nn.Module, inputs: Mapping[str, Any], *, made_up: bool) -> Graph:
    calls = Calls(model)
    recorder = None
    try:
        if any(isinstance(module, torch.fx.GraphModule) for module in model.modules()):
            raise NotImplementedError("the module paths of an fx.GraphModule are in its nodes, not in calls")
        recorder = Recorder(calls, _attributes(model), made_up=made_up)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        fakes = _Fakes(fake)
        with untouched(model):
            given = pytree.tree_map_only(torch.Tensor, fakes.of, dict(inputs))
            _swap(model, fakes)
            recorder.begin(model, given)
            limit = recorder.numbers.limit
            with torch.no_grad(), _exporting(limit), calls.watched(), fake, enable_python_dispatcher(), recorder:
                result = model(**given)
            outputs = recorder.end(result)
    except CannotRecord:
        raise
    except Exception as error:
        if recorder is None:
            raise CannotRecord(error, calls.stopped_in) from error
        partial = Graph(type(model).__name__, tuple(recorder.sources), tuple(recorder.nodes), ())
        cause = error
        if (op := recorder.numbers.searches.get(calls.stopped_in)) is not None:
            cause = SearchError(f"{error} where {op} was taken to find every place")
        raise CannotRecord(cause, calls.stopped_in, partial) from error
    return finished(model, recorder.sources, recorder.nodes, outputs)


class _Fakes:
    """Stand-ins for tensors, one for each, however often it is given."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._made: dict[int, torch.Tensor] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor without storage passes for one on the CPU, so that constants beside it keep their numbers."""
        if not tensor.is_meta or isinstance(tensor, FakeTensor):
            return self._mode.from_tensor(tensor)
        if id(tensor) not in self._made:
            self._made[id(tensor)] = FakeTensor(self._mode, tensor.detach(), torch.device("cpu"))
        return self._made[id(tensor)]


class Recorder(ProxyTorchDispatchMode):
    """Writes down each ATen call. It is a proxy mode only because torch admits no other before dispatch."""

    def __init__(self, calls: Calls, attributes: Mapping[int, str], *, made_up: bool) -> None:
        super().__init__(None, "fake", pre_dispatch=True)  # pyright: ignore[reportArgumentType]  # there is no tracer
        self.sources: list[Source] = []
        self.nodes: list[Node] = []
        self.numbers = Numbers(made_up=made_up)
        self._calls, self._attributes = calls, attributes
        self._fresh = Names().fresh
        self._constants: dict[str, torch.Tensor] = {}
        self._lifted: set[str] = set()  # constants that are no attribute of a module
        self._names: dict[int, str] = {}
        self._alive: list[torch.Tensor] = []  # an id must not come twice
        self._latest: list[tuple[int, TensorWeakRef]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps every call, to keep a compiler away that does not run here

    def begin(self, model: torch.nn.Module, inputs: Mapping[str, Any]) -> None:
        """The sources: parameters, buffers, inputs. An input has the best claim to its name."""
        leaves, _ = pytree.tree_flatten_with_path(inputs)
        given = [("_".join(map(_key, keys)).lower(), leaf) for keys, leaf in leaves if isinstance(leaf, torch.Tensor)]
        given = [(self._fresh(_identifier(path)), leaf) for path, leaf in given]
        for path, tensor in model.named_parameters():
            self._source(f"p_{path}", tensor, "parameter", path)
        passing = {
            f"{prefix}{name}" for prefix, module in _prefixed(model) for name in module._non_persistent_buffers_set
        }
        for path, tensor in model.named_buffers():
            # A persistent buffer is stored and can be sliced; another is recomputed by whoever loads the model.
            self._source(f"b_{path}", tensor, "buffer" if path in passing else "parameter", path)
        for name, leaf in given:
            self._names[id(leaf)] = name
            self.sources.append(Source(aten.value(name, leaf), "input", name))

    def end(self, result: Any) -> tuple[str, ...]:
        """The names of the outputs. Constants that something reads are numbered."""
        self._keep_latest()
        leaves = pytree.tree_leaves(result)
        for leaf in leaves:
            if not (leaf is None or isinstance(leaf, torch.Tensor | bool | int | float | str)):
                raise CannotRecord(f"the forward returns a {type(leaf).__name__}")
        outputs = tuple(dict.fromkeys(name for leaf in leaves if (name := self._refer(leaf)) is not None))
        read = {name for node in self.nodes for name in node.references()} | set(outputs)
        numbers = itertools.count()
        for i, each in enumerate(self.sources):
            if each.value.name in read & set(self._constants):
                lifted = each.value.name in self._lifted
                path = f"{each.path}_{next(numbers)}" if lifted else each.path
                self.sources[i] = replace(each, path=path, holds=aten.holds(self._constants[each.value.name]))
        return outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._keep_latest()
        op = aten.op_name(func)
        if op == "where" and len(args) == 1:
            func, op = torch.ops.aten.nonzero_numpy.default, "nonzero_numpy"
        with no_python_dispatcher():  # nobody asks what the call itself is made of
            result = self.numbers.call(func, op, args, kwargs, self._calls.path)
        if func.namespace == "prim" or op in aten.CHECKS:
            return result
        first = args[0] if args else None
        if aten.folds(op, first, result):
            if (name := self._refer(first)) is not None:
                self._bind(result, name)
            return result
        run = aten.constant_run(op, args, lambda each: self.numbers.certain(each, self._names.get(id(each))))
        if run is not None:
            op, arguments = "slice", tuple(self._argument(each) for each in run)
        else:
            arguments = aten.arguments(func, args, kwargs, self._refer)
        name = self._fresh(op.strip("_"))
        outputs = aten.made(name, result)
        if outputs:
            self.nodes.append(Node(op, arguments, outputs, self._calls.path))
            made = result if isinstance(result, list | tuple) else (result,)
            tensors = [each for each in made if isinstance(each, torch.Tensor)]
            for value, tensor in zip(outputs, tensors, strict=False):
                self._bind(tensor, value.name)
            self.numbers.follow(self.nodes[-1], args, tensors)
        return result

    def _argument(self, given: Any) -> Argument:
        name = self._refer(given)
        return given if name is None else Ref(name)

    def _bind(self, tensor: torch.Tensor, name: str) -> None:
        """The tensor is that value from now on; one changed in place is a new value."""
        self._names[id(tensor)] = name
        self._latest.append((id(tensor), TensorWeakRef(tensor)))

    def _keep_latest(self) -> None:
        """Hold a result only from the next call on: the bindings of factories copy a tensor that somebody else holds."""
        for key, latest in self._latest:
            if (tensor := latest()) is not None:
                self._alive.append(tensor)
            else:
                self._names.pop(key, None)
        self._latest.clear()

    def _source(self, base: str, tensor: torch.Tensor, role: Role, path: str) -> str:
        name = self._fresh(_identifier(base))
        self._names[id(tensor)] = name
        self._alive.append(tensor)
        self.sources.append(Source(aten.value(name, tensor), role, path))
        if role == "constant":
            self._constants[name] = tensor
        return name

    def _refer(self, given: Any) -> str | None:
        """The name of a tensor's value. A real tensor not seen before is a constant."""
        if not isinstance(given, torch.Tensor):
            return None
        name = self._names.get(id(given))
        if name is not None:
            return name
        if isinstance(given, FakeTensor) or is_functorch_wrapped_tensor(given):
            raise CannotRecord(
                "a tensor comes from where no operator shows (as .data or vmap make it)", self._calls.path
            )
        if (path := self._attributes.get(id(given))) is not None:
            return self._source(f"c_{path}", given, "constant", path)
        path = f"{self._calls.path}.lifted_tensor".lstrip(".")
        name = self._source(f"c_{path}", given, "constant", path)
        self._lifted.add(name)
        return name


def _swap(model: torch.nn.Module, fakes: _Fakes) -> None:
    """Put a fake of the same shape into the place of every parameter and buffer; a tied one has one fake."""
    for module in model.modules():
        places: list[dict[str, Any]] = [module._parameters, module._buffers]
        for place in places:
            place.update({name: fakes.of(tensor) for name, tensor in place.items() if tensor is not None})


def _attributes(model: torch.nn.Module) -> dict[int, str]:
    """Paths of the tensors that modules hold as plain attributes, by id."""
    found: dict[int, str] = {}
    for prefix, module in _prefixed(model):
        for name, held in vars(module).items():
            if isinstance(held, torch.Tensor):
                found.setdefault(id(held), f"{prefix}{name}")
    return found


def _prefixed(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module under each of its paths, with what stands before the names of its tensors."""
    return ((f"{path}." if path else "", module) for path, module in model.named_modules(remove_duplicate=False))


def _identifier(path: str) -> str:
    return re.sub(r"\W", "_", path).lower()


def _key(key: Any) -> str:
    """One step of the way to a tensor inside the inputs."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


@contextmanager
def _exporting(limit: int) -> Iterator[None]:
    """What torch.export sets: models ask is_exporting() before they look into a tensor; no backend has ops of its own."""
    flags = torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag
    limit_before = fake_tensor.CONSTANT_NUMEL_LIMIT
    fake_tensor.CONSTANT_NUMEL_LIMIT = limit
    backends = [(each, each.set_flags(False)) for each in BACKENDS]
    torch.compiler._is_compiling_flag = torch.compiler._is_exporting_flag = True
    try:
        with BaseTorchFunctionMode():  # modules with a fused kernel keep to their parts where a function mode is on
            yield
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT = limit_before
        torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag = flags
        for backend, before in backends:
            backend.set_flags(*before)
