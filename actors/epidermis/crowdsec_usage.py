"""What a CrowdSec local API may know about us (usage metrics, 1.6.3 and newer): who we are, how many decisions we hold.

Told every half hour, as CrowdSec asks for. What the kernel dropped is not told: it counts by feed and reason, not by
CrowdSec's origins, and a guess would be shown as a fact. Source: crowdsec pkg/models/localapi_swagger.yaml,
``RemediationComponentsMetrics``, and CrowdSec's specification of remediation component metrics.
"""

import platform
from collections import Counter
from collections.abc import Iterable
from typing import Any

import orjson

PATH = "/v1/usage-metrics"
EVERY_S = 1_800.0
_TEXT_MAX = 255


def usage(agent: str, values: Iterable[str], started_unix_s: float, now_unix_s: float, window_s: float) -> bytes:
    """The body of one report. agent: our ``name/version``; values: what is banned now; window_s: since the last one."""
    name, _, version = agent.partition("/")
    families = Counter("ipv6" if ":" in value else "ipv4" for value in values)
    items = [
        {"name": "active_decisions", "unit": "ip", "value": families[family], "labels": {"ip_type": family}}
        for family in ("ipv4", "ipv6")
    ]
    meta = {"utc_now_timestamp": int(now_unix_s), "window_size_seconds": int(window_s)}
    component = {
        "type": name,
        "version": version,
        "feature_flags": [],
        "utc_startup_timestamp": int(started_unix_s),
        "metrics": [{"meta": meta, "items": items}],
    }
    return orjson.dumps({"remediation_components": [component | _system()]})


def _system() -> dict[str, Any]:
    """The distribution; nothing where it does not say."""
    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return {}
    return {"os": {"name": told.get("NAME", "Linux")[:_TEXT_MAX], "version": told.get("VERSION_ID", "?")[:_TEXT_MAX]}}
