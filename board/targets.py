"""The boards that wattbit knows, one TOML file each in `targets/`: what they are, how to reach them, their sensors."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from wattbit.board.ssh import Connection
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
        _refuse_strange(cls, "ssh", record)
        if "host" not in record:
            raise WattbitError("the table [ssh] of a board needs host")
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
        _refuse_strange(cls, "power", record)
        sources = get_args(PowerSourceName)
        if record.get("source") not in sources:
            raise WattbitError(f"source in [power] must be one of {', '.join(sources)}, not {record.get('source')!r}")
        power = cls(**record)
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
class BoardTarget:
    """A board: what it is, how to reach it, and its power sensor.

    tier: of a virtual board, which has no [ssh]: `light` (wattbit.board.virtual) or `system` (wattbit.board.system).
    """

    target: Target
    ssh: Ssh | None
    power: Power
    tier: Tier | None = None

    def __post_init__(self) -> None:
        if (self.ssh is None) == (self.tier is None):
            raise WattbitError("a board needs a table [ssh], or [virtual] when it is a virtual one")
        if self.tier not in (None, *get_args(Tier)):
            raise WattbitError(f"tier in [virtual] must be one of {', '.join(get_args(Tier))}, not {self.tier!r}")


def known() -> tuple[str, ...]:
    """Names of the boards that come with wattbit."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load(name_or_path: str) -> BoardTarget:
    """A known board by name, or one described in a TOML file of the same form.

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
        ssh = record.pop("ssh", None)
        power = record.pop("power", {"source": "external"})
        virtual = record.pop("virtual", {})
        return BoardTarget(
            Target.from_json(record | {"name": path.stem}),
            None if ssh is None else Ssh.from_toml(ssh),
            Power.from_toml(power),
            virtual.get("tier"),
        )
    except WattbitError as error:
        raise WattbitError(f"{path}: {error}") from None


def _refuse_strange(kind: type, table: str, record: Mapping[str, Any]) -> None:
    allowed = [field.name for field in fields(kind)]
    for name in record:
        if name not in allowed:
            raise WattbitError(f"the table [{table}] has no field {name!r}; its fields are {', '.join(allowed)}")
