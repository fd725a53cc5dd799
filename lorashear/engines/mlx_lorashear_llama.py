"""A LLaMA whose layers have widths of their own, for mlx-lm: config.json lists them in ``layer_widths``."""

from dataclasses import dataclass, field, replace

from mlx_lm.models import llama


@dataclass
class ModelArgs(llama.ModelArgs):
    layer_widths: list = field(default_factory=list)  # of each layer: query heads, key-value heads, columns of the MLP


class Model(llama.Model):
    def __init__(self, args):
        super().__init__(args)
        for at, (heads, kv_heads, ffn) in enumerate(args.layer_widths):
            own = replace(args, num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=ffn)
            self.model.layers[at] = llama.TransformerBlock(args=own)
