"""Toolchain `vivado`: project, block design, implementation, reports and bitstream. Untested on hardware."""

import os
import shutil
from pathlib import Path

from wattbit.clock import delivered_mhz
from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_json, write_text
from wattbit.hls.shell import ShellRtl
from wattbit.hls.toolchain import Bitstream, ToolchainName
from wattbit.hls.vivado.processor import processor
from wattbit.hls.vivado.reports import clock, last_error, timing, utilisation, version
from wattbit.hls.vivado.script import BIT, CHECKPOINT, HANDOFF, TIMING, UTILISATION, implementation, synthesis
from wattbit.hls.vivado.wrapper import WRAPPER, wrapper
from wattbit.plan import Target
from wattbit.processes import execute
from wattbit.progress import Progress, silent

OLDEST, NEWEST = "2022.2", "2025.2"  # the versions whose documents the Tcl follows
SYNTHESIS_LOG = Path("project/wattbit.runs/synth_1/runme.log")


class VivadoToolchain:
    """Vivado, where it is on PATH. Both of its steps resume: a finished one with the same inputs is not redone."""

    name: ToolchainName = "vivado"
    chip_share = 0.8  # UG949 advises to leave a fifth

    def available(self, target: Target) -> str | None:
        if shutil.which("vivado") is None:
            return f"vivado is not on PATH; install Vivado {OLDEST} to {NEWEST} and source its settings64.sh"
        if target.part is None or target.clock_mhz is None:
            return f"target {target.name} has no programmable logic"
        try:
            ps = processor(target.part)
        except WattbitError as error:
            return str(error)
        if target.arch != ps.arch:
            return f"{target.name} is simulated, for no {target.part} has {target.arch} cores; it loads no bitstream"
        found = _version()
        if found is None:
            return "`vivado -version` names no version; source its settings64.sh again"
        if not OLDEST <= found <= NEWEST:
            return f"Vivado {found} is not among the supported versions, {OLDEST} to {NEWEST}; source another one's"
        return None

    def build(self, shell: ShellRtl, target: Target, out: Path, progress: Progress = silent) -> Bitstream:
        reason = self.available(target)
        if reason is not None or target.part is None or target.clock_mhz is None:
            raise WattbitError(f"toolchain vivado cannot build for {target.name}: {reason}")
        top = (shell.folder / f"{shell.top}.v").read_text(encoding="utf-8")
        write_text(out / f"{WRAPPER}.v", wrapper(top, shell.top))
        files = [(shell.folder / name).absolute() for name in (*shell.sources, *shell.memories)]
        files.append((out / f"{WRAPPER}.v").absolute())
        found = _version()
        ps = processor(target.part)
        first = synthesis(ps, target.part, target.clock_mhz, shell.masters, target.memory_ports, files)
        progress("Vivado: synthesis", 0, 2)
        _step(out, "synthesis", first, [shell.digest, found], [CHECKPOINT, HANDOFF])
        progress("Vivado: implementation", 1, 2)
        _step(
            out, "implementation", implementation(), [sha256_file(out / CHECKPOINT), found], [TIMING, UTILISATION, BIT]
        )
        progress("Vivado: implementation", 2, 2)
        slack = timing((out / TIMING).read_text(encoding="utf-8"))
        if slack.hold_ns < 0:
            raise WattbitError(
                f"hold requirements are missed by {-slack.hold_ns:g} ns at any clock; see {out / TIMING}"
            )
        clock_mhz, pll_mhz = clock((out / HANDOFF).read_text(encoding="utf-8"), ps)
        fmax_mhz = slack.fmax_mhz(clock_mhz)
        return Bitstream(
            toolchain="vivado",
            part=target.part,
            bit=out / BIT,
            hwh=out / HANDOFF,
            libraries={},
            clock_mhz=delivered_mhz(pll_mhz, min(clock_mhz, fmax_mhz)),
            fmax_mhz=round(fmax_mhz, 1),
            utilisation=utilisation((out / UTILISATION).read_text(encoding="utf-8")),
            tool_versions={"vivado": found or ""},
            seed=None,
            checks={"setup_slack_ns": slack.setup_ns, "hold_slack_ns": slack.hold_ns},
        )


def _version() -> str | None:
    done = execute(["vivado", "-version"])
    return version(done.stdout + done.stderr) if done.returncode == 0 else None


def _step(out: Path, name: str, script: str, inputs: list[str | None], products: list[str]) -> None:
    """Run a script in `out` unless it has left its products there from the same inputs.

    Raises WattbitError with the log's last error and its place.
    """
    stamp = out / f"{name}.json"
    key = digest_json([script, inputs])
    paths = [out / product for product in products]
    if stamp.is_file() and read_json(stamp) == {"key": key, "sha256": _digests(paths)}:
        return
    stamp.unlink(missing_ok=True)
    write_text(out / f"{name}.tcl", script)
    log = out / f"{name}.log"
    for old in (log, out / SYNTHESIS_LOG, *paths):
        old.unlink(missing_ok=True)
    command = ["vivado", "-mode", "batch", "-nojournal", "-notrace", "-log", log.name, "-source", f"{name}.tcl"]
    done = execute(command, out, os.environ | {"LC_ALL": "C"})
    if done.returncode or None in _digests(paths):
        error = last_error((out / SYNTHESIS_LOG, log))
        raise WattbitError(f"Vivado's {name} failed with exit status {done.returncode}: {error}; its log is {log}")
    write_json(stamp, {"key": key, "sha256": _digests(paths)})


def _digests(paths: list[Path]) -> list[str | None]:
    return [sha256_file(path) if path.is_file() else None for path in paths]
