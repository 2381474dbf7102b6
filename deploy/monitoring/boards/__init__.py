"""The dashboards."""

from __future__ import annotations

from monitoring.boards.board import Board
from monitoring.boards.judge import judge
from monitoring.boards.labels import labels
from monitoring.boards.overview import overview
from monitoring.boards.reward import reward
from monitoring.boards.sampler import sampler
from monitoring.boards.training import training


def boards() -> list[Board]:
    """All of them, in the order in which they answer questions."""
    return [overview(), judge(), sampler(), reward(), training(), labels()]
