"""Settings: one tree, frozen, with defaults that run on a bare host.

Precedence: command line > environment ``TEGUMENTAR_*`` (nested with ``__``) > ``tegumentar.toml`` > defaults.
A value that does not fit is reported with field, value and reason; secrets are ``SecretStr`` and never printed.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[int, Field(ge=1, le=100_000_000)]


def _default_dir(kind: str, fallback: str, home: str) -> Path:
    """The conventional directory for root, an XDG one for everybody else."""
    return Path(fallback) if os.geteuid() == 0 else Path.home() / home / kind


class Section(BaseModel):
    """A part of the tree. Unknown keys are errors: a misspelt setting that does nothing is a hole in a firewall."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ReflexSettings(Section):
    """XDP data plane. Rates are per source (IPv6: per /64) and second; bursts in packets."""

    rungs: tuple[Literal["native", "tcx", "generic", "nft_ingress", "nft_prerouting", "observe"], ...] = (
        "native", "tcx", "generic", "nft_ingress", "nft_prerouting", "observe",
    )  # fmt: skip
    syn_rate: Rate = 200
    syn_burst: Rate = 400
    udp_rate: Rate = 5_000
    udp_burst: Rate = 10_000
    icmp_rate: Rate = 50
    icmp_burst: Rate = 100
    total_rate: Rate = 50_000
    total_burst: Rate = 100_000
    ban_seconds: Seconds = 60.0
    drop_malformed: bool = True
    max_bans: Annotated[int, Field(ge=1024, le=1_048_576)] = 131_072


class KeratinocyteSettings(Section):
    """nftables filter."""

    table: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,30}$")] = "tegumentar_epiderme"
    max_elements: Annotated[int, Field(ge=1024, le=4_194_304)] = 262_144


class PermeabilitySettings(Section):
    """Policy: the gate that every verdict passes."""

    posture: Literal["explore", "balanced", "hardened", "lockdown"] = "balanced"
    management_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (22,)
    service_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (22, 80, 443)
    tolerate: tuple[str, ...] = ()
    ban_seconds: Seconds = 600.0
    ban_seconds_max: Seconds = 86_400.0
    #: autoimmune guard: more automatic bans than this in the window stop automatic blocking and raise an alarm
    autoimmune_bans: Annotated[int, Field(ge=1)] = 2_000
    autoimmune_window_s: Seconds = 10.0
    autoimmune_rest_s: Seconds = 60.0


class MemorySettings(Section):
    """Persistence: SQLite journal on the node; PostgreSQL beyond it when a DSN is given."""

    postgres_dsn: SecretStr | None = None
    keep_days: Annotated[int, Field(ge=1)] = 30
    max_megabytes: Annotated[int, Field(ge=16)] = 1_024


class MerkelSettings(Section):
    """Telemetry."""

    baseline_minutes: Annotated[float, Field(gt=0)] = 30.0


class GatewaySettings(Section):
    """HTTP API, metrics, console."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8085
    enabled: bool = True


class FeedSettings(Section):
    """IP reputation feeds."""

    enabled: bool = True
    refresh_minutes: Annotated[float, Field(ge=1)] = 15.0
    directory: Path | None = None
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    allow_private: bool = False


class SupervisorSettings(Section):
    """Restart policy. Seconds."""

    heartbeat_s: Seconds = 1.0
    missed_heartbeats: Annotated[int, Field(ge=2)] = 3
    start_limit_s: Seconds = 10.0
    backoff_first_s: Seconds = 0.1
    backoff_cap_s: Seconds = 30.0
    stable_s: Seconds = 60.0
    failures_max: Annotated[int, Field(ge=1)] = 5
    failures_window_s: Seconds = 60.0
    off: tuple[str, ...] = ()  #: cells that shall not run


class Settings(BaseSettings):
    """The whole tree. Top-level fields are what several nodes on one machine must differ in."""

    model_config = SettingsConfigDict(
        env_prefix="TEGUMENTAR_", env_nested_delimiter="__", extra="forbid", frozen=True, nested_model_default_partial_update=True
    )

    state_dir: Path = Field(default_factory=lambda: _default_dir("tegumentar", "/var/lib/tegumentar", ".local/state"))
    run_dir: Path = Field(default_factory=lambda: _default_dir("tegumentar-run", "/run/tegumentar", ".local/state"))
    log_dir: Path = Field(default_factory=lambda: _default_dir("tegumentar-log", "/var/log/tegumentar", ".local/state"))
    bpf_dir: Path = Path("/sys/fs/bpf/tegumentar")
    interfaces: Annotated[tuple[str, ...], NoDecode] = ()  #: empty: the interfaces of the default routes
    user: str = "tegumentar"  #: who the unprivileged cells become; a name or a number; numeric fallback when absent
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    reflex: ReflexSettings = ReflexSettings()
    keratinocyte: KeratinocyteSettings = KeratinocyteSettings()
    permeability: PermeabilitySettings = PermeabilitySettings()
    memory: MemorySettings = MemorySettings()
    merkel: MerkelSettings = MerkelSettings()
    gateway: GatewaySettings = GatewaySettings()
    feeds: FeedSettings = FeedSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
