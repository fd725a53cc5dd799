"""After ``import lorashear`` the usual calls of transformers load what LoRAShear wrote, without the code in its folder.

Importing this file imports no transformers: the classes are registered once somebody else has.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

WAITED_FOR = "transformers.models.auto.configuration_auto"
PREFIX = "lorashear_"


def register() -> None:
    """Now, or as soon as transformers is imported."""
    if WAITED_FOR in sys.modules:
        _register(sys.modules[WAITED_FOR])
    else:
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder, Loader):
    """Hands the import on to where it belongs, and registers when it is done."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != WAITED_FOR:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register(module)


def _register(auto: Any) -> None:
    """A stand-in for every model type: the class itself is made when a config of it is read."""
    mapping = auto.CONFIG_MAPPING
    for model_type in list(auto.CONFIG_MAPPING_NAMES):
        mapping.register(PREFIX + model_type, _Config, exist_ok=True)


class _Config:
    """What transformers asks for the config of a model type."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return classes(config_dict["model_type"])[0].from_dict(config_dict, **kwargs)


def classes(model_type: str) -> tuple[Any, Any, Any]:
    """The classes of a result's config, base model and language model, registered; for ``gemma2`` or ``lorashear_gemma2``.

    Raises:
        KeyError: transformers has no language model of that type.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    plain = AutoConfig.for_model(model_type.removeprefix(PREFIX)).__class__
    modeling: Any = importlib.import_module("lorashear.modeling_lorashear")
    auto = (AutoModel, AutoModelForCausalLM)
    config: Any = getattr(modeling, modeling.PREFIX + plain.__name__)
    models: list[Any] = []
    for each in auto:
        base: Any = each._model_mapping[plain]  # pyright: ignore[reportAttributeAccessIssue]
        other = f"_{plain.__name__}" if base.config_class is not plain else ""
        models.append(getattr(modeling, f"{modeling.PREFIX}{base.__name__}{other}"))
    AutoConfig.register(config.model_type, config, exist_ok=True)
    for each, made in zip(auto, models, strict=True):
        each.register(config, made, exist_ok=True)
    return config, models[0], models[1]
