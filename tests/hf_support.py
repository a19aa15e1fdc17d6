"""Tiny checkpoints of every family, random weights in transformers' own classes, as save_pretrained writes them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

from wattbit.files import write_json
from wattbit.models.checkpoint import Checkpoint
from wattbit.models.families.open import load_network
from wattbit.plan import Allocation, ExpertId
from wattbit.recipe import Quantizer, Recipe

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
SHARED = SIZES | {  # of every DeepSeek
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 80,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
}
DEEPSEEK = SHARED | {
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
QWEN = SIZES | {
    "num_hidden_layers": 3,
    "intermediate_size": 80,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "mlp_only_layers": [1],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": SIZES | {"num_hidden_layers": 2, "intermediate_size": 96, "num_local_experts": 4},
    "olmoe": SIZES
    | {
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 4,
    },
    "qwen2_moe": QWEN | {"shared_expert_intermediate_size": 48, "norm_topk_prob": False},
    "qwen3_moe": QWEN | {"head_dim": 24, "norm_topk_prob": True, "tie_word_embeddings": True},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK | {"n_group": 2, "topk_group": 1},
    "switch_transformers": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_sparse_decoder_layers": 1,
        "num_heads": 4,
        "num_experts": 4,
        "expert_capacity": 12,
        "decoder_start_token_id": 0,
    },
}
DEEPSEEK_16B = SHARED | {  # its own configuration; transformers has no class of it
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
FAMILIES = sorted([*CONFIGS, "deepseek"])


def transformers_model(model_type: str, **changed: Any) -> Any:
    """A network with random weights, its router too, so that routing is uneven."""
    if model_type == "deepseek":
        return deepseek_16b(**changed)
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type] | changed)
    kind = (
        transformers.AutoModelForSeq2SeqLM if model_type == "switch_transformers" else transformers.AutoModelForCausalLM
    )
    torch.manual_seed(0)
    return kind.from_config(config).eval()


def deepseek_16b(first_k_dense_replace: int = 1) -> Any:
    """DeepSeek-MoE 16B put together from Llama's classes and DeepSeek-V2's mixtures."""
    torch.manual_seed(0)
    network: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DEEPSEEK_16B)).eval()
    config = transformers.DeepseekV2Config(**DEEPSEEK_16B, kv_lora_rank=8, q_lora_rank=None)
    config._experts_implementation = "eager"
    for layer in network.model.layers[first_k_dense_replace:]:
        layer.mlp = DeepseekV2Moe(config)
        for parameter in layer.mlp.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def checkpoint(model_type: str, folder: Path, **changed: Any) -> Path:
    """A checkpoint in several shards; DeepSeek-MoE 16B's in one."""
    network = transformers_model(model_type, **changed)
    if model_type != "deepseek":
        network.save_pretrained(folder, max_shard_size="60KB")
        return folder
    about = {
        "model_type": "deepseek",
        "norm_topk_prob": False,
        "first_k_dense_replace": 1,
        "auto_map": {"AutoModel": "m.M"},
    }
    write_json(folder / "config.json", DEEPSEEK_16B | about | changed)
    save_file(separate_experts(network.state_dict()), folder / "model.safetensors")
    return folder


def separate_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tensor for each matrix of each expert, as checkpoints have them."""
    found = {}
    for name, tensor in state.items():
        if name.endswith(".experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                for part, matrix in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                    found[name.replace("gate_up_proj", f"{e}.{part}.weight")] = matrix.clone()
        elif name.endswith(".experts.down_proj"):
            found |= {name.replace("down_proj", f"{e}.down_proj.weight"): m.clone() for e, m in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["the quick brown fox"] * 9, BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def contexts(count: int = 6, length: int = 33, seed: int = 1) -> torch.Tensor:
    """Random tokens [count, length]."""
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def mixed_recipe(folder: Path, quantizer: Quantizer = "rtn") -> Recipe:
    """Widths 2 to 8 over a checkpoint's experts, in groups; two experts with compensators, one with float columns."""
    experts = load_network(Checkpoint.open(folder)).expert_ids
    return Recipe(
        method="mixed",
        allocation=Allocation.of({expert: 2 + i % 7 for i, expert in enumerate(experts)}, engine="arm"),
        quantizer=quantizer,
        group_size=24,
        ranks={experts[1]: 2, experts[-1]: 3},
        float_columns={ExpertId(0, 0): (3, 17)},
    )
