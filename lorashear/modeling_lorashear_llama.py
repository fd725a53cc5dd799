"""LLaMA with widths of its own in every layer. This file stands alone: transformers is all that it needs.

``per_layer_config`` in config.json maps a layer's number to what differs there from the config as a whole:
``intermediate_size``, ``num_attention_heads``, ``num_key_value_heads``. The convention is that of transformers; its
own LLaMA does not read it yet.
"""

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)


@strict
class LorashearLlamaConfig(LlamaConfig):
    model_type = "lorashear_llama"

    def validate_architecture(self):
        """LLaMA wants a head count that divides the hidden size; head_dim is explicit here, so any count will do."""


class LorashearLlamaModel(LlamaModel):
    config_class = LorashearLlamaConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        own = config.per_layer_config  # indexing resolves a layer's config; empty where all layers are alike
        layers = []
        for index in range(config.num_hidden_layers):
            layer = LlamaDecoderLayer(own[index] if own else config, index)  # pyright: ignore
            # The layer's own config is for its shapes; the attention implementation is chosen on the shared one.
            layer.self_attn.config = config
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class LorashearLlamaForCausalLM(LlamaForCausalLM):
    config_class = LorashearLlamaConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = LorashearLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
