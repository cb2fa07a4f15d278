"""python -m ml.extract — watch a capture as the live cell would, and keep every snapshot as a table."""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from ml import capture, dataset, features, flows, meter, outcome, records, table, windows
from ml.capture import CaptureError
from ml.dataset import Table, TableError, collect
from ml.meter import CaptureMeter

#: What decides the content of a table: a change in any of these files makes cached tables of before useless.
_MAKERS = (capture, dataset, features, flows, meter, outcome, records, table, windows)


def extract(path: Path) -> Table:
    """All snapshots of a capture. Raises CaptureError, TableError."""
    return collect(CaptureMeter(path), path.name)


def cached(path: Path, cache: Path) -> Table:
    """As extract, but the table is kept in ``cache`` under the hash of the capture and of the code that reads it."""
    digest = hashlib.sha256()
    try:
        for source in (path, *(Path(module.__file__ or "") for module in _MAKERS)):
            digest.update(source.read_bytes())
    except OSError as exc:
        raise CaptureError(f"cannot read {exc.filename}: {exc.strerror}") from exc
    home = cache / f"{path.stem}-{digest.hexdigest()[:16]}.npz"
    if home.exists():
        return Table.load(home)
    made = extract(path)
    made.save(home)
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ml.extract", description=__doc__)
    parser.add_argument("capture", type=Path, help="pcap of Ethernet frames, taken at the protected node")
    parser.add_argument("--table", type=Path, required=True, help="file to write (.npz)")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON document")
    args = parser.parse_args(argv)
    try:
        made = extract(args.capture)
        made.save(args.table)
    except (CaptureError, TableError, OSError) as exc:
        print(f"extract: {exc}", file=sys.stderr)
        return 1
    counts = {"snapshots": len(made), "flows": int(made.flow_id.max()) + 1, "table": str(args.table)}
    print(
        json.dumps(counts) if args.json else f"{counts['flows']} flows in {counts['snapshots']} snapshots: {args.table}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
