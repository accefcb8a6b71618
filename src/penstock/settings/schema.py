"""Every setting with its bounds and default, what does not fit together, and what a running daemon can take over.

`config.example.toml` says the same for people, and a test holds the two together. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from penstock.settings.values import (
    SQLITE,
    Address,
    UnixAddress,
    absolute,
    argv,
    listen_address,
    message_pattern,
    named,
    nearest,
    number,
    parse_listen,
    shown,
    store_url,
    variables,
)

BUILT_IN_TOOLCHAINS = ("command", "python")

KeyPath: TypeAlias = tuple[str, ...]
"""A dotted key in its parts; the name of a toolchain may hold dots before it is refused."""

_DAY_SECONDS = 86_400.0
_Argv = Annotated[tuple[str, ...], BeforeValidator(argv)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Daemon(_Section):
    """`[daemon]`: the process itself."""

    state_dir: Annotated[Path, BeforeValidator(named), AfterValidator(absolute)]
    """Everything that lasts. Its default depends on the environment; `resolve` fills it in."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """`auto` = text on a terminal, JSON otherwise."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Api(_Section):
    """`[api]`: where requests are served."""

    listen: Annotated[str, AfterValidator(listen_address)] = "127.0.0.1:8080"

    @property
    def address(self) -> Address:
        """`listen`, read."""
        return parse_listen(self.listen)


class Store(_Section):
    """`[store]`: where rows and events are kept."""

    url: Annotated[str, AfterValidator(store_url)] = "sqlite:///{state_dir}/penstock.db"


class Runner(_Section):
    """`[runner]`: how pipelines are run and stopped."""

    executor: Literal["process"] = "process"
    provisioning_timeout_seconds: Annotated[float, BeforeValidator(number), Field(ge=1, le=_DAY_SECONDS)] = 20.0
    """How long Provisioning may last, unless `runtime_config.provisioning_timeout_secs` says otherwise."""
    unavailable_timeout_seconds: Annotated[float, BeforeValidator(number), Field(ge=0, le=_DAY_SECONDS)] = 0.0
    """How long a process may answer nothing of use before it is stopped; 0 = for as long as it likes."""
    stop_grace_seconds: Annotated[float, BeforeValidator(number), Field(ge=0, le=_DAY_SECONDS)] = 30.0
    """How long a graceful stop may take before it becomes a forced one; 0 = each stop is forced."""
    on_exit: Literal["leave", "stop"] = "leave"
    """What becomes of running pipelines when the daemon is told to end."""
    after_reboot: Literal["start", "leave"] = "start"
    """What becomes of a pipeline that ran when the host went down."""


class Events(_Section):
    """`[events]`: the history of each pipeline."""

    retention: Annotated[int, BeforeValidator(number), Field(ge=1, le=1_000_000)] = 720
    """How many events of a pipeline are kept."""
    details_interval_seconds: Annotated[float, BeforeValidator(number), Field(ge=0, le=30 * _DAY_SECONDS)] = 600.0
    """How often at most a change of details alone becomes an event."""


class Logs(_Section):
    """`[logs]`: what pipelines print."""

    max_bytes: Annotated[int, BeforeValidator(number), Field(ge=262_144, le=1 << 40)] = 10_000_000
    """How much of a pipeline's log is kept."""


class Toolchain(_Section):
    """`[toolchains.NAME]`: one toolchain, or what is changed of a built-in one (design section 4)."""

    check: _Argv = ()
    build: _Argv = ()
    run: _Argv = ()
    contract: Literal["process", "http"] = "process"
    timeout_seconds: Annotated[float, BeforeValidator(number), Field(ge=1, le=_DAY_SECONDS)] = 600.0
    env: Annotated[dict[str, str], BeforeValidator(variables)] = Field(default_factory=dict)
    messages: Annotated[str, AfterValidator(message_pattern)] | None = None


class Toolchains(BaseModel):
    """`[toolchains]`: what gives programs their meaning; every key that is no field is the name of a toolchain."""

    model_config = ConfigDict(frozen=True, extra="allow")
    # pydantic's own way to give keys that are no fields a type.
    __pydantic_extra__: dict[str, Toolchain] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    default: str = "python"
    parallel: Annotated[int, BeforeValidator(number), Field(ge=1, le=64)] = 2
    """How many checks and builds may run at a time."""

    @property
    def named(self) -> Mapping[str, Mapping[str, object]]:
        """The configured toolchains by name, each with the fields that were given and no others."""
        return MappingProxyType({name: one.model_dump(exclude_unset=True) for name, one in self._configured.items()})

    @property
    def _configured(self) -> dict[str, Toolchain]:
        return self.__pydantic_extra__ or {}


class Settings(BaseSettings):
    """Everything that can be set; see `config.example.toml` for units, defaults and reasons. Made by `load`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    daemon: Daemon
    api: Api = Field(default_factory=Api)
    store: Store = Field(default_factory=Store)
    runner: Runner = Field(default_factory=Runner)
    events: Events = Field(default_factory=Events)
    logs: Logs = Field(default_factory=Logs)
    toolchains: Toolchains = Field(default_factory=Toolchains)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Nothing is read behind the caller's back: `resolve` reads, since it must tell where each value came from.
        return (init_settings,)

    @property
    def database_path(self) -> Path:
        """The file of the store."""
        return Path(self.store.url.removeprefix(SQLITE).replace("{state_dir}", str(self.daemon.state_dir)))

    def values(self) -> dict[str, object]:
        """Every setting by its dotted key; of toolchains what was given."""
        flat: dict[str, object] = {}
        for section, fields in self.model_dump(exclude={"toolchains"}).items():
            flat |= {f"{section}.{key}": value for key, value in fields.items()}
        flat |= {"toolchains.default": self.toolchains.default, "toolchains.parallel": self.toolchains.parallel}
        for name, fields in self.toolchains.named.items():
            flat |= {f"toolchains.{name}.{key}": value for key, value in fields.items()} or {f"toolchains.{name}": {}}
        return flat


_RELOADABLE = (
    "daemon.log_level",
    "runner.provisioning_timeout_seconds",
    "runner.unavailable_timeout_seconds",
    "runner.stop_grace_seconds",
    "runner.on_exit",
    "runner.after_reboot",
    "events.",
    "logs.max_bytes",
    "toolchains.",
)


def reloadable_changes(old: Settings, new: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell which keys differ: those that a running daemon can take over, and those that need a restart; sorted."""
    before, after = old.values(), new.values()
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return (
        tuple(key for key in changed if key.startswith(_RELOADABLE)),
        tuple(key for key in changed if not key.startswith(_RELOADABLE)),
    )


def conflicts(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """What is fine by itself and does not fit the rest."""
    toolchains = settings.toolchains
    names = {*BUILT_IN_TOOLCHAINS, *toolchains.named}
    if toolchains.default not in names:
        yield (
            ("toolchains", "default"),
            f"there is no toolchain {shown(toolchains.default)}; {nearest(toolchains.default, names)}",
        )
    for name, fields in toolchains.named.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            yield (
                ("toolchains", name),
                "a toolchain's name has at most 64 of a-z, 0-9, _ and -, and begins with a letter",
            )
        if fields.get("messages") is not None and not fields.get("check", name == "python"):
            yield ("toolchains", name, "messages"), "reads what a check prints, but there is no check; give one"
    pipelines = settings.daemon.state_dir / "pipelines"
    if settings.database_path.is_relative_to(pipelines):
        yield ("store", "url"), f"{pipelines} belongs to the pipelines, whose data is deleted there; keep it elsewhere"
    address = settings.api.address
    if isinstance(address, UnixAddress) and address.path.is_relative_to(pipelines):
        yield ("api", "listen"), f"{pipelines} belongs to the pipelines, whose data is deleted there; keep it elsewhere"
    if isinstance(address, UnixAddress) and address.path == settings.database_path:
        yield ("api", "listen"), "is the file of the store; the socket needs a path of its own"
