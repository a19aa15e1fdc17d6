"""The boards that wattbit knows, one TOML file each in `targets/`: what they are, how to reach them, their sensors."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from wattbit.board.meters import LAST_PORT
from wattbit.board.overlay import processing_system
from wattbit.board.ssh import Connection
from wattbit.clock import delivered_mhz
from wattbit.errors import WattbitError
from wattbit.plan import Target

FOLDER = Path(__file__).parent / "targets"

PowerSourceName = Literal["hwmon", "pynq", "rapl", "nvml", "simulated", "external", "none"]
WITHOUT_RAIL = ("external", "none")
Tier = Literal["light", "system"]


@dataclass(frozen=True)
class Ssh:
    """How to reach a board; what is None is left to ~/.ssh/config.

    launch: what the agent is started behind, for root's rights and for the environment that the board's image sets in
    /etc/profile.d, which a command over SSH does not get by itself.
    """

    host: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    launch: tuple[str, ...] = ()

    @classmethod
    def from_toml(cls, record: Mapping[str, Any]) -> Self:
        _check_fields(cls, "the table [ssh]", record)
        if not record["host"]:
            raise WattbitError("host in the table [ssh] is empty; name the board")
        if not 0 < record.get("port", 1) <= LAST_PORT:
            raise WattbitError(f"port in the table [ssh] must be from 1 to {LAST_PORT}, not {record['port']}")
        paths = {name: Path(record[name]).expanduser() for name in ("identity", "known_hosts") if name in record}
        return cls(**dict(record) | paths | {"launch": tuple(record.get("launch", ()))})

    def connection(self, host: str | None = None) -> Connection:
        """A connection, not yet open; `host`, or `user@host`, takes the place of the file's."""
        user, _, name = (host or self.host).rpartition("@")
        return Connection(
            name,
            self.port,
            user or self.user,
            identity=self.identity,
            known_hosts=self.known_hosts,
            launch=self.launch,
        )


@dataclass(frozen=True)
class Power:
    """What a board knows of its power.

    source: `hwmon` (the kernel's sensor class), `pynq` (pynq.get_rails()), `rapl`, `nvml`, `simulated`, `external` (it
    has no sensor: a meter beside it, named with --meter), or `none` (no energy figure).
    rail: what is measured. rails: more rails, name = the sensor in that source's words; a rail that is not among them
    is such a word itself. settle_s: wait between loading a design and measuring.
    """

    source: PowerSourceName
    rail: str | None = None
    rails: Mapping[str, str] = field(default_factory=dict)
    settle_s: float = 0.0

    @classmethod
    def from_toml(cls, record: Mapping[str, Any]) -> Self:
        _check_fields(cls, "the table [power]", record)
        power = cls(**record)
        if power.settle_s < 0:
            raise WattbitError(f"settle_s in the table [power] must not be negative, as {power.settle_s:g} is")
        if (power.rail is None) != (power.source in WITHOUT_RAIL):
            raise WattbitError(
                f"[power] with source {power.source} and rail {power.rail}: every source but "
                f"{' and '.join(WITHOUT_RAIL)} has one"
            )
        return power

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


SIMULATED = Power("simulated", rail="simulated 5V", settle_s=10.0)


@dataclass(frozen=True)
class Virtual:
    """A virtual board, which has no [ssh]; tier: `light` (wattbit.board.virtual) or `system` (wattbit.board.system)."""

    tier: Tier

    @classmethod
    def from_toml(cls, record: Mapping[str, Any]) -> Self:
        _check_fields(cls, "the table [virtual]", record)
        return cls(**record)


@dataclass(frozen=True)
class BoardTarget:
    """A board: what it is, how to reach it, and its power sensor. tier: of a virtual one, see `Virtual`."""

    target: Target
    ssh: Ssh | None
    power: Power
    tier: Tier | None = None

    def __post_init__(self) -> None:
        if (self.ssh is None) == (self.tier is None):
            raise WattbitError("a board needs a table [ssh], or [virtual] when it is a virtual one")


def known() -> tuple[str, ...]:
    """Names of the boards that come with wattbit."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load(name_or_path: str) -> BoardTarget:
    """A known board by name, or one described in a TOML file of the same form.

    Its clock_mhz is what its processing system delivers when it is asked for the file's: that or the next lower one.
    Raises WattbitError for an unknown name, with those that are known, and for a file that is not of this form.
    """
    path = FOLDER / f"{name_or_path}.toml"
    if name_or_path not in known():
        path = Path(name_or_path)
        if path.suffix != ".toml":
            raise WattbitError(
                f"there is no board {name_or_path!r}; known are {', '.join(known())}, or name a TOML file"
            )
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WattbitError(f"{path} does not exist; known boards are {', '.join(known())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WattbitError(f"{path} is not TOML: {error}") from None
    try:
        tables = {name: record.pop(name) for name in ("ssh", "power", "virtual") if name in record}
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise WattbitError(f"{name} must be a table, [{name}], not {table!r}")
        target = record | {"name": path.stem}
        _check_fields(Target, "the board", target)
        return BoardTarget(
            _clocked(Target.from_json(target)),
            Ssh.from_toml(tables["ssh"]) if "ssh" in tables else None,
            Power.from_toml(tables.get("power", {"source": "external"})),
            Virtual.from_toml(tables["virtual"]).tier if "virtual" in tables else None,
        )
    except WattbitError as error:
        raise WattbitError(f"{path}: {error}") from None


def _clocked(target: Target) -> Target:
    if target.part is None or target.clock_mhz is None:
        return target
    source_mhz = processing_system(target.part).source_mhz
    return replace(target, clock_mhz=delivered_mhz(source_mhz, target.clock_mhz))


def _check_fields(kind: type, where: str, record: Mapping[str, Any]) -> None:
    """WattbitError unless a table has the fields of a dataclass, all that have no default, each of its type."""
    known = {one.name: one for one in fields(kind)}
    for name in record:
        if name not in known:
            raise WattbitError(f"{where} has no field {name!r}; its fields are {', '.join(known)}")
    for name, one in known.items():
        if name not in record and one.default is MISSING and one.default_factory is MISSING:
            raise WattbitError(f"{where} needs the field {name}")
    for name, hint in get_type_hints(kind).items():
        if name in record and not _is(record[name], hint):
            raise WattbitError(f"{name} in {where} must be {_words(hint)}, not {record[name]!r}")


def _is(value: Any, hint: Any) -> bool:
    """Whether a TOML value can stand for a field of this type: a list for a tuple, text for a path."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin is UnionType:
        return any(_is(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, list) and all(_is(each, inner[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(_is(each, inner[1]) for each in value.values())
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str if hint is Path else hint)


def _words(hint: Any) -> str:
    """What a field of this type is in a TOML file."""
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(inner)}"
    if get_origin(hint) is UnionType:
        return _words(inner[0])  # TOML has no None: a field is left out
    return {int: "a whole number", float: "a number", tuple: "a list of strings", Mapping: "a table of strings"}.get(
        get_origin(hint) or hint, "a string"
    )
