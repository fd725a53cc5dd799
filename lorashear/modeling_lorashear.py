"""Language models of transformers at widths that no config says. This file stands alone: transformers is all it needs.

``LorashearGemma2ForCausalLM`` is ``Gemma2ForCausalLM``, and so for every class of transformers. It is built as the model
that it was pruned from (``pruned_from`` in config.json has the fields that were other ones there), then each module gets
the shapes and the numbers that ``module_overrides`` lists for it. The other fields of config.json say what is left;
``per_layer_config``, a convention of transformers, says where layers differ.
"""

import copy
import sys

import torch
import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

PREFIX = "Lorashear"
OWN_FIELDS = ("pruned_from", "module_overrides", "per_layer_config", "auto_map", "architectures", "model_type")


def __getattr__(name):
    """The class of that name, made when it is first asked for.

    ``LorashearLlamaForCausalLM__InternLM3Config``: a class of transformers that is used with another's config.
    """
    of, _, config = name.removeprefix(PREFIX).partition("__")
    base = getattr(transformers, of, None) if name.startswith(PREFIX) else None
    if not isinstance(base, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if issubclass(base, transformers.PreTrainedConfig):
        made = _config_class(name, base)
    else:
        made = _model_class(name, base, getattr(sys.modules[__name__], PREFIX + (config or base.config_class.__name__)))
    globals()[name] = made
    return made


def _config_class(name, base):
    def unpruned(self):
        """The config of the model that this one was pruned from."""
        values = {field: value for field, value in self.to_dict().items() if field not in OWN_FIELDS}
        made = base.from_dict({**values, **self.pruned_from})
        made.name_or_path = self.name_or_path
        made._attn_implementation = self._attn_implementation
        made._experts_implementation = self._experts_implementation
        # By this name transformers would look up once more, for the model within, what to rename and fuse.
        made.model_type = self.model_type
        return made

    body = {
        "__doc__": f"As {base.__name__}; its checks are for the model that was pruned.",
        "_auto_class": "AutoConfig",
        "model_type": f"lorashear_{base.model_type}",
        "pruned_from": {},
        "module_overrides": {},
        "unpruned": unpruned,
        "validate": lambda self: None,
    }
    return type(name, (base,), {"__module__": __name__, **body})


def _model_class(name, base, config_class):
    def __init__(self, config, *args, **kwargs):
        base.__init__(self, config.unpruned(), *args, **kwargs)
        config._attn_implementation = self.config._attn_implementation
        config._experts_implementation = self.config._experts_implementation
        self.config = config
        overrides = config.module_overrides
        if not all(path.partition(".")[0] in ("", *self._modules) for path in overrides):
            prefix = f"{self.base_model_prefix}."  # the base model alone has its modules at the top
            overrides = {path.removeprefix(prefix): v for path, v in overrides.items() if path.startswith(prefix)}
        _override(self, overrides)
        loop_over_odd_experts(self)

    body = {
        "__doc__": f"As {base.__name__}, with the shapes and numbers that its config lists.",
        "__init__": __init__,
        # transformers reads in a class's file what its code can do. This class's code is its base's: it makes anew only
        # what is not loaded, and takes other implementations where its base does.
        "is_custom_code": classmethod(lambda cls: base.is_custom_code()),
        "_can_set_attn_implementation": classmethod(lambda cls: base._can_set_attn_implementation()),
        "_can_set_experts_implementation": classmethod(lambda cls: base._can_set_experts_implementation()),
        "_auto_class": {"LM": "AutoModelForCausalLM", "el": "AutoModel"}.get(base.__name__[-2:]),
        "config_class": config_class,
    }
    # What transformers renames or fuses when it loads the base class, which it finds by name.
    for known in (base.__name__, config_class.__base__.model_type):
        if (conversions := get_checkpoint_conversion_mapping(known)) is not None:
            register_checkpoint_conversion_mapping(name, conversions, overwrite=True)
            break
    return type(name, (base,), {"__module__": __name__, **body})


def loop_over_odd_experts(model):
    """torch's grouped matrix product of experts wants rows of whole 16 bytes; those of other widths take a loop."""
    if has_odd_experts(model):
        for module in model.modules():
            config = getattr(module, "config", None)
            if config is not None and getattr(config, "_experts_implementation", None) == "grouped_mm":
                config._experts_implementation = "eager"


def has_odd_experts(model):
    """Whether the rows of some experts' weights are not whole 16 bytes in half precision, which a model may be moved to."""
    stacked = (p for m in model.modules() if not isinstance(m, torch.nn.Conv1d) for p in m._parameters.values())
    return any(p is not None and p.dim() == 3 and any(size % 8 for size in p.shape[1:]) for p in stacked)


def _override(model, overrides):
    """Sets, in each module, tensors to their first entries along every dim that has a number, and plain numbers."""
    cut = {}  # by identity: what was tied stays tied
    for path, values in overrides.items():
        module = model.get_submodule(path)
        for name, value in values.items():
            owner, held = module, getattr(module, name, None)
            if name.startswith("config."):  # its own copy: other modules may keep other numbers
                module.config = owner = copy.copy(module.config)
                name = name.removeprefix("config.")
            if isinstance(held, torch.Tensor):
                if id(held) not in cut:
                    cut[id(held)] = held, _first(held, value)
                value = cut[id(held)][1]
            setattr(owner, name, tuple(value) if isinstance(held, tuple) else value)


def _first(tensor, sizes):
    made = tensor.detach()[tuple(slice(size) for size in sizes)].clone()
    return torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made
