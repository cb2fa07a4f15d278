"""python -m ml — which commands there are."""

import sys

COMMANDS = {
    "ml.extract": "a capture to a table of flow snapshots",
    "ml.train": "fit the heads on clean traffic (needs torch)",
    "ml.calibrate": "give a trained model its p-values, from later clean traffic",
    "ml.evaluate": "fit, calibrate and test on a labelled recording, beside three baselines",
    "ml.promote": "put a model into service through the gate; also: status, rollback",
}


def main() -> int:
    print("Learning commands; each has --help. docs/LEARNING.md tells the story.\n")
    print("\n".join(f"  python -m {name:14} {words}" for name, words in COMMANDS.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
