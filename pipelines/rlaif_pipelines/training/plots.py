"""The figures of a training as pictures: one SVG for each, from metrics.jsonl, in a folder `plots` beside the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rlaif.runtime.artifacts import atomic_write_text

_TITLES: Final = {
    "loss": "Loss",
    "reward": "Reward",
    "reward_model": "Second opinion on the reward",
    "gold": "Gold score",
    "held_out": "Held-out score",
    "kl": "KL of a completion to the reference, nats",
    "entropy": "Entropy of a token, nats",
    "completion_tokens": "Tokens of a completion",
    "grad_norm": "Norm of the gradient",
    "tokens_per_second": "Tokens a second",
}
_STYLE: Final = (
    "svg{font:11px system-ui,sans-serif;background:#fff}.grid{stroke:#e3e5e8}.tick{fill:#5c6470}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke:#2563a8}.dot{fill:#2563a8}"
    ".line.second{stroke:#c2571a}.dot.second{fill:#c2571a}.limit{stroke:#b3261e;stroke-dasharray:4 3}"
)


def write_plots(folder: Path, *, metrics: Path) -> list[Path]:
    """The pictures written, one for each figure of each stage that the file tells more than one step of."""
    written = []
    for (stage, name), points in sorted(_read(metrics).items()):
        if len(points) > 1:
            path = folder / f"{stage}-{name}.svg"
            atomic_write_text(path, _picture(points, title=f"{stage}: {_TITLES[name]}"))
            written.append(path)
    return written


def _read(metrics: Path) -> dict[tuple[str, str], list[tuple[float, float]]]:
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.is_file() else []
    for text in lines:
        try:
            line: Mapping[str, Any] = json.loads(text)
        except json.JSONDecodeError:  # a line cut off by a crash
            continue
        stage = str(line["stage"])
        for name in _TITLES:
            value = line.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault((stage, name), []).append((float(line["step"]), float(value)))
    return series


def _picture(points: list[tuple[float, float]], *, title: str) -> str:
    from rlaif_pipelines.report.plots import Series, line_chart

    drawn = str(line_chart([Series(title, points, "first")], title=title, x_label="step"))
    opening, inner = drawn.split(">", 1)
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{opening}><title>{title}</title><style>{_STYLE}</style>{inner}\n"
