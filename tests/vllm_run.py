"""Greedy tokens of a model in vLLM: a program that vLLM's own Python runs, where nothing of LoRAShear is installed but its plugin.

Takes on stdin JSON with ``folder``, ``prompts`` (token ids), ``tokens`` (how many to make), ``engine`` (arguments of ``vllm.LLM``) and
``adapter`` (a folder, or null); writes to the file that its argument names, for each prompt, ``tokens`` and the log-probabilities of
the most likely ones at each step.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    task = json.load(sys.stdin)
    model = LLM(
        model=task["folder"], skip_tokenizer_init=True, trust_remote_code=True, enforce_eager=True, dtype="float32",
        max_model_len=256, **task["engine"],
    )  # fmt: skip
    count = task["tokens"]
    sampling = SamplingParams(
        temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, logprobs=5, detokenize=False
    )
    prompts = [{"prompt_token_ids": ids} for ids in task["prompts"]]
    adapter = task["adapter"]
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    made = model.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
    found = [
        {
            "tokens": list(each.outputs[0].token_ids),
            "logprobs": [{token: each.logprob for token, each in step.items()} for step in each.outputs[0].logprobs],
        }
        for each in made
    ]
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
