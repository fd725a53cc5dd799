"""vLLM's LLaMA and Mistral with layers of their own widths, which transformers' ``per_layer_config`` tells."""

from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralDecoderLayer, MistralForCausalLM
from vllm.model_executor.models.utils import extract_layer_index

GIVEN = {"num_key_value_groups", "intermediate_size", "hidden_size", "in_features", "out_features", "weight"}
GIVEN |= {"num_embeddings", "embedding_dim"}
"""Attributes of modules that follow from the widths; vLLM's layers have no others that could be set."""

EPS = "variance_epsilon"
"""Of a norm: fewer channels change it for all norms alike, and then config.json has it too."""


class _LlamaLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix, _config_of(vllm_config, prefix))


class _MistralLayer(MistralDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix, _config_of(vllm_config, prefix))


class LorashearLlamaForCausalLM(LlamaForCausalLM):
    """A LLaMA with widths per layer."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        _check(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=_LlamaLayer)


class LorashearMistralForCausalLM(MistralForCausalLM):
    """A Mistral with widths per layer."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        _check(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=_MistralLayer)


def _config_of(vllm_config: VllmConfig, prefix: str) -> object:
    """Of one layer: ``prefix`` is that of its weights, as model.layers.3."""
    return vllm_config.model_config.hf_config.per_layer_config[extract_layer_index(prefix)]


def _check(vllm_config: VllmConfig) -> None:
    """Raises ValueError for what vLLM's layers would compute otherwise without a word."""
    config = vllm_config.model_config.hf_config
    instead = "run it with --model-impl transformers"
    for path, values in config.module_overrides.items():
        given = {name for name, value in values.items() if name == EPS and value == config.rms_norm_eps} | GIVEN
        if odd := next((name for name in values if name not in given), None):
            raise ValueError(f"{path} has a {odd} of its own, which vLLM's layer cannot have: {instead}")
    if getattr(config, "sliding_window", None) is not None:
        raise ValueError(f"attention sees {config.sliding_window} tokens, and vLLM's layer would see all: {instead}")
