"""Qwen1.5-MoE and Qwen2-MoE (a shared expert behind a sigmoid gate) and Qwen3-MoE (none, but norms of each head); dense
layers among them by `mlp_only_layers` and `decoder_sparse_step`."""

from wattbit.models.families.family import Family

QWEN_MOE = Family(classes={"qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"})
