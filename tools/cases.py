"""Tiny models of every family of language model in transformers, with small numbers for whatever a config asks.

The families are examples: nothing here is known to the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

LARGEST = 5_000_000  # parameters of a case

TOKENS = torch.randint(1, 96, (3, 7), generator=torch.Generator().manual_seed(1))

SMALL: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-2},
    **{"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "sliding_window": 4},
    **{"n_inner": 48, "ffn_dim": 48, "word_embed_proj_dim": 32, "d_ff": 48, "rotary_dim": 4, "ffn_hidden_size": 48},
    **{"num_kv_heads": 2, "num_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96},
    **{"d_model": 32, "decoder_layers": 2, "encoder_layers": 2, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48},
    **{"decoder_attention_heads": 4, "encoder_attention_heads": 4, "query_pre_attn_scalar": 8, "global_head_dim": 8},
    **{"num_global_key_value_heads": 2, "image_size": 8, "patch_size": 4},
    # mixtures of experts
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 24, "moe_k": 2},
    **{"num_shared_experts": 1, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 8),
    "zero_expert_num": 3,
    # latent attention
    **{"kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 6},
    # state-space models and linear attention
    **{"state_size": 6, "time_step_rank": 4, "n_groups": 2, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 6},
    **{"mamba_n_groups": 1, "mamba_expand": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
"""Small values for the fields that configs have; no field is set that a config does not know."""

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

SPECIAL: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "hybrid"] * 3},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(
        (
            "bailing_hybrid",
            "granitemoehybrid",
            "kimi_linear",
            "qwen3_next",
            "qwen3_5_text",
            "qwen3_5_moe_text",
        ),
        {"layer_types": ["linear_attention", "full_attention"]},
    ),
    **dict.fromkeys(("lfm2", "lfm3"), {"layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": {"num_hidden_layers": 3},  # two recurrent layers to one of attention
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "blt": {"encoder_hash_byte_group_vocab": 100, "patch_in_forward": False},
    **dict.fromkeys(("blt_local_encoder", "blt_local_decoder"), {"hidden_size_global": 32}),
    "reformer": {
        **{
            "is_decoder": True,
            "attn_layers": ["local", "lsh"],
            "axial_pos_shape": [8, 8],
            "axial_pos_embds_dim": [8, 24],
        },
        **{"attention_head_size": 8, "feed_forward_size": 48, "num_buckets": 2, "hash_seed": 0},
    },
    "roc_bert": {
        **{"pronunciation_vocab_size": 20, "pronunciation_embed_dim": 6},
        **{"shape_vocab_size": 20, "shape_embed_dim": 10},
    },
    "dots3_note_text": {"per_layer_config": {}},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * 2, "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_output_size": 32},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "phi4_multimodal_audio": {"num_blocks": 1, "nemo_conv_channels": 32, "input_size": 16},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 5, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
    },
    "hrm_text": {"L_cycles": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0], "laurel_rank": 8},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), PLAIN_ROPE)},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
}
"""What single families need besides."""

ROPE: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 32},
    "longrope": {
        "factor": 2.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 32,
    },
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
}

NAMED = (
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt2 gptj gpt_neox opt bloom falcon stablelm olmo olmo2 "
    "cohere cohere2 glm granite starcoder2 smollm3 mixtral qwen3_moe gpt_oss deepseek_v3 mamba mamba2 bamba jamba"
).split()


class ConvNet(torch.nn.Module):
    """A plain convolutional net: grouped and depthwise convolutions, batch norm, a residual, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 12, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(12)
        self.depthwise = torch.nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.pointwise = torch.nn.Conv2d(12, 16, 1)
        self.back = torch.nn.Conv2d(16, 12, 1)
        self.head = torch.nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.pointwise(self.depthwise(x)))
        x = torch.nn.functional.max_pool2d(x + self.back(y), 2)
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A family to check: how its model is built, and what it is called with (token ids where None)."""

    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Mapping[str, torch.Tensor] | None = None

    def make(self) -> torch.nn.Module:
        """The model. Raises ValueError where it would be large all the same."""
        with torch.device("meta"):
            size = sum(p.numel() for p in self.build().parameters())
        if size > LARGEST:
            raise ValueError(f"its config has parts of other kinds, which stay {size / 1e6:,.0f} M parameters large")
        return self.build()


def tiny(family: str, **values: Any) -> PreTrainedConfig:
    """A small config of a family."""
    return shrunk(AutoConfig.for_model(family), {**SPECIAL.get(family, {}), **values})


def shrunk(base: PreTrainedConfig, values: Mapping[str, Any]) -> PreTrainedConfig:
    """A small config of the same class, with these values; the configs of its parts are small too."""
    known = set(base.to_dict()) | set(getattr(base, "attribute_map", {}))
    chosen = {name: value for name, value in SMALL.items() if name in known}
    if "qk_rope_head_dim" in known:
        chosen.update(head_dim=chosen["qk_rope_head_dim"], num_key_value_heads=chosen["num_attention_heads"])
    parts = {name: part for name, part in vars(base).items() if isinstance(part, PreTrainedConfig)}
    chosen.update({name: shrunk(part, SPECIAL.get(part.model_type, {})) for name, part in parts.items()})
    return type(base)(**{**chosen, **values})


def causal(family: str, **values: Any) -> Case:
    name = family + "".join(f" {value}" for value in values.values() if isinstance(value, str))
    return Case(name, lambda: language_model(tiny(family, **values)))


def language_model(config: PreTrainedConfig) -> torch.nn.Module:
    """The causal language model of a config, or of that part of the config which its class takes (MusicGen's decoder)."""
    cls: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    part = next((each for each in vars(config).values() if isinstance(each, cls.config_class)), None)
    if isinstance(config, cls.config_class) or part is None:
        return AutoModelForCausalLM.from_config(config)
    return cls(part)


def rope(kind: str) -> Case:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **ROPE[kind]}
    return Case(
        f"llama, {kind} RoPE", lambda: AutoModelForCausalLM.from_config(tiny("llama", rope_parameters=parameters))
    )


def falcon(**values: Any) -> Case:
    name = "falcon, " + ", ".join(f"{key}={value}" for key, value in values.items())
    return Case(name, lambda: AutoModelForCausalLM.from_config(tiny("falcon", **values)))


def cases() -> list[Case]:
    """The families that the tests hold to the theorem."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return [
        *map(causal, NAMED),
        *map(rope, ROPE),
        falcon(new_decoder_architecture=True),
        falcon(multi_query=False, num_kv_heads=4),
        falcon(alibi=True),
        Case("llama, eager", lambda: AutoModelForCausalLM.from_config(tiny("llama"), attn_implementation="eager")),
        Case("bert", lambda: AutoModel.from_config(tiny("bert")), {"input_ids": TOKENS}),
        Case("vit", lambda: AutoModel.from_config(tiny("vit")), {"pixel_values": images}),
        Case("convolutional net", ConvNet, {"x": images}),
    ]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and buffer random: no bias is zero, no norm is one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
        for buffer in model.buffers():
            if buffer.dtype.is_floating_point:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.5 + 0.1)
    return model.float().eval()


def case_of(name: str) -> Case:
    """The case of that name, or the family's plain one."""
    return next((case for case in cases() if case.name == name), None) or causal(name)
