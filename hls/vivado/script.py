"""The Tcl that Vivado runs: one script up to the synthesised design, one from there to the bitstream."""

from collections.abc import Sequence
from pathlib import Path

from wattbit.hls.vivado.processor import Processor
from wattbit.hls.vivado.wrapper import CLOCK, CONTROL, INTERRUPT, RESET, WRAPPER
from wattbit.shell import INSTANCE

DESIGN = "wattbit"
CHECKPOINT, BIT, HANDOFF = "synthesised.dcp", f"{DESIGN}.bit", f"{DESIGN}.hwh"
TIMING, UTILISATION = "timing.rpt", "utilisation.rpt"
JOBS = 2


def quote(word: str | Path) -> str:
    """A Tcl word that stands for itself, whatever it holds."""
    text = str(word)
    return "".join(f"\\{c}" if c in '\\{}[]$"; #' else c for c in text)


def synthesis(
    ps: Processor, part: str, clock_mhz: float, masters: Sequence[str], memory_ports: int, files: Sequence[Path]
) -> str:
    """Project, block design and synthesis, ending in CHECKPOINT and HANDOFF in the folder where Vivado runs.

    files: Verilog, SystemVerilog and memory files of the shell and its wrapper. masters: AXI masters of the shell; they
    share the processor's memory ports, as many as there are and needed, in turn.
    """
    used = min(memory_ports, len(masters))
    sharers = [masters[port::used] for port in range(used)]
    lines = [
        f"create_project -force -part {part} {DESIGN} project",
        "add_files -norecurse [list " + " ".join(quote(file) for file in files) + "]",
        "set memories [get_files -quiet *.hex]",
        "if {[llength $memories]} {set_property file_type {Memory File} $memories}",
        "update_compile_order -fileset sources_1",
        f"create_bd_design {DESIGN}",
        *_processor(ps, clock_mhz, used),
        f"create_bd_cell -type module -reference {WRAPPER} {INSTANCE}",
        *_ip("proc_sys_reset", "reset"),
        *_ip("smartconnect", "control", {"NUM_SI": "1", "NUM_MI": "1"}),
        *(line for i, group in enumerate(sharers) for line in _memory_port(ps, i, group)),
        _interface(f"{ps.instance}/{ps.control[0]}", "control/S00_AXI"),
        _interface("control/M00_AXI", f"{INSTANCE}/{CONTROL}"),
        *_clock(ps, used),
        *_reset(ps, used),
        _net(f"{INSTANCE}/{INTERRUPT}", f"{ps.instance}/{ps.interrupt}"),
        f"assign_bd_address -offset {ps.base:#010x} -range 4K -target_address_space "
        f"[get_bd_addr_spaces {ps.instance}/Data] [get_bd_addr_segs {INSTANCE}/{CONTROL}/reg0]",
        "assign_bd_address",
        "validate_bd_design",
        "save_bd_design",
        f"set design [get_files {DESIGN}.bd]",
        "set_property synth_checkpoint_mode None $design",
        "generate_target all $design",
        "add_files -norecurse [list [make_wrapper -files $design -top]]",
        f"set_property top {DESIGN}_wrapper [current_fileset]",
        "update_compile_order -fileset sources_1",
        f"launch_runs synth_1 -jobs {JOBS}",
        "wait_on_runs synth_1",
        'if {[get_property PROGRESS [get_runs synth_1]] ne "100%"} {',
        '  error "synthesis failed: [get_property STATUS [get_runs synth_1]]"',
        "}",
        f"file copy -force project/{DESIGN}.gen/sources_1/bd/{DESIGN}/hw_handoff/{DESIGN}.hwh {HANDOFF}",
        "open_run synth_1",
        f"write_checkpoint -force {CHECKPOINT}",
    ]
    return "\n".join(lines) + "\n"


def implementation() -> str:
    """Placement, routing, reports and the bitstream of CHECKPOINT, in the folder where Vivado runs."""
    lines = [
        f"open_checkpoint {CHECKPOINT}",
        "opt_design",
        "place_design",
        "phys_opt_design",
        "route_design",
        f"report_timing_summary -file {TIMING}",
        f"report_utilization -file {UTILISATION}",
        f"write_bitstream -force {BIT}",
    ]
    return "\n".join(lines) + "\n"


def _ip(name: str, cell: str, settings: dict[str, str] | None = None) -> list[str]:
    """A cell of the newest version of an IP that this Vivado has."""
    lines = [f"create_bd_cell -type ip -vlnv [get_property VLNV [get_ipdefs xilinx.com:ip:{name}:*]] {cell}"]
    return lines + (_settings(cell, settings) if settings else [])


def _settings(cell: str, settings: dict[str, str]) -> list[str]:
    values = " ".join(f"CONFIG.{name} {{{value}}}" for name, value in settings.items())
    return [f"set_property -dict [list {values}] [get_bd_cells {cell}]"]


def _processor(ps: Processor, clock_mhz: float, ports: int) -> list[str]:
    lines = _ip(ps.ip, ps.instance)
    if ps.external:
        config = '{make_external "FIXED_IO, DDR" apply_board_preset "0"}'
        rule = f"xilinx.com:bd_rule:{ps.ip}"
        lines.append(f"apply_bd_automation -rule {rule} -config {config} [get_bd_cells {ps.instance}]")
    return lines + _settings(ps.instance, ps.configuration(clock_mhz, ports))


def _memory_port(ps: Processor, port: int, masters: Sequence[str]) -> list[str]:
    """One memory port of the processor behind a SmartConnect, which also makes AXI3 of AXI4 for Zynq-7000."""
    cell = f"memory{port}"
    return [
        *_ip("smartconnect", cell, {"NUM_SI": str(len(masters)), "NUM_MI": "1"}),
        *(_interface(f"{INSTANCE}/{master}", f"{cell}/S{i:02d}_AXI") for i, master in enumerate(masters)),
        _interface(f"{cell}/M00_AXI", f"{ps.instance}/{ps.memory[0].format(n=port)}"),
    ]


def _interface(one: str, other: str) -> str:
    return f"connect_bd_intf_net [get_bd_intf_pins {one}] [get_bd_intf_pins {other}]"


def _net(source: str, *sinks: str) -> str:
    return "connect_bd_net " + " ".join(f"[get_bd_pins {pin}]" for pin in (source, *sinks))


def _clock(ps: Processor, ports: int) -> list[str]:
    cells = ["control", *(f"memory{port}" for port in range(ports))]
    own = [ps.control[1], *(ps.memory[1].format(n=port) for port in range(ports))]
    sinks = [f"{ps.instance}/{pin}" for pin in own] + [f"{cell}/aclk" for cell in cells]
    return [_net(f"{ps.instance}/{ps.clock}", *sinks, "reset/slowest_sync_clk", f"{INSTANCE}/{CLOCK}")]


def _reset(ps: Processor, ports: int) -> list[str]:
    cells = ["control", *(f"memory{port}" for port in range(ports))]
    return [
        _net(f"{ps.instance}/{ps.reset}", "reset/ext_reset_in"),
        _net("reset/interconnect_aresetn", *(f"{cell}/aresetn" for cell in cells)),
        _net("reset/peripheral_aresetn", f"{INSTANCE}/{RESET}"),
    ]
