"""python -m ml — which commands there are; ``python -m ml train ...`` is the same as ``python -m ml.train ...``."""

import importlib
import sys

COMMANDS = {
    "extract": "a capture to a table of flow snapshots",
    "train": "fit the heads on clean traffic, of a table or of the node's learning pool (needs torch)",
    "calibrate": "give a trained model its p-values, from later clean traffic",
    "evaluate": "fit, calibrate and test on a labelled recording, beside three baselines",
    "promote": "put a model into service through the gate; also: status, rollback",
}


def main(argv: list[str] | None = None) -> int:
    args = sys.argv[1:] if argv is None else argv
    if args and args[0] in COMMANDS:
        return int(importlib.import_module(f"ml.{args[0]}").main(args[1:]))
    print("Learning commands; each has --help. docs/LEARNING.md tells the story.\n")
    print("\n".join(f"  python -m ml.{name:11} {words}" for name, words in COMMANDS.items()))
    return 0 if not args or args[0] in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
