"""CrowdSec's decisions from told to enforced: the whole service beside CrowdSec's own firewall bouncer, nft and ipset.

A small local API in the node's namespace tells the same decisions (hosts) to both, in one answer to one of their
questions for what is new, when they have come to rest after their start. The clock runs from the arrival of that
question until the kernel drops what was told: for the service, asked of the kernel program by its own verb
``reflex.explain``; for the bouncer (nftables mode), when elements from all over the list stand in its set. nft and
ipset only store: one transaction each, without any API.

The bouncer is Debian's package crowdsec-firewall-bouncer, or what TEGUMENTAR_BENCH_BOUNCER names; it is run by hand in
the namespace, never as a service. It gets a minute for each list (ten seconds in a smoke run): what it has not done by
then is said as a share, and a minute counts as its time. It is measured once, except for the shortest list, and not at
all where it is missing.
"""

import contextlib
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from actors.admin.lab.net import Network, node_home, owner_tag
from actors.admin.lab.service import Service
from bench.blocklist_load import ipset_script, nft_script, tool
from bench.claims import Claim, Options, run

KEY = "bench"
BINARY = "crowdsec-firewall-bouncer"
REMEDY = f"apt-get download {BINARY}, unpack it, name it in TEGUMENTAR_BENCH_BOUNCER"
#: How long a start may take, and how long it is left to come to rest.
QUESTION_S, REST_S = 20.0, 3.0
SHORTEST, PATIENCE_S, QUICK_PATIENCE_S, OURS_PATIENCE_S = 10_000, 60.0, 10.0, 60.0
#: A million takes each of them half a minute.
LONG, LAPS_OF_THE_LONGEST = 100_000, 2
#: So many elements, spread over the list, stand for all of it.
PROBES = 40
CONFIG = """mode: nftables
update_frequency: 1s
daemonize: false
log_mode: stdout
log_level: warning
api_url: http://127.0.0.1:{port}/
api_key: {key}
disable_ipv6: true
deny_action: DROP
supported_decisions_types: [ban]
blacklists_ipv4: crowdsec-blacklists
nftables:
  ipv4: {{enabled: true, set-only: false, table: crowdsec, chain: crowdsec-chain}}
  ipv6: {{enabled: false}}
prometheus: {{enabled: false}}
"""


@dataclass
class Api:
    """The decision stream: nothing, until ``tell``; then everything once. asked_at: when that question came."""

    body: bytes
    port: int = 0
    asked_at: float = 0.0
    known: threading.Event = field(default_factory=threading.Event)  #: somebody has asked at all
    asked: threading.Event = field(default_factory=threading.Event)
    _telling: bool = False

    def tell(self) -> None:
        self._telling = True

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = b'{"new":null,"deleted":null}'
        if request.command == "GET" and self._telling:
            self.asked_at, self._telling, body = time.perf_counter(), False, self.body
            self.asked.set()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
            self.known.set()


@contextlib.contextmanager
def serving(network: Network, body: bytes) -> Iterator[Api]:
    """On a free port of the node's loopback interface."""
    api = Api(body)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                api.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_arguments: Any) -> None: ...

    with network.node.namespace.entered():
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def hosts(count: int) -> list[str]:
    """Addresses that nobody reserves, not neighbours of each other."""
    return [f"{11 + (i >> 22)}.{i >> 14 & 255}.{i >> 6 & 255}.{(i & 63) * 4 + 1}" for i in range(count)]


def decisions(addresses: list[str]) -> bytes:
    """As CrowdSec tells them."""
    return orjson.dumps(
        {
            "new": [
                {"id": number, "origin": "CAPI", "type": "ban", "scope": "Ip", "value": address,
                 "duration": "23h59m51.2s", "scenario": "http-probing"}
                for number, address in enumerate(addresses, 1)
            ],
            "deleted": None,
        }
    )  # fmt: skip


def ours_s(addresses: list[str], body: bytes) -> float:
    """Seconds until the service's own program drops the first, the middle and the last of them."""
    tag = owner_tag()
    with node_home(tag) as (directory, pins), Network(tag=tag, roles=()) as network, serving(network, body) as api:
        settings = {
            "TEGUMENTAR_FEEDS__ENABLED": "true", "TEGUMENTAR_FEEDS__CROWDSEC_URL": f"http://127.0.0.1:{api.port}",
            "TEGUMENTAR_FEEDS__CROWDSEC_KEY": KEY, "TEGUMENTAR_FEEDS__CROWDSEC_SECONDS": "1",
            "TEGUMENTAR_GATEWAY__ENABLED": "false",
        }  # fmt: skip
        service = Service(network.node, directory, pins, settings)
        try:
            service.start()
            wanted = [addresses[0], addresses[len(addresses) // 2], addresses[-1]]
            return _until(
                api, lambda: all(service.ask("reflex.explain", address=a)["drop"] for a in wanted), OURS_PATIENCE_S
            )
        finally:
            service.stop()


@dataclass(frozen=True)
class Theirs:
    """seconds: until all stood, or all that it was given; share: of the probes that stood then."""

    seconds: float
    share: float


def theirs_s(binary: str, addresses: list[str], body: bytes, patience_s: float) -> Theirs:
    step = max(1, len(addresses) // PROBES)
    probes = [*addresses[::step], addresses[-1]]
    tag = owner_tag()
    with node_home(tag) as (directory, _), Network(tag=tag, roles=()) as network, serving(network, body) as api:
        directory.chmod(0o700)  # the file holds a key, if only the bench's
        config = directory / "bouncer.yaml"
        config.write_text(CONFIG.format(port=api.port, key=KEY))
        space = network.node.namespace

        def stand(some: list[str]) -> bool:
            found = space.run(
                "nft", "get", "element", "ip", "crowdsec", "crowdsec-blacklists", "{ " + ", ".join(some) + " }",
                check=False,
            )  # fmt: skip
            return found.returncode == 0

        with open(directory / "bouncer.log", "wb") as log:
            bouncer = space.popen(binary, "-c", str(config), stdout=log, stderr=log)
            try:
                seconds = _until(api, lambda: stand([probes[-1]]) and stand([probes[0]]) and stand(probes), patience_s)
                return Theirs(seconds, 1.0)
            except TimeoutError as error:
                if bouncer.poll() is not None or not api.asked.is_set():
                    said = (directory / "bouncer.log").read_text(errors="replace")[-500:]
                    raise RuntimeError(f"{binary} did not do its work: {said}") from error
                return Theirs(patience_s, sum(stand([probe]) for probe in probes) / len(probes))
            finally:
                bouncer.kill()
                bouncer.wait()


def _until(api: Api, enforced: Callable[[], bool], patience_s: float) -> float:
    """Seconds from the question that is answered with everything. Raises TimeoutError."""
    api.known.wait(QUESTION_S)
    time.sleep(REST_S)
    api.tell()
    if not api.asked.wait(QUESTION_S):
        raise TimeoutError("nobody asked")
    while time.perf_counter() - api.asked_at < patience_s:
        if enforced():
            return time.perf_counter() - api.asked_at
        time.sleep(0.01)
    raise TimeoutError(f"not enforced after {patience_s:.0f} s")


def measure(options: Options) -> list[Claim]:
    binary = shutil.which(os.environ.get("TEGUMENTAR_BENCH_BOUNCER") or BINARY)
    claims = []
    for size in options.sizes():
        claims += _one_size(size, options, binary)
    return claims


def _one_size(size: int, options: Options, binary: str | None) -> list[Claim]:
    addresses = hosts(size)
    body = decisions(addresses)
    ours, theirs, nft, ipset = [], [], [], []
    for lap in range(min(options.rounds, LAPS_OF_THE_LONGEST) if size > LONG else options.rounds):
        ours.append(ours_s(addresses, body))
        nft.append(tool("nft", "-f", "-", text=nft_script(addresses, ["192.0.2.0/24"])))
        ipset.append(tool("ipset", "restore", text=ipset_script(addresses)))
        if binary and (not lap or size <= SHORTEST):
            theirs.append(theirs_s(binary, addresses, body, QUICK_PATIENCE_S if options.quick else PATIENCE_S))

    def claim(peer: str, seconds: float | None, limit: float | None = None) -> Claim:
        return Claim(
            what="CrowdSec's decisions, told to enforced", entries=size, ours=statistics.median(ours), unit="s",
            peer=peer, theirs=seconds, limit=limit,
        )  # fmt: skip

    claims = [
        claim("nft, one transaction, stored only", statistics.median(nft)),
        claim("ipset restore, stored only", statistics.median(ipset)),
    ]
    if not theirs:
        return [*claims, claim(f"{BINARY} is not here: {REMEDY}", None)]
    share = min(one.share for one in theirs)
    peer = BINARY + ("" if share == 1 else f", {share:.0%} by then")
    limit = 1.0 if size > SHORTEST else None
    return [*claims, claim(peer, statistics.median(one.seconds for one in theirs), limit)]


if __name__ == "__main__":
    run(measure, __doc__)
