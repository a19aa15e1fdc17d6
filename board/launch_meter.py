"""Prices routings on a design that is on a board: launches of chosen packets through the agent, in clock cycles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wattbit.board.agent.session import encode_array
from wattbit.board.energy import MIN_MARGIN_S, mean_power
from wattbit.board.targets import WITHOUT_RAIL
from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Cost, ExpertId, Provenance, Workload

WINDOW_S = 3.0  # of a batch that is weighed
SEED = 1


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
    Energy, where the board has a rail, is the mean power, idle power included, of a window in which a batch runs again
    and again, for those seconds; else None. Provenance is `simulated` where the accelerator is.
    """

    def __init__(self, agent: Agent, manifest: Mapping[str, Any], route: Callable[[Workload], Routed]) -> None:
        """route: the batches of a workload that are launched."""
        self._agent, self._manifest, self._route = agent, manifest, route
        clock = agent.request("load")["clock_mhz"]
        if clock is None:
            raise WattbitError("the bundle has no design in programmable logic; calibrate its cores instead")
        self._hertz = clock * 1e6
        self._weighed = manifest["power"]["source"] not in WITHOUT_RAIL

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        """Raises WattbitError for another allocation than the design's, and what the agent raises."""
        if allocation.digest != self._manifest["allocation_digest"]:
            raise WattbitError("the board has the design of another allocation; build and deploy this one first")
        routed = self._route(workload)
        cycles, joules = 0, 0.0
        random = np.random.default_rng(SEED)
        for batch in routed.counts:
            names = [str(e) for e, vectors in zip(routed.experts, batch, strict=True) for _ in range(int(vectors))]
            x = encode_array(self._vectors(names, random))
            taken = self._agent.request("run", engine="fpga", experts=names, x=x)["cycles"]
            cycles += taken
            if self._weighed:
                joules += self._power_w(names, x) * taken / self._hertz
        share = workload.tokens / workload.batch / len(routed.counts)
        provenance: Provenance = "simulated" if self._manifest["toolchain"] == "virtual" else "measured"
        weights = sum(record["bits"][0] for record in self._manifest["experts"].values())
        shape = self._manifest["model"]
        memory = weights * 2 * shape["d_model"] * shape["d_hidden"] // 8
        energy = joules * share if self._weighed else None
        return Cost(cycles / self._hertz * share, energy, memory, provenance)

    def _vectors(self, names: Sequence[str], random: np.random.Generator) -> NDArray[np.int8]:
        """Inputs [N, D] for these experts."""
        act_bits = np.array([self._manifest["experts"][name]["bits"][1] for name in names])
        half = 1 << (act_bits[:, None] - 1)
        return random.integers(-half, half, (len(names), self._manifest["model"]["d_model"])).astype(np.int8)

    def _power_w(self, experts: list[str], x: str) -> float:
        """Mean power of the board's rail while these packets are launched again and again."""
        self._agent.request("power")  # what was before is nobody's
        window = self._agent.request("active", seconds=WINDOW_S, engine="fpga", experts=experts, x=x)
        time_s, power_w = np.array(self._agent.request("power")["samples"], float).reshape(-1, 2).T
        return mean_power(time_s, power_w, window["start_s"] + MIN_MARGIN_S, window["end_s"])
