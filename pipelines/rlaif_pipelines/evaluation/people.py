"""What people said of the pairs that the judge labelled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlaif.core.conversation import Conversation, parse_conversation
from rlaif_pipelines.evaluation.classification import Scored
from rlaif_pipelines.training.config.pairs import LabelFile
from rlaif_pipelines.training.labels import read_labels


def scored_by_people(labels: Iterable[Mapping[str, Any]], file: LabelFile) -> list[Scored]:
    """Decided labels beside people's votes on the same two responses, in whichever order the file names them."""
    said: dict[tuple[Conversation, str, str], float] = {}
    for pair in read_labels([file], allow_one_class=True).pairs:
        said[pair.conversation, pair.first, pair.second] = pair.probability_first
        said[pair.conversation, pair.second, pair.first] = 1.0 - pair.probability_first
    found = []
    for label in labels:
        wanted = said.get((parse_conversation(label["messages"]), label["first"], label["second"]))
        if wanted is not None and label["probability_first"] is not None:
            found.append(Scored(label["probability_first"], wanted))
    return found
