"""finn-rtllib made fit for Verilator and yosys: a patched copy of the installed package in the build folder.

Nothing of the library is kept in this repository: each patch finds its place by a pattern in the installed files and
must match exactly as often as stated, so that another version of finn-plus is noticed and not built wrongly.
"""

import importlib.metadata
import importlib.util
import re
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

from wattbit.errors import WattbitError
from wattbit.files import digest_json

# In compile order: packages first.
SOURCES = (
    "mvu/mvu_pkg.sv",
    "mvu/add_multi.sv",
    "mvu/replay_buffer.sv",
    "mvu/mvu.sv",
    "mvu/mvu_vvu_axi.sv",
    "memstream/hdl/memstream.sv",
    "fifo/hdl/fifo.sv",
    "requant/hdl/requant_decoupled.sv",
    "requant/hdl/requant_axi_decoupled.sv",
)


@dataclass(frozen=True)
class Patch:
    """Replace every match of the regular expression `old` in `file`, which must be `count` matches, by `new`."""

    file: str
    old: str
    new: str
    count: int = 1


# The leaves below node i of a heap with nodes 0..2N-2, of which N-1..2N-2 are leaves, level by level.
_LEAF_LOAD = r"""	function automatic int unsigned leaf_load(input int unsigned  i);
		automatic int unsigned  first = i, last = i, n = 0;
		while(first < 2*N-1) begin
			if(last >= N-1)  n += (last < 2*N-2? last : 2*N-2) - (first > N-1? first : N-1) + 1;
			first = 2*first + 1;
			last  = 2*last  + 2;
		end
		return  n;
	endfunction : leaf_load

"""


_LOGIC = """		else if(LOGIC) begin : genLogic
			engine_products #(
				.PE(PE), .SIMD(SIMD), .WEIGHT_WIDTH(WEIGHT_WIDTH), .ACTIVATION_WIDTH(ACTIVATION_WIDTH),
				.ACCU_WIDTH(ACCU_WIDTH), .SIGNED_ACTIVATIONS(SIGNED_ACTIVATIONS)
			) core (
				.clk(ap_clk), .rst,
				.last(dsp_last), .zero(dsp_zero), .w(dsp_w), .a(dsp_a),
				.vld(dsp_vld), .p(dsp_p)
			);
		end : genLogic
		else begin : genSoftVec
"""


def _circular(file: str, array: str, declared: str, entries: str, push: str, data: str, tap: str) -> tuple[Patch, ...]:
    """Turn a shift register `array[declared]` of `entries` entries into a circular buffer with the same contents.

    It takes `data` on `push` and is read at `tap`, 0 being the youngest entry.
    """
    pointer, bits = f"{array}Wr", f"{array}_BITS"
    return (
        Patch(
            file,
            rf'\(\* SHREG_EXTRACT = "\w+" \*\)\s+(\w+\s+){array}\[{re.escape(declared)}\];',
            f"localparam int unsigned  {bits} = $clog2({entries});\n\t\tlogic [{bits}-1:0]  {pointer} = 0;\n"
            rf'\t\t(* ram_style = "distributed" *) \1{array}[2**{bits}];',
        ),
        Patch(
            file,
            rf"if\({push}\)\s+{array} <= \{{[^}}]*\}};",
            f"if({push}) begin\n\t\t\t\t{array}[{pointer}] <= {data};\n\t\t\t\t{pointer} <= {pointer} + 1;\n\t\t\tend",
        ),
        Patch(file, re.escape(f"{array}[{tap}]"), f"{array}[{bits}'({pointer} - 1 - {tap})]"),
    )


PATCHES = (
    # Constant functions under `generate` are against IEEE 1800 13.4.3; both tools refuse them.
    Patch("mvu/add_multi.sv", r"\t\ttypedef int unsigned  leaf_load_t(?s:.*?)= init_leaf_loads\(\);\n", ""),
    Patch("mvu/add_multi.sv", r"LEAF_LOAD\[(\w+)\]", r"leaf_load(\1)", 3),
    Patch("mvu/add_multi.sv", r"(?=\tlocalparam int unsigned  L = \$clog2\(N\);)", _LEAF_LOAD),
    Patch("memstream/hdl/memstream.sv", r"\t\ttypedef addr_t  offset_table_t(?s:.*?)= INIT_OFFSET_TABLE\(\);\n", ""),
    Patch("memstream/hdl/memstream.sv", r"OFFSET_TABLE\[sidx\]", "addr_t'(sidx * DEPTH)"),
    # A warning about DSP slices in simulation, not synthesisable.
    Patch("mvu/mvu.sv", r"if\(1\) begin : blkRecoveryWatch", "if(0) begin : blkRecoveryWatch"),
    # Products in logic, by `engine_products`, as an alternative to DSP slices.
    Patch("mvu/mvu_vvu_axi.sv", r"(?=\tbit M_REG_LUT = 1,\n)", "\tbit LOGIC = 0,\n"),
    Patch("mvu/mvu_vvu_axi.sv", r"\t\telse begin : genSoftVec\n", _LOGIC),
    # Verilator evaluates constant functions on packed structs only.
    Patch("fifo/hdl/fifo.sv", r"typedef struct \{", "typedef struct packed {"),
    # Shift registers with a variable tap: yosys infers no SRL and spends flip-flops and multiplexers on them, some
    # 2/3 of an engine. As circular buffers with the same contents they become LUT RAM.
    *_circular("memstream/hdl/memstream.sv", "OSrl", "FULL_CREDIT-1", "FULL_CREDIT-1", "Rs3", "Dat3", "OPtr"),
    *_circular(
        *("mvu/mvu_vvu_axi.sv", "OBuf", "0:MAX_IN_FLIGHT", "MAX_IN_FLIGHT+1"),
        *("ovld", "odat", "OPtr[$left(OPtr)-1:0]"),
    ),
    *_circular("fifo/hdl/fifo.sv", "A", "DEPTH_IMPL", "DEPTH_IMPL", "push", "idat", "Ptr[$left(Ptr)-1:0]"),
    # slang: no `default_nettype inside a module.
    *(
        Patch(file, r"(?m)^`default_nettype \w+\n", "", 2)
        for file in ("fifo/hdl/fifo.sv", "requant/hdl/requant_decoupled.sv", "requant/hdl/requant_axi_decoupled.sv")
    ),
)


def patched(out: Path) -> tuple[Path, ...]:
    """Copy the sources that the engines need into a folder of `out`, patched, and return them in compile order.

    The folder's name is a digest of the package's version and the patches; an existing one is taken as it is.
    Raises WattbitError when finn-plus is missing or a patch does not fit its version.
    """
    version, library = _installed()
    folder = out / f"rtllib-{digest_json([version, SOURCES, [astuple(p) for p in PATCHES]])}"
    if not folder.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rtllib-", dir=out) as name:
            temporary = Path(name) / "rtllib"
            for source in SOURCES:
                path = temporary / Path(source).name
                path.parent.mkdir(exist_ok=True)
                path.write_text(_patch(source, (library / source).read_text(encoding="utf-8"), version), "utf-8")
            temporary.rename(folder)
    return tuple(folder / Path(source).name for source in SOURCES)


def _installed() -> tuple[str, Path]:
    spec = importlib.util.find_spec("finn")
    if spec is None or spec.origin is None:
        raise WattbitError("finn-plus is not installed; run `make setup`")
    return importlib.metadata.version("finn-plus"), Path(spec.origin).parent / "finn-rtllib"


def _patch(source: str, text: str, version: str) -> str:
    for patch in PATCHES:
        if patch.file == source:
            text, count = re.subn(patch.old, patch.new, text)
            if count != patch.count:
                raise WattbitError(
                    f"finn-plus {version}: the patch {patch.old!r} of {source} fits {count} times instead of "
                    f"{patch.count}; install the version that pyproject.toml pins"
                )
    return text
