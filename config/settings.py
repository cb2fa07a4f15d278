"""Settings: one tree, frozen, with defaults that run on a bare host.

``Settings()`` is the tree of defaults; ``config.load.load()`` is how a process gets the real one: command line >
environment ``TEGUMENTAR_*`` (nested with ``__``) > ``tegumentar.toml`` > the service manager's directories > defaults.
A value that does not fit is reported with field, value and reason; secrets are ``SecretStr`` and never printed.
"""

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator

from config import dsn
from config.sources import default_dir

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[int, Field(ge=1, le=100_000_000)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _listed(value: Any) -> Any:
    """A list may be written as JSON or as ``a,b``, because an environment variable holds only text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    return json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",") if part.strip()]


def _prefix(value: str) -> str:
    """Canonical text of an address or prefix; a host carries no length."""
    try:
        network = ipaddress.ip_network(value.strip(), strict=False)
    except ValueError as exc:
        raise ValueError(f"{value!r} is no IPv4 or IPv6 address or prefix") from exc
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _interface(value: str) -> str:
    if not re.fullmatch(r"[^\s/:]{1,15}", value) or value in {".", ".."}:
        raise ValueError(f"{value!r} cannot be the name of a network interface")
    return value


Listed = BeforeValidator(_listed)
Prefix = Annotated[str, AfterValidator(_prefix)]
Interface = Annotated[str, AfterValidator(_interface)]


class Section(BaseModel):
    """A part of the tree. Unknown keys are errors: a misspelt setting that does nothing is a hole in a firewall."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ReflexSettings(Section):
    """XDP data plane. Rates are per source (IPv6: per /64) and second; bursts in packets."""

    rungs: Annotated[
        tuple[Literal["native", "tcx", "generic", "nft_ingress", "nft_prerouting", "observe"], ...], Listed
    ] = ("native", "tcx", "generic", "nft_ingress", "nft_prerouting", "observe")
    syn_rate: Rate = 200
    syn_burst: Rate = 400
    #: full frames of a tunnel (WireGuard) or QUIC peer at 280 Mbit/s; a peer that is faster is to be tolerated
    udp_rate: Rate = 25_000
    udp_burst: Rate = 50_000
    icmp_rate: Rate = 50
    icmp_burst: Rate = 100
    #: full frames of a server that this node downloads from at 2.8 Gbit/s: answers count as packets of a source, too
    total_rate: Rate = 250_000
    total_burst: Rate = 500_000
    ban_seconds: Seconds = 60.0
    #: auto: the compiled program through libbpf, and where that cannot be used, BCC compiles it here from source
    loader: Literal["auto", "libbpf", "bcc"] = "auto"
    drop_malformed: bool = True
    syn_cookies: bool = True
    #: account what leaves, too, so that flow records show both sides
    egress_flows: bool = True
    max_bans: Annotated[int, Field(ge=1024, le=1_048_576)] = 131_072


class KeratinocyteSettings(Section):
    """nftables filter."""

    table: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,30}$")] = "tegumentar_epiderme"
    max_elements: Annotated[int, Field(ge=1024, le=4_194_304)] = 262_144


class PermeabilitySettings(Section):
    """Policy: the gate that every verdict passes."""

    posture: Literal["explore", "balanced", "hardened", "lockdown"] = "balanced"
    management_ports: Annotated[tuple[Port, ...], Listed] = (22,)
    service_ports: Annotated[tuple[Port, ...], Listed] = (22, 80, 443)
    tolerate: Annotated[tuple[Prefix, ...], Listed] = ()
    ban_seconds: Seconds = 600.0
    ban_seconds_max: Seconds = 86_400.0
    vaccine_seconds: Seconds = 3_600.0  #: how long a hostile payload found here is dropped from everybody
    #: autoimmune guard: more automatic bans than this in the window stop automatic blocking and raise an alarm
    autoimmune_bans: Annotated[int, Field(ge=1)] = 2_000
    autoimmune_window_s: Seconds = 10.0
    autoimmune_rest_s: Seconds = 60.0


class MemorySettings(Section):
    """Persistence: SQLite journal on the node; PostgreSQL beyond it when a DSN, or a host, is given."""

    postgres_dsn: SecretStr | None = None  #: kept in canonical form, password percent-encoded
    postgres_host: str = ""
    postgres_port: Port = 5432
    postgres_user: str = "tegumentar"
    postgres_password: SecretStr | None = None
    postgres_database: str = "tegumentar"
    postgres_keep_days: Annotated[int, Field(ge=1)] = 365
    keep_days: Annotated[int, Field(ge=1)] = 30
    max_megabytes: Annotated[int, Field(ge=16)] = 1_024

    @field_validator("postgres_dsn")
    @classmethod
    def _canonical_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        return SecretStr(dsn.parse_postgres(value.get_secret_value()).url())

    def postgres(self) -> dsn.Target | None:
        """The PostgreSQL server to use, from the DSN or from its parts; ``None`` when neither is given."""
        if self.postgres_dsn is not None:
            return dsn.parse_postgres(self.postgres_dsn.get_secret_value())
        if not self.postgres_host:
            return None
        socket = self.postgres_host if self.postgres_host.startswith("/") else ""
        return dsn.Target(
            scheme="postgresql",
            host="" if socket else self.postgres_host,
            port=0 if socket else self.postgres_port,
            user=self.postgres_user,
            password=_secret(self.postgres_password),
            name=self.postgres_database,
            socket=socket,
            options=(("host", socket),) if socket else (),
        )


class RedisSettings(Section):
    """Redis, shared by the nodes of a fleet. Nothing is contacted unless an URL or a host is given."""

    url: SecretStr | None = None  #: kept in canonical form, password percent-encoded
    host: str = ""
    port: Port = 6379
    user: str = ""
    password: SecretStr | None = None
    database: Annotated[int, Field(ge=0, le=1023)] = 0

    @field_validator("url")
    @classmethod
    def _canonical_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        return SecretStr(dsn.parse_redis(value.get_secret_value()).url())

    def target(self) -> dsn.Target | None:
        """The Redis server to use, from the URL or from its parts; ``None`` when neither is given."""
        if self.url is not None:
            return dsn.parse_redis(self.url.get_secret_value())
        if not self.host:
            return None
        return dsn.Target(
            scheme="redis",
            host=self.host,
            port=self.port,
            user=self.user,
            password=_secret(self.password),
            name=str(self.database),
        )


class ThrottlerSettings(Section):
    """Adaptive rate limiting."""

    #: under strain the kernel's per-source budgets are tightened, down to ``floor`` of what [reflex] says
    adapt: bool = True
    floor: Annotated[float, Field(ge=0.05, le=1)] = 0.25
    #: what this node may send by each protected interface, Mbit/s; tightened under strain too; 0: no shaper
    shape_egress_mbit: Annotated[float, Field(ge=0, le=400_000)] = 0.0
    #: for rate-limit questions that name no limit of their own: tokens per period; burst 0: as many as the limit
    limit: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100
    limit_period_s: Annotated[float, Field(ge=0.001, le=86_400)] = 1.0
    limit_burst: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0


class KafkaSettings(Section):
    """Kafka, for threat intelligence between nodes. Nothing is contacted unless servers are named (``host:port``)."""

    bootstrap_servers: Annotated[tuple[Annotated[str, Field(pattern=r"^[^\s,]+:\d{1,5}$")], ...], Listed] = ()


class LymphSettings(Section):
    """Immunity shared with other nodes over Kafka: who this node is, whom it knows, and whom it believes."""

    #: this node's name in the fleet; empty: the host name
    node: Annotated[str, Field(pattern=r"^[0-9A-Za-z._-]{0,63}$")] = ""
    #: public keys of the nodes that are known, as ``name=key``; besides the lines of ``<state_dir>/lymph/keyring``
    keys: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9A-Za-z._-]{1,63}=[0-9A-Fa-f]{64}$")], ...], Listed] = ()
    trusted_nodes: Annotated[tuple[str, ...], Listed] = ()  #: what one of these says applies at once
    quorum: Annotated[int, Field(ge=1, le=1000)] = 2  #: of the others so many have to say the same
    share: bool = True  #: False: learn from others, tell them nothing
    vaccine_seconds: Annotated[float, Field(ge=10, le=86_400)] = 3_600.0  #: how long others shall keep what they learn


class RecordsSettings(Section):
    """Records for other tools: EVE JSON and the lifecycle journal, in the log directory."""

    enabled: bool = True
    max_megabytes: Annotated[int, Field(ge=1, le=4096)] = (
        32  #: of one file; then it becomes ``.1`` and a new one begins
    )


class MerkelSettings(Section):
    """Telemetry."""

    baseline_minutes: Annotated[float, Field(gt=0)] = 30.0


class MastSettings(Section):
    """Sessions, scans, brute force, anomaly."""

    #: services where people log in: many short equal sessions are no ordinary use of them
    login_ports: Annotated[tuple[Port, ...], Listed] = (
        21, 22, 23, 110, 143, 445, 587, 993, 995, 2222, 3389, 5900, 5985,
    )  # fmt: skip
    #: of disk for the learning pool: four days of samples of the node's own flows; 0: none are kept
    pool_megabytes: Annotated[int, Field(ge=0, le=100_000)] = 128


class MacrophageSettings(Section):
    """Signature inspection of payload."""

    signatures: Path | None = None  #: a folder with more signatures (*.yaml); config/signatures is always read
    rules: Path | None = None  #: a folder with Suricata rules (*.rules)
    home_net: str = ""  #: what $HOME_NET means in them; empty: the private networks
    max_flows: Annotated[int, Field(ge=64, le=262_144)] = 8_192
    max_megabytes: Annotated[int, Field(ge=1, le=1_024)] = 32  #: of streams that are being put together


class GatewaySettings(Section):
    """HTTP API, metrics, console."""

    host: Annotated[str, Field(pattern=r"^[0-9A-Za-z.:_-]{1,253}$")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8085
    #: an AF_UNIX socket beside the port, for programs of this host: mode 0660, the group of the service's user
    socket: Path | None = None
    enabled: bool = True
    #: names a browser may use for this node, besides addresses and localhost (guards against DNS rebinding)
    allowed_hosts: Annotated[tuple[str, ...], Listed] = ()
    max_connections: Annotated[int, Field(ge=4, le=4096)] = 128
    max_body_bytes: Annotated[int, Field(ge=1024, le=16_777_216)] = 1_048_576


class FeedSettings(Section):
    """IP reputation feeds."""

    enabled: bool = True
    refresh_minutes: Annotated[float, Field(ge=1)] = 15.0
    directory: Path | None = None  #: every file in it is a list too
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    allow_private: bool = False
    definitions: Path | None = None  #: more feeds, or other settings for known ones; the shape is config/feeds.toml
    enable: Annotated[tuple[str, ...], Listed] = ()  #: names of defined feeds that are off by default
    #: CrowdSec's local API, asked as a bouncer; nothing is contacted unless both are given
    crowdsec_url: str = ""
    crowdsec_key: SecretStr | None = None
    crowdsec_seconds: Annotated[float, Field(ge=1)] = 10.0


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
    off: Annotated[tuple[str, ...], Listed] = ()  #: cells that shall not run


class Settings(Section):
    """The whole tree. Top-level fields are what several nodes on one machine must differ in."""

    state_dir: Path = Field(default_factory=lambda: default_dir("state"))
    run_dir: Path = Field(default_factory=lambda: default_dir("run"))
    log_dir: Path = Field(default_factory=lambda: default_dir("log"))
    bpf_dir: Path = Path("/sys/fs/bpf/tegumentar")
    #: empty: the interfaces of the default routes
    interfaces: Annotated[tuple[Interface, ...], Listed] = ()
    user: str = "tegumentar"  #: who the unprivileged cells become; a name or a number; numeric fallback when absent
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    reflex: ReflexSettings = ReflexSettings()
    keratinocyte: KeratinocyteSettings = KeratinocyteSettings()
    permeability: PermeabilitySettings = PermeabilitySettings()
    memory: MemorySettings = MemorySettings()
    redis: RedisSettings = RedisSettings()
    throttler: ThrottlerSettings = ThrottlerSettings()
    kafka: KafkaSettings = KafkaSettings()
    lymph: LymphSettings = LymphSettings()
    records: RecordsSettings = RecordsSettings()
    merkel: MerkelSettings = MerkelSettings()
    mast: MastSettings = MastSettings()
    macrophage: MacrophageSettings = MacrophageSettings()
    gateway: GatewaySettings = GatewaySettings()
    feeds: FeedSettings = FeedSettings()
    supervisor: SupervisorSettings = SupervisorSettings()

    #: section → what was wrong in it; filled by ``config.load``. The cell of that section starts degraded and says so.
    problems: dict[str, str] = Field(default_factory=dict, exclude=True)


def _secret(value: SecretStr | None) -> str:
    return value.get_secret_value() if value is not None else ""
