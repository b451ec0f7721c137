"""What ``tiny`` has learned: held-out scores of the finished demo, beside the best constant answers.

Both sides answer the same held-out rows and are scored by the rows' own scorers; the peer is the constant answer that
scores best on them. Reads ``out/demo/summary.json``.
"""

import json
import sys
from pathlib import Path

from benchmarks.harness import Result, result, run
from model.data.errors import InputError

SUMMARY = Path("out/demo/summary.json")
PRETRAINED_ON = ("transcribe", "transcribe_fine")
AIM = 1.0


def measure() -> Result:
    """Scores of the demo's last evaluation; ``details`` holds each family, the seconds of each stage, and the mean over
    all families that each training stage reported of its own held-out sample."""
    if not SUMMARY.is_file():
        raise InputError(f"{SUMMARY}: missing; run make demo first")
    stages = json.loads(SUMMARY.read_bytes())["stages"]
    evaluated = next(stage for stage in stages if stage["name"] == "evaluate")
    families = {name: table for name, table in evaluated["heldout"].items() if name not in PRETRAINED_ON}
    ours = [table["score"] for table in families.values()]
    peer = [table["constant"] for table in families.values()]
    trained = {stage["name"]: stage["heldout"].values() for stage in stages if stage["heldout"] and stage["tokens"]}
    details = {
        "families": families,
        "seconds": {stage["name"]: round(stage["seconds"], 1) for stage in stages},
        "means": {name: round(sum(t["score"] for t in found) / len(found), 4) for name, found in trained.items()},
    }
    ratio = sum(ours) / sum(peer)
    return result("tiny_scores", "held-out score", ours, peer, ratio=ratio, aim=AIM, details=details)


def main() -> int:
    """Run the benchmark."""
    return run(__doc__, lambda _options: measure())


if __name__ == "__main__":
    sys.exit(main())
