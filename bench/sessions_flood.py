"""What a million forged sources cost the mast cell: time of a look, flows per second, memory. One thread.

    python -m bench.sessions_flood

Each look brings 50,000 new flows from sources never seen before, between them one patient scanner and one client that
connects. Printed as ratios too, because machines differ: the plain loop beside it only reads three fields of each row.
"""

import resource
import time

import numpy as np

from actors.dermis.scans import Watchlist
from actors.dermis.sessions import Host, conduct
from ml.flows import FlowReader
from ml.meter import Tick
from ml.own import parse_own
from ml.records import FLOW, PROTO_TCP, SYN
from ml.windows import Windows

LOOKS, FLOWS = 20, 50_000
LOGINS = np.array([22], "u2")


def flood(rng: np.random.Generator, look: int, now_ns: int) -> np.ndarray:
    """A full table of first packets; row 0 is the scanner's."""
    table = np.zeros(FLOWS, FLOW)
    key, side = table["key"], table["side"][:, 0]
    key["addr"][:, :, 10:12] = 255
    key["addr"][:, 0, 12:] = rng.integers(1, 256, (FLOWS, 4))
    key["addr"][0, 0, 12:] = (198, 51, 100, 7)
    key["addr"][:, 1, 12:] = (192, 0, 2, 10)
    key["port"][:, 0], key["port"][:, 1] = rng.integers(1024, 65536, FLOWS), rng.integers(1, 1024, FLOWS)
    key["port"][0, 1] = 2000 + look
    key["proto"], key["family"], table["incarnation"] = PROTO_TCP, 4, look + 1
    side["packets"], side["wire_bytes"] = 1, 60
    side["flags"][:, SYN] = 1
    side["first_ns"] = side["last_ns"] = now_ns - 600_000_000
    table["last_ns"] = now_ns - 600_000_000
    return table


def main() -> None:
    rng = np.random.default_rng(1)
    host, reader, watchlist, windows = Host(parse_own(["192.0.2.10"])), FlowReader(FLOWS), Watchlist(), Windows()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    looks, loops, found = [], [], set()
    for look in range(LOOKS):
        now_ns = (1000 + look) * 1_000_000_000
        table = flood(rng, look, now_ns)
        began = time.perf_counter()
        shown = reader.tick(Tick(now_ns, table, np.arange(FLOWS)))
        found |= {finding.subject for finding in watchlist.observe(now_ns / 1e9, conduct(shown, host, LOGINS))}
        looks.append(time.perf_counter() - began)
        windows.update(shown)
        began = time.perf_counter()
        sum(int(row["key"]["port"][1]) + int(row["last_ns"]) + int(row["incarnation"]) for row in table[:2_000])
        loops.append((time.perf_counter() - began) * FLOWS / 2_000)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    state_mb = (reader.nbytes + windows.nbytes) / 1e6
    rate = LOOKS * FLOWS / sum(looks)
    print(f"forged sources               {LOOKS * FLOWS:>12,}")
    print(f"from table to finding        {rate:>12,.0f} flows/s, {sum(loops) / sum(looks):.1f} times a plain loop")
    print(f"slowest look of {FLOWS:,} flows {1e3 * max(looks):>11.0f} ms")
    print(f"reader and model's windows   {state_mb:>12.0f} MB; the process grew by {grown_mb:.0f} MB, batches included")
    print(f"suspects, evicted            {len(watchlist.suspects):>12,}, {watchlist.evicted:,}")
    print(f"the scanner among them       {'found' if '198.51.100.7' in found else 'MISSED':>12}")


if __name__ == "__main__":
    main()
