"""The processing systems of the boards' chips, as a Vivado block design names their ports and settings."""

from collections.abc import Mapping
from dataclasses import dataclass

from wattbit.errors import WattbitError


@dataclass(frozen=True)
class Processor:
    """One family's IP, its cores' architecture; `{n}` stands for the number of a memory port, from 0.

    control, memory: its AXI ports to and from the logic, each with its clock pin. base: where the design's registers
    lie. settings: what every design sets; memory_settings: what a design sets for each memory port that it uses.
    frequency: the setting that asks for PL clock 0. delivered, divisors: how its handoff names the clock that there is
    and the dividers that make it. external: whether its DDR and fixed pins must be made external.
    """

    ip: str
    arch: str
    base: int
    clock: str
    reset: str
    interrupt: str
    control: tuple[str, str]
    memory: tuple[str, str]
    settings: Mapping[str, str]
    memory_settings: Mapping[str, str]
    frequency: str
    delivered: str
    divisors: tuple[str, str]
    external: bool

    @property
    def instance(self) -> str:
        return f"{self.ip}_0"

    def configuration(self, clock_mhz: float, ports: int) -> dict[str, str]:
        """Settings of a design with `ports` memory ports, clocked by PL clock 0."""
        values = dict(self.settings) | {self.frequency: f"{clock_mhz:g}"}
        for port in range(ports):
            values |= {name.format(n=port, gp=port + 2): value for name, value in self.memory_settings.items()}
        return values


# From AMD's PG082 and PG201. The DDR controller and the pins are left at their defaults: a board's first-stage boot
# loader has set them long before a bitstream is loaded, and a bitstream holds nothing of them.
ZYNQ = Processor(
    ip="processing_system7",
    arch="armv7",
    base=0x40000000,
    clock="FCLK_CLK0",
    reset="FCLK_RESET0_N",
    interrupt="IRQ_F2P",
    control=("M_AXI_GP0", "M_AXI_GP0_ACLK"),
    memory=("S_AXI_HP{n}", "S_AXI_HP{n}_ACLK"),
    settings={
        "PCW_USE_M_AXI_GP0": "1",
        "PCW_USE_FABRIC_INTERRUPT": "1",
        "PCW_IRQ_F2P_INTR": "1",
        "PCW_EN_CLK0_PORT": "1",
        "PCW_EN_RST0_PORT": "1",
    },
    memory_settings={"PCW_USE_S_AXI_HP{n}": "1", "PCW_S_AXI_HP{n}_DATA_WIDTH": "64"},
    frequency="PCW_FPGA0_PERIPHERAL_FREQMHZ",
    delivered="PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ",
    divisors=("PCW_FCLK0_PERIPHERAL_DIVISOR0", "PCW_FCLK0_PERIPHERAL_DIVISOR1"),
    external=True,
)
ZYNQMP = Processor(
    ip="zynq_ultra_ps_e",
    arch="aarch64",
    base=0xA0000000,
    clock="pl_clk0",
    reset="pl_resetn0",
    interrupt="pl_ps_irq0",
    control=("M_AXI_HPM0_FPD", "maxihpm0_fpd_aclk"),
    memory=("S_AXI_HP{n}_FPD", "saxihp{n}_fpd_aclk"),
    settings={
        "PSU__USE__M_AXI_GP0": "1",
        "PSU__USE__M_AXI_GP1": "0",
        "PSU__USE__M_AXI_GP2": "0",
        "PSU__MAXIGP0__DATA_WIDTH": "32",
        "PSU__USE__IRQ0": "1",
        "PSU__FPGA_PL0_ENABLE": "1",
    },
    memory_settings={"PSU__USE__S_AXI_GP{gp}": "1", "PSU__SAXIGP{gp}__DATA_WIDTH": "64"},
    frequency="PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ",
    delivered="PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ",
    divisors=("PSU__CRL_APB__PL0_REF_CTRL__DIVISOR0", "PSU__CRL_APB__PL0_REF_CTRL__DIVISOR1"),
    external=False,
)


def processor(part: str) -> Processor:
    """The processing system of a part; WattbitError when it has none that a PYNQ board has."""
    if part.startswith("xc7z"):
        return ZYNQ
    if part.startswith(("xczu", "xck26")):
        return ZYNQMP
    raise WattbitError(f"part {part} is neither Zynq-7000 (xc7z...) nor Zynq UltraScale+ (xczu..., xck26...)")
