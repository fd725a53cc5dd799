"""Tells vLLM of the models that LoRAShear wrote."""

NAMES = ("LorashearLlamaForCausalLM", "LorashearMistralForCausalLM")
"""As `architectures` in config.json has them."""


def register() -> None:
    """The entry point of vLLM's plugins, called in each of its processes. The classes are imported when a model asks for one."""
    from vllm import ModelRegistry

    for name in NAMES:
        ModelRegistry.register_model(name, f"lorashear_vllm.model:{name}")
