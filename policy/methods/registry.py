"""The methods by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from wattbit.errors import WattbitError
from wattbit.plan import Meter, Workload
from wattbit.policy.methods.dmpq import DMPQ
from wattbit.policy.methods.exact import Exact
from wattbit.policy.methods.linear import Linear
from wattbit.policy.methods.mcmoe import MCMoE
from wattbit.policy.methods.milo import MiLo
from wattbit.policy.methods.moqa import MoQa
from wattbit.policy.methods.mxmoe import MxMoE
from wattbit.policy.methods.random import Random
from wattbit.policy.methods.router_norm import RouterNorm
from wattbit.policy.methods.uniform import Uniform
from wattbit.recipe import Method, Quantizer

ON_WEIGHTS: Mapping[str, Method] = {
    one.name: one
    for one in (
        *(Uniform("rtn"), Uniform("gptq"), Uniform("hqq")),
        *(Linear(), Random(), Exact()),
        *(MCMoE(), MCMoE(prune=True)),
        *(MiLo("kurtosis"), MiLo("frequency")),
        MoQa(),
        *(RouterNorm(2), RouterNorm(3)),
    )
}
"""Those that look at the model alone."""

ON_HARDWARE: Mapping[str, Callable[[Meter, Workload], Method]] = {"mxmoe": MxMoE, "dmpq": DMPQ}
"""Those that price hardware too."""

METHODS: tuple[str, ...] = (*ON_WEIGHTS, *ON_HARDWARE)


def check_name(name: str) -> None:
    """WattbitError for a name that is no method's."""
    if name not in METHODS:
        raise WattbitError(f"a method is one of {', '.join(METHODS)}, not {name!r}")


def method(
    name: str, meter: Meter | None = None, workload: Workload | None = None, quantizer: Quantizer | None = None
) -> Method:
    """The method of that name.

    meter, workload: needed by those of `ON_HARDWARE`. quantizer: instead of the one that the method's paper uses, so
    that allocations compare; the uniform ones and MiLo are their quantizer and have no other.
    Raises WattbitError for a name that is none, and for hardware without a meter.
    """
    check_name(name)
    if name in ON_WEIGHTS:
        found = ON_WEIGHTS[name]
    elif meter is None or workload is None:
        raise WattbitError(f"{name} prices hardware; give it a meter and a workload")
    else:
        found = ON_HARDWARE[name](meter, workload)
    if quantizer is None or isinstance(found, (Uniform, MiLo)):
        return found
    return replace(found, quantizer=quantizer)  # type: ignore[type-var]  # every other one is a dataclass with it
