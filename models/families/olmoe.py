"""OLMoE: 64 small SwiGLU experts a layer, eight of them for a token, norms of whole queries and keys."""

from wattbit.models.families.family import Family

OLMOE = Family(classes={"olmoe": "OlmoeForCausalLM"})
