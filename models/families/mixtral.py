"""Mixtral: eight SwiGLU experts a layer, two of them for a token, gates that sum to one."""

from wattbit.models.families.family import Family

MIXTRAL = Family(
    classes={"mixtral": "MixtralForCausalLM"},
    expert_names={"gate": "w1", "up": "w3", "down": "w2"},
    renamed=((".mlp.", ".block_sparse_moe."),),
)
