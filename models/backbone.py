"""The float part of the model (embedding, attention, norms, routers, output layer) as one ONNX graph.

The graph is cut where the experts sit. Inputs: `tokens` [1, S] and, for each layer i, the chosen experts' outputs
`y{i}` [S, K, D]. Outputs: for each layer i the experts' inputs `x{i}` [S, D], the chosen `experts{i}` [S, K] and their
`gates{i}` [S, K], and at the end `logits` [1, S, V]. x{i} depends on y0..y{i-1} only, so a runner asks for layer 0's
outputs with any y, runs the experts, asks for layer 1's, and so on.
"""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from wattbit.errors import WattbitError
from wattbit.files import atomic
from wattbit.models.network import Transformer

OPSET = 17
TOLERANCE = 1e-3  # of logits, between two float32 implementations


class Backbone(nn.Module):
    """See above. forward: tokens [1, S], y [S, K, D] of every layer."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        x = self.network.embedding(tokens)
        found: list[Tensor] = []
        for block, y in zip(self.network.layers, outputs, strict=True):
            x, inputs = block.attend(x)
            gates, experts, _ = block.mixture.choose(inputs)
            x = x + (gates[:, :, None] * y).sum(dim=1)
            found += [inputs, experts, gates]
        return (*found, self.network.head(x))


def output_names(layers: int) -> list[str]:
    return [name for i in range(layers) for name in (f"x{i}", f"experts{i}", f"gates{i}")] + ["logits"]


def export_backbone(network: Transformer, path: Path) -> None:
    """Write the graph to `path`; S is free up to the model's context."""
    config = network.config
    inputs = ["tokens", *(f"y{i}" for i in range(config.layers))]
    length = config.context
    example = torch.zeros(1, length, dtype=torch.int64)
    y = torch.zeros(length, config.top_k, config.d_model)
    axes = {name: {0: "S"} for name in [*inputs[1:], *output_names(config.layers)[:-1]]}
    with atomic(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own age and of shapes that it fixes
        torch.onnx.export(
            Backbone(network),
            (example, *[y] * config.layers),
            str(temporary),
            input_names=inputs,
            output_names=output_names(config.layers),
            dynamic_axes=axes | {"tokens": {1: "S"}, "logits": {1: "S"}},
            opset_version=OPSET,
            dynamo=False,
        )


@torch.no_grad()
def check_backbone(network: Transformer, path: Path, tokens: Tensor) -> float:
    """Largest difference of logits between graph and PyTorch on tokens [S], given PyTorch's float expert outputs.

    Raises WattbitError beyond `TOLERANCE`. The outputs are given, so that a near tie of two experts, which float32
    may break either way, changes little.
    """
    x = network.embedding(tokens[None])
    feed = {"tokens": tokens[None].numpy()}
    for i, block in enumerate(network.layers):
        x, inputs = block.attend(x)
        routing = block.mixture.route(inputs)
        y = block.mixture.float_experts(inputs.index_select(0, routing.tokens), routing.counts)
        feed[f"y{i}"] = routing.unsort(y).numpy()
        x = x + routing.combine(y).view_as(x)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], feed)
    difference = float(np.abs(found - network.head(x).numpy()).max())
    if not difference <= TOLERANCE:
        raise WattbitError(f"{path} differs from PyTorch by {difference:.2g} in a logit; delete it and export again")
    return difference
