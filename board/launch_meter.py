"""Prices routings on a design that is on a board: launches of chosen packets through the agent, in clock cycles."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wattbit.board.agent.session import encode_array
from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Cost, ExpertId, Provenance, Workload


class Agent(Protocol):
    """What the meter needs of `wattbit.board.client.AgentClient`."""

    def request(self, cmd: str, **fields: Any) -> dict[str, Any]: ...


class Routed(Protocol):
    """Sampled batches: counts [S, N], vectors for each of `experts`."""

    @property
    def experts(self) -> tuple[ExpertId, ...]: ...
    @property
    def counts(self) -> NDArray[np.float64]: ...


class LaunchMeter:
    """`wattbit.plan.Meter` of one bundle's design: its allocation is given, the workload's routing is what varies.

    A price is the accelerator's own cycles, from start to done of one launch a layer, at its clock: without software.
    Energy is None: `wattbit bench` weighs it. Provenance is `simulated` where the accelerator is.
    """

    def __init__(self, agent: Agent, manifest: Mapping[str, Any], route: Callable[[Workload], Routed]) -> None:
        """route: the batches of a workload that are launched."""
        self._agent, self._manifest, self._route = agent, manifest, route
        clock = agent.request("load")["clock_mhz"]
        if clock is None:
            raise WattbitError("the bundle has no design in programmable logic; calibrate its cores instead")
        self._hertz = clock * 1e6

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        """Raises WattbitError for another allocation than the design's, and what the agent raises."""
        if allocation.digest != self._manifest["allocation_digest"]:
            raise WattbitError("the board has the design of another allocation; build and deploy this one first")
        routed = self._route(workload)
        cycles = 0
        for batch in routed.counts:
            names = [str(e) for e, vectors in zip(routed.experts, batch, strict=True) for _ in range(int(vectors))]
            x = np.zeros((len(names), self._manifest["model"]["d_model"]), np.int8)
            cycles += self._agent.request("run", engine="fpga", experts=names, x=encode_array(x))["cycles"]
        share = workload.tokens / workload.batch / len(routed.counts)
        provenance: Provenance = "simulated" if self._manifest["toolchain"] == "virtual" else "measured"
        weights = sum(record["bits"][0] for record in self._manifest["experts"].values())
        shape = self._manifest["model"]
        memory = weights * 2 * shape["d_model"] * shape["d_hidden"] // 8
        return Cost(cycles / self._hertz * share, None, memory, provenance)
