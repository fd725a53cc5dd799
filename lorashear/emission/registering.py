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
        return classes(config_dict["model_type"])["AutoConfig"].from_dict(config_dict, **kwargs)


def classes(model_type: str) -> dict[str, Any]:
    """The generated classes for ``gemma2`` or ``lorashear_gemma2``, registered, by the auto class that each belongs to.

    There are ``AutoConfig``, ``AutoModelForCausalLM`` and, where transformers has a model without a head, ``AutoModel``.

    Raises:
        KeyError: transformers has no language model of that type.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM

    plain: Any = CONFIG_MAPPING[model_type.removeprefix(PREFIX)]
    modeling: Any = importlib.import_module("lorashear.modeling_lorashear")
    config: Any = getattr(modeling, modeling.PREFIX + plain.__name__)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    found = {"AutoConfig": config}
    for auto in (AutoModel, AutoModelForCausalLM):
        mapping: Any = auto._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
        if auto is AutoModel and plain not in mapping:
            continue
        base = mapping[plain]
        other = f"__{plain.__name__}" if base.config_class is not plain else ""
        made = found[auto.__name__] = getattr(modeling, f"{modeling.PREFIX}{base.__name__}{other}")
        auto.register(config, made, exist_ok=True)
    return found
