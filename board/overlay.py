"""The virtual overlay: a simulated `.bit` and a Vivado-style `.hwh` that describes the shell to pynq.

The handoff holds what pynq 4.0.0 (pynqmetadata 0.2.0) reads: the PS with its clocks and memory map, and the shell as
one IP with named registers, so that `overlay.wattbit_0.register_map.CTRL` works as on a board.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from wattbit.board.agent import bitstream
from wattbit.errors import WattbitError
from wattbit.files import write_bytes, write_text
from wattbit.plan import Target
from wattbit.shell import INSTANCE, VLNV, Register

SHELL_BYTES = 0x10000
INTERFACE = "s_axi_ctrl"
PL_CLOCKS = 4
CTRL_FIELDS = {"START": 0, "DONE": 1, "IDLE": 2}


@dataclass(frozen=True)
class ProcessingSystem:
    """A processor family as Vivado names it: its IP, its master port to the logic, and where the shell lies."""

    arch: str
    module: str
    version: str
    port: str
    base: int
    enable: str
    divisor: str
    source: str


ZYNQ = ProcessingSystem(
    arch="zynq",
    module="processing_system7",
    version="5.5",
    port="M_AXI_GP0",
    base=0x40000000,
    enable="PCW_FPGA_FCLK{clock}_ENABLE",
    divisor="PCW_FCLK{clock}_PERIPHERAL_DIVISOR{stage}",
    source="PCW_FCLK{clock}_PERIPHERAL_CLKSRC",
)
ZYNQMP = ProcessingSystem(
    arch="zynquplus",
    module="zynq_ultra_ps_e",
    version="3.4",
    port="M_AXI_HPM0_FPD",
    base=0xA0000000,
    enable="PSU__FPGA_PL{clock}_ENABLE",
    divisor="PSU__CRL_APB__PL{clock}_REF_CTRL__DIVISOR{stage}",
    source="PSU__CRL_APB__PL{clock}_REF_CTRL__SRCSEL",
)


def processing_system(part: str) -> ProcessingSystem:
    """The family of an AMD part name; WattbitError when pynq boards have no such part."""
    if part.startswith("xc7z"):
        return ZYNQ
    if part.startswith(("xczu", "xck26")):
        return ZYNQMP
    raise WattbitError(f"part {part} is neither Zynq-7000 (xc7z...) nor Zynq UltraScale+ (xczu..., xck26...)")


def write_overlay(design_digest: str, target: Target, folder: Path) -> None:
    """Write `accel.bit` and `accel.hwh` of one design for a target's part and clock."""
    if target.part is None or target.clock_mhz is None:
        raise WattbitError(f"target {target.name} has no programmable logic; choose a board with a part and a clock")
    write_bytes(folder / "accel.bit", bitstream.encode(design_digest, target.part.removeprefix("xc")))
    write_text(folder / "accel.hwh", handoff(target.part, target.clock_mhz))


def handoff(part: str, clock_mhz: float) -> str:
    """The `.hwh` of a design with one shell, clocked by PL clock 0."""
    ps = processing_system(part)
    system = Element("EDKSYSTEM", EDWVERSION="1.2", TIMESTAMP="", VIVADOVERSION="2022.2")
    SubElement(system, "SYSTEMINFO", ARCH=ps.arch, DEVICE=part.removeprefix("xc"), NAME="accel")
    SubElement(system, "EXTERNALPORTS")
    SubElement(system, "EXTERNALINTERFACES")
    modules = SubElement(system, "MODULES")
    _shell(modules)
    _processor(modules, ps, clock_mhz)
    ElementTree.indent(system)
    return '<?xml version="1.0" encoding="UTF-8" standalone="no" ?>\n' + ElementTree.tostring(system, "unicode") + "\n"


def _module(modules: Element, instance: str, vlnv: str) -> Element:
    return SubElement(
        modules,
        "MODULE",
        COREREVISION="1",
        FULLNAME=f"/{instance}",
        HWVERSION=vlnv.rpartition(":")[2],
        INSTANCE=instance,
        IPTYPE="PERIPHERAL",
        IS_ENABLE="1",
        MODCLASS="PERIPHERAL",
        MODTYPE=vlnv.split(":")[2],
        VLNV=vlnv,
    )


def _interface(module: Element, name: str, kind: str) -> None:
    SubElement(module, "PORTS")
    interface = SubElement(
        SubElement(module, "BUSINTERFACES"),
        "BUSINTERFACE",
        BUSNAME="control",
        NAME=name,
        TYPE=kind,
        VLNV="xilinx.com:interface:aximm:1.0",
    )
    SubElement(interface, "PARAMETERS")
    SubElement(interface, "PORTMAPS")


def _properties(parent: Element, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        SubElement(parent, "PROPERTY", NAME=name, VALUE=str(value))


def _shell(modules: Element) -> None:
    module = _module(modules, INSTANCE, VLNV)
    block = SubElement(
        SubElement(module, "ADDRESSBLOCKS"),
        "ADDRESSBLOCK",
        ACCESS="",
        INTERFACE=INTERFACE,
        NAME="Reg",
        RANGE=str(SHELL_BYTES),
        USAGE="register",
    )
    registers = SubElement(block, "REGISTERS")
    for name, offset in Register.__members__.items():
        register = SubElement(registers, "REGISTER", NAME=name)
        common = {"DESCRIPTION": name, "ACCESS": "read-write", "IS_ENABLED": "true"}
        _properties(register, common | {"ADDRESS_OFFSET": offset, "SIZE": 32})
        fields = SubElement(register, "FIELDS")
        for field, bit in CTRL_FIELDS.items() if name == "CTRL" else ():
            common["DESCRIPTION"] = field
            _properties(SubElement(fields, "FIELD", NAME=field), common | {"BIT_OFFSET": bit, "BIT_WIDTH": 1})
    SubElement(module, "PARAMETERS")
    _interface(module, INTERFACE, "SLAVE")


def _processor(modules: Element, ps: ProcessingSystem, clock_mhz: float) -> None:
    module = _module(modules, f"{ps.module}_0", f"xilinx.com:ip:{ps.module}:{ps.version}")
    parameters = SubElement(module, "PARAMETERS")
    # pynqmetadata reads the frequency of either family under the ZynqMP name; Vivado writes no such one for Zynq-7000
    values = {"PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ": str(clock_mhz)}
    for clock in range(PL_CLOCKS):
        values[ps.enable.format(clock=clock)] = str(int(clock == 0))
        values[ps.source.format(clock=clock)] = "IO PLL"
        values |= {ps.divisor.format(clock=clock, stage=stage): "4" for stage in range(2)}
    for name, value in values.items():
        SubElement(parameters, "PARAMETER", NAME=name, VALUE=value)
    _interface(module, ps.port, "MASTER")
    SubElement(
        SubElement(module, "MEMORYMAP"),
        "MEMRANGE",
        ADDRESSBLOCK="Reg",
        BASENAME="C_BASEADDR",
        BASEVALUE=f"0x{ps.base:08X}",
        HIGHNAME="C_HIGHADDR",
        HIGHVALUE=f"0x{ps.base + SHELL_BYTES - 1:08X}",
        INSTANCE=INSTANCE,
        IS_DATA="TRUE",
        IS_INSTRUCTION="TRUE",
        MASTERBUSINTERFACE=ps.port,
        MEMTYPE="REGISTER",
        SLAVEBUSINTERFACE=INTERFACE,
    )
