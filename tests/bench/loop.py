"""The whole loop, several seeds a route: does the model improve, at what price, how surely?

Prints a table, then one line per figure (`figure <name>.<route>.<mean|low|high> <value> <unit>`), and writes the same
to build/bench/loop.json. Finished runs are kept and not repeated; remove build/bench/loop to start over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROUTES = {
    "direct": ["--algorithm", "grpo", "--reward", "judge"],
    "reward_model": ["--algorithm", "grpo", "--reward", "model"],
    "dpo": ["--algorithm", "dpo"],
    # A small reward model, no KL, a high rate: it is fooled, a guard must see it, and the best version before is left.
    "no_kl": [
        "--reward=model",
        "--num-prompts=160",
        "--set=sampling.pairs_per_prompt=4",
        "--set=reward_model.epochs=2",
        "--set=rl.kl_beta=0",
        "--set=rl.learning_rate=1e-3",
    ],
}
DEFAULT_ROUTES = ("direct", "reward_model", "dpo", "constitutional")
STOPPED = 3
FIGURES = {
    "win_rate": "ratio",
    "harmful_compliance": "ratio",
    "harmful_compliance_baseline": "ratio",
    "over_refusal": "ratio",
    "over_refusal_baseline": "ratio",
    "mean_words": "words",
    "kl": "nats",
    "seconds": "s",
    "peak_rss": "GB",
    "gold": "score",
    "guard_step": "step",
    "rolled_back_to_step": "step",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 … N-1 of each route")
    parser.add_argument("--routes", nargs="+", choices=sorted(ROUTES), default=DEFAULT_ROUTES)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()

    results: dict[str, list[dict[str, float | None]]] = {}
    for route in options.routes:
        for seed in range(options.seeds):
            folder = options.out / "loop" / f"{route}-{seed}"
            results.setdefault(route, []).append(run(folder, route=route, seed=seed))

    table(results)
    figures = summarise(results)
    for name, (value, unit) in figures.items():
        print(f"figure {name} {value:.4g} {unit}")
    path = options.out / "loop.json"
    path.write_text(json.dumps({"runs": results, "figures": {k: v for k, (v, _) in figures.items()}}, indent=2) + "\n")
    return 0


def run(folder: Path, *, route: str, seed: int) -> dict[str, float | None]:
    report = folder / "report.json"
    timing = folder / "bench_seconds"
    if not (report.exists() and timing.exists()):
        start = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "rlaif.cli.main",
            "run",
            *ROUTES[route],
            "--seed",
            str(seed),
            "--out",
            str(folder),
        ]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, STOPPED):
            sys.exit(f"{' '.join(command)} ended with {code}")
        timing.write_text(f"{time.monotonic() - start:.1f}")
    stage = "sft" if route == "constitutional" else "train"
    training = json.loads((folder / "stages" / stage / "done.json").read_text())["values"]["results"]
    return read(json.loads(report.read_text()), training, float(timing.read_text()))


def read(report: dict[str, Any], training: dict[str, Any], seconds: float) -> dict[str, float | None]:
    peak = report["peak_rss_bytes"]
    return {
        "win_rate": report["win_rate"]["value"],
        "harmful_compliance": report["harmful_compliance"]["trained"],
        "harmful_compliance_baseline": report["harmful_compliance"]["baseline"],
        "over_refusal": report["over_refusal"]["trained"],
        "over_refusal_baseline": report["over_refusal"]["baseline"],
        "mean_words": report["mean_words"]["trained"],
        "kl": report["kl"],
        "seconds": seconds,
        "peak_rss": None if peak is None else peak / 1e9,
        "gold": report["gold"]["trained"],
        "guard_step": (training.get("guard") or {}).get("step"),
        "rolled_back_to_step": (training.get("rolled_back") or {}).get("num_steps"),
    }


def table(results: dict[str, list[dict[str, float | None]]]) -> None:
    print(f"{'route':<14}{'seed':>5}" + "".join(f"{name:>29}" for name in FIGURES))
    for route, runs in results.items():
        for seed, values in enumerate(runs):
            cells = "".join(f"{'-' if values[name] is None else format(values[name], '.3f'):>29}" for name in FIGURES)
            print(f"{route:<14}{seed:>5}{cells}")


def summarise(results: dict[str, list[dict[str, float | None]]]) -> dict[str, tuple[float, str]]:
    figures: dict[str, tuple[float, str]] = {}
    for route, runs in results.items():
        for name, unit in FIGURES.items():
            values = [value for values in runs if (value := values[name]) is not None]
            if values:
                figures[f"{name}.{route}.mean"] = (statistics.fmean(values), unit)
                figures[f"{name}.{route}.low"] = (min(values), unit)
                figures[f"{name}.{route}.high"] = (max(values), unit)
    return figures


if __name__ == "__main__":
    sys.exit(main())
