"""The description of the HTTP interface is kept beside the tests, so that no change of it goes unnoticed.

After a wanted change: TEGUMENTAR_TEST_WRITE_GOLDEN=1 python -m pytest tests/golden/test_gateway_openapi.py
"""

import json
import os
from pathlib import Path

from tests.support.gateway import gateway

GOLDEN = Path(__file__).with_name("openapi.json")


def test_the_interface_is_the_one_that_was_agreed() -> None:
    with gateway() as running:
        described = json.dumps(running.http.get("/openapi.json").json(), indent=1, sort_keys=True) + "\n"

    if os.environ.get("TEGUMENTAR_TEST_WRITE_GOLDEN"):
        GOLDEN.write_text(described)

    assert described == GOLDEN.read_text()
