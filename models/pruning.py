"""Online dynamic pruning (MC-MoE's ODP, arXiv 2410.06270, section 3.3): experts that a token leaves out at run time.

The paper prunes the second of two experts; of more, every later one is held to the same rule here. It is silent on
heads (averaged) and on how many tokens a share is (rounded).
"""

import torch
from torch import Tensor


def token_importance(x: Tensor, attention: Tensor) -> Tensor:
    """I_j = ||t_j||_1 sum over i >= j of A_ij / (S - j), [B, S].

    x [B, S, D]: the tokens as they enter the mixture layer; attention [B, heads, S, S]: causal, query by key.
    """
    length = x.shape[1]
    seen = torch.arange(length, 0, -1, device=x.device)  # S - j queries see key j
    return x.abs().sum(dim=-1) * attention.mean(dim=1).sum(dim=1) / seen


def prune(gates: Tensor, ratio: float, importance: Tensor, protected: float) -> Tensor:
    """Gates [T, K], sorted downwards, with 0 for the experts that a token drops; not normalised anew.

    A later expert goes where its gate is below ratio * first gate, unless the token is among the share `protected` of
    its context's most important ones; importance [B, S], T = B S.
    """
    dropped = gates < ratio * gates[:, :1]
    dropped[:, 0] = False
    kept = round(protected * importance.shape[1])
    spared = torch.zeros_like(importance, dtype=torch.bool)
    spared.scatter_(1, importance.topk(kept, dim=1).indices, True)
    return gates.masked_fill(dropped & ~spared.flatten()[:, None], 0.0)
