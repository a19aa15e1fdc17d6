"""DeepSeek-MoE 16B, DeepSeek-V2 and V3: many small experts, shared experts for every token, first layers dense.

transformers has no class of DeepSeek-MoE 16B (`model_type` "deepseek"), and its own code is not run from a checkpoint.
It differs from Qwen2-MoE in two things, and both can be said in that class exactly: there are no biases, and the shared
experts have no gate. A gate of weights zero is sigmoid(0) = 1/2, so the shared experts' last matrix is doubled.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.checkpoint import Checkpoint
from wattbit.models.families.family import Family

DEEPSEEK_MOE = Family(classes={"deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"})

SAME = (  # the names of a configuration that both classes have
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "num_experts_per_tok", "hidden_act", "rms_norm_eps"),
    *("max_position_embeddings", "norm_topk_prob", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
)


class DeepseekMoe16B(Family):
    """The first DeepSeek-MoE, as a Qwen2-MoE."""

    def config(self, checkpoint: Checkpoint) -> Any:
        c = checkpoint.config
        if c.get("rope_scaling") or c.get("scoring_func", "softmax") != "softmax" or c.get("attention_bias"):
            raise WattbitError(
                f"{checkpoint.folder} scales its rotary positions, has biases or no softmax router; wattbit knows a "
                "DeepSeek-MoE without"
            )
        every, layers = c.get("moe_layer_freq", 1), c["num_hidden_layers"]
        dense = [i for i in range(layers) if i < c["first_k_dense_replace"] or i % every]
        return transformers.Qwen2MoeConfig(
            **{name: c[name] for name in SAME if name in c},
            num_experts=c["n_routed_experts"],
            shared_expert_intermediate_size=c["moe_intermediate_size"] * c["n_shared_experts"],
            mlp_only_layers=dense,
            qkv_bias=False,
            rope_parameters={"rope_type": "default", "rope_theta": c.get("rope_theta", 10000.0)},
            dtype=c.get("torch_dtype", c.get("dtype")),
        )

    def read(self, checkpoint: Checkpoint, names: Sequence[str], shape: tuple[int, ...]) -> Tensor:
        if names[0].endswith("shared_expert_gate.weight"):
            return torch.zeros(shape)
        tensor = super().read(checkpoint, names, shape)
        return tensor * 2 if names[0].endswith("shared_expert.down_proj.weight") else tensor


DEEPSEEK_MOE_16B = DeepseekMoe16B(
    classes={"deepseek": "Qwen2MoeForCausalLM"}, renamed=((".shared_expert.", ".shared_experts."),)
)
