"""Weights of a network that was built without: read from a checkpoint module by module, and let go again."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Read = Callable[[Sequence[str], tuple[int, ...]], Tensor]
"""A parameter by the names that the network has for it, and its shape."""


class Weights:
    """Fills modules of one network. Parameters that modules share are read once and shared again."""

    def __init__(self, network: Any, read: Read, device: str) -> None:
        self.network = network
        self._read = read
        self._device = device
        self._dtype: torch.dtype = network.config.dtype or torch.float32
        self._empty = dict(_stored(network, ""))
        self._names: dict[int, list[str]] = {}  # of each empty tensor
        for name, tensor in self._empty.items():
            self._names.setdefault(id(tensor), []).append(name)

    def check(self, read: Read) -> None:
        """Read all that a checkpoint must hold, by its headers: raises what `read` does, before any work."""
        for names in self._names.values():
            read(names, tuple(self._empty[names[0]].shape))

    def load(self, prefix: str, skip: Sequence[str] = ()) -> None:
        """Fill what stands under a module's name ("": the network), except under the names of `skip`."""
        for name, tensor in list(_stored(self.network.get_submodule(prefix), prefix)):
            if tensor.is_meta and not name.startswith(tuple(f"{other}." for other in skip)):
                self._fill(name)

    def free(self, prefix: str) -> None:
        """Let go of what stands under a module's name."""
        for name, _ in list(_stored(self.network.get_submodule(prefix), prefix)):
            self._set(name, self._empty[name])

    def _fill(self, name: str) -> None:
        tensor = self._empty[name]
        names = self._names[id(tensor)]
        if not self._get(name).is_meta:  # it has been read under another name
            return
        found = self._read(names, tuple(tensor.shape))
        if isinstance(tensor, nn.Parameter):
            found = nn.Parameter(found.to(self._device, self._dtype), requires_grad=False)
        else:
            found = found.to(self._device, tensor.dtype)
        for name in names:
            self._set(name, found)

    def _set(self, name: str, tensor: Tensor) -> None:
        path, _, own = name.rpartition(".")
        module = self.network.get_submodule(path)
        (module._parameters if own in module._parameters else module._buffers)[own] = tensor

    def _get(self, name: str) -> Tensor:
        path, _, own = name.rpartition(".")
        return getattr(self.network.get_submodule(path), own)


def _stored(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and those buffers that checkpoints hold, by all their names in the network."""
    for path, part in module.named_modules(prefix=prefix, remove_duplicate=False):
        buffers = {name: b for name, b in part._buffers.items() if name not in part._non_persistent_buffers_set}
        for own, tensor in (part._parameters | buffers).items():
            if tensor is not None:
                yield f"{path}.{own}".lstrip("."), tensor
