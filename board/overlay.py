"""The hardware handoff, `.hwh`: a Vivado-style description of the design for pynq, and the clock in Vivado's own.

What is written holds what pynq 4.0.0 (pynqmetadata 0.2.0) and the parser of older images read: the PS with its clocks,
memory ports and memory map, and the shell as one IP with named registers, so that
`overlay.wattbit_0.register_map.CTRL` works.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from wattbit.board.agent import bitstream
from wattbit.clock import ZYNQ_PLL_MHZ, ZYNQMP_PLL_MHZ, divisors
from wattbit.errors import WattbitError
from wattbit.files import write_bytes, write_text
from wattbit.plan import Target
from wattbit.shell import INSTANCE, VLNV, Register

SHELL_BYTES = 0x10000
INTERFACE = "s_axi_ctrl"
MASTERS = ("m_axi_mem",)
PL_CLOCKS = 4
DDR_HIGH = 0x1FFFFFFF  # of the first 512 MB, which every board has
CTRL_FIELDS = {"START": 0, "DONE": 1, "IDLE": 2}


FREQUENCY = "PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ"


@dataclass(frozen=True)
class ProcessingSystem:
    """A processor family as Vivado names it: its IP, its ports, where the shell lies, and its clocks.

    port: its master port to the logic. memory, widths: its memory ports, {n} from 0, and settings of their widths.
    frequency: what Vivado calls PL clock 0's. source_mhz: the IO PLL from which that clock is divided.
    """

    arch: str
    module: str
    version: str
    port: str
    memory: str
    widths: str
    base: int
    enable: str
    divisor: str
    source: str
    frequency: str
    source_mhz: float


ZYNQ = ProcessingSystem(
    arch="zynq",
    module="processing_system7",
    version="5.5",
    port="M_AXI_GP0",
    memory="S_AXI_HP{n}",
    widths="C_S_AXI_HP{n}_DATA_WIDTH",
    base=0x40000000,
    enable="PCW_FPGA_FCLK{clock}_ENABLE",
    divisor="PCW_FCLK{clock}_PERIPHERAL_DIVISOR{stage}",
    source="PCW_FCLK{clock}_PERIPHERAL_CLKSRC",
    frequency="PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ",
    source_mhz=ZYNQ_PLL_MHZ,
)
ZYNQMP = ProcessingSystem(
    arch="zynquplus",
    module="zynq_ultra_ps_e",
    version="3.4",
    port="M_AXI_HPM0_FPD",
    memory="S_AXI_HP{n}_FPD",
    widths="C_SAXIGP{gp}_DATA_WIDTH",
    base=0xA0000000,
    enable="PSU__FPGA_PL{clock}_ENABLE",
    divisor="PSU__CRL_APB__PL{clock}_REF_CTRL__DIVISOR{stage}",
    source="PSU__CRL_APB__PL{clock}_REF_CTRL__SRCSEL",
    frequency=FREQUENCY,
    source_mhz=ZYNQMP_PLL_MHZ,
)


def processing_system(part: str) -> ProcessingSystem:
    """The family of an AMD part name; WattbitError when pynq boards have no such part."""
    if part.startswith("xc7z"):
        return ZYNQ
    if part.startswith(("xczu", "xck26")):
        return ZYNQMP
    raise WattbitError(f"part {part} is neither Zynq-7000 (xc7z...) nor Zynq UltraScale+ (xczu..., xck26...)")


def write_overlay(design_digest: str, target: Target, folder: Path, masters: Sequence[str] = MASTERS) -> None:
    """Write `accel.bit` and `accel.hwh` of one simulated design for a target's part and clock."""
    if target.part is None or target.clock_mhz is None:
        raise WattbitError(f"target {target.name} has no programmable logic; choose a board with a part and a clock")
    write_bytes(folder / "accel.bit", bitstream.encode(design_digest, target.part.removeprefix("xc")))
    write_text(folder / "accel.hwh", handoff(target.part, target.clock_mhz, masters, target.memory_ports))


def handoff(part: str, clock_mhz: float, masters: Sequence[str] = MASTERS, memory_ports: int = 1) -> str:
    """The `.hwh` of a design with one shell, clocked by PL clock 0.

    masters: the shell's AXI masters, master i on memory port i of the `memory_ports`, in turn where these are fewer.
    """
    ps = processing_system(part)
    ports = [ps.memory.format(n=i % memory_ports) for i in range(len(masters))]
    system = Element("EDKSYSTEM", EDWVERSION="1.2", TIMESTAMP="", VIVADOVERSION="2022.2")
    SubElement(system, "SYSTEMINFO", ARCH=ps.arch, DEVICE=part.removeprefix("xc"), NAME="accel")
    SubElement(system, "EXTERNALPORTS")
    SubElement(system, "EXTERNALINTERFACES")
    modules = SubElement(system, "MODULES")
    _shell(modules, ps, dict(zip(masters, ports, strict=True)))
    _processor(modules, ps, clock_mhz, tuple(dict.fromkeys(ports)))
    return _text(system)


def with_clock(text: str, clock_mhz: float) -> str:
    """Vivado's own `.hwh` with PL clock 0 at most `clock_mhz`, and its frequency where pynq 4.0.0 looks for it.

    pynqmetadata reads the frequency of either family under the ZynqMP name; Vivado writes no such one for Zynq-7000.
    """
    try:
        system = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise WattbitError(f"the hardware handoff is not XML ({error}); build the bitstream again") from None
    families = {ps.module: ps for ps in (ZYNQ, ZYNQMP)}
    for module in system.iter("MODULE"):
        if module.get("MODTYPE") in families:
            ps = families[str(module.get("MODTYPE"))]
            break
    else:
        raise WattbitError("the hardware handoff has no processing system; build the bitstream again")
    parameters = module.find("PARAMETERS")
    known = {} if parameters is None else {str(one.get("NAME")): one for one in parameters}
    names = [ps.frequency, *(ps.divisor.format(clock=0, stage=stage) for stage in range(2))]
    if parameters is None or not all(name in known for name in names):
        raise WattbitError(f"the hardware handoff lacks {', '.join(names)}; build the bitstream again")
    frequency_mhz, first, second = (float(str(known[name].get("VALUE"))) for name in names)
    source_mhz = frequency_mhz * first * second
    dividers = divisors(source_mhz, clock_mhz)
    real_mhz = f"{source_mhz / (dividers[0] * dividers[1]):.6f}"
    for name, value in zip((*names, FREQUENCY), (real_mhz, *map(str, dividers), real_mhz), strict=True):
        if name not in known:
            known[name] = SubElement(parameters, "PARAMETER", NAME=name)
        known[name].set("VALUE", value)
    return _text(system)


def _text(system: Element) -> str:
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


def _interfaces(module: Element, kinds: Mapping[str, tuple[str, str]]) -> None:
    """AXI interfaces of a module by name: what they are connected to, and MASTER or SLAVE."""
    SubElement(module, "PORTS")
    interfaces = SubElement(module, "BUSINTERFACES")
    for name, (bus, kind) in kinds.items():
        interface = SubElement(
            interfaces, "BUSINTERFACE", BUSNAME=bus, NAME=name, TYPE=kind, VLNV="xilinx.com:interface:aximm:1.0"
        )
        SubElement(interface, "PARAMETERS")
        SubElement(interface, "PORTMAPS")


def _memory_range(memory_map: Element, kind: str, base: int, high: int, ports: tuple[str, str], instance: str) -> None:
    """A range of a module's memory map: from its port to the port of an instance."""
    SubElement(
        memory_map,
        "MEMRANGE",
        ADDRESSBLOCK="Reg",
        BASENAME="C_BASEADDR",
        BASEVALUE=f"0x{base:08X}",
        HIGHNAME="C_HIGHADDR",
        HIGHVALUE=f"0x{high:08X}",
        INSTANCE=instance,
        IS_DATA="TRUE",
        IS_INSTRUCTION="TRUE",
        MASTERBUSINTERFACE=ports[0],
        MEMTYPE=kind,
        SLAVEBUSINTERFACE=ports[1],
    )


def _properties(parent: Element, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        SubElement(parent, "PROPERTY", NAME=name, VALUE=str(value))


def _shell(modules: Element, ps: ProcessingSystem, masters: Mapping[str, str]) -> None:
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
    joined = {name: (f"{name}_{port}", "MASTER") for name, port in masters.items()}
    _interfaces(module, {INTERFACE: ("control", "SLAVE")} | joined)
    memory_map = SubElement(module, "MEMORYMAP")
    for pair in masters.items():
        _memory_range(memory_map, "MEMORY", 0, DDR_HIGH, pair, f"{ps.module}_0")


def _processor(modules: Element, ps: ProcessingSystem, clock_mhz: float, ports: Sequence[str]) -> None:
    module = _module(modules, f"{ps.module}_0", f"xilinx.com:ip:{ps.module}:{ps.version}")
    parameters = SubElement(module, "PARAMETERS")
    dividers = divisors(ps.source_mhz, clock_mhz)
    real_mhz = f"{ps.source_mhz / (dividers[0] * dividers[1]):.6f}"
    values = {ps.frequency: real_mhz, FREQUENCY: real_mhz}
    for clock in range(PL_CLOCKS):
        values[ps.enable.format(clock=clock)] = str(int(clock == 0))
        values[ps.source.format(clock=clock)] = "IO PLL"
        values |= {ps.divisor.format(clock=clock, stage=stage): str(dividers[stage]) for stage in range(2)}
    values |= {ps.widths.format(n=port, gp=port + 2): "64" for port in range(len(ports))}
    for name, value in values.items():
        SubElement(parameters, "PARAMETER", NAME=name, VALUE=value)
    _interfaces(module, {ps.port: ("control", "MASTER")} | {port: (port, "SLAVE") for port in ports})
    shell = (ps.base, ps.base + SHELL_BYTES - 1)
    _memory_range(SubElement(module, "MEMORYMAP"), "REGISTER", *shell, (ps.port, INTERFACE), INSTANCE)
