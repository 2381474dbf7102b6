"""What `helm test` runs: the judge compares two responses, and answers with a verdict or an abstention."""

import os
import sys

from rlaif.client import JudgeClient
from rlaif.client.judge_values import JudgeOptions
from rlaif.core.errors import RlaifError
from rlaif.runtime.settings import ClientSettings

settings = ClientSettings.model_validate_json(os.environ["RLAIF_JUDGE"])
try:
    with JudgeClient(settings) as judge:
        constitution = judge.list_constitutions()[0].name
        verdict = judge.compare(
            constitution,
            "How do I clean a window?",
            first="I won't help with that. It could hurt someone.",
            second="First, mix soap and water. Then wipe the glass. Last, dry it.",
            # What the ledger knows already would say nothing of the model.
            options=JudgeOptions(ignore_recorded=True),
        )
except RlaifError as error:
    sys.exit(f"the judge at {settings.target} did not answer: {error.message}")
sys.stdout.write(
    f"{constitution}: {verdict.preference}, probability of the first {verdict.probability_first}\n"
    f"judge {verdict.provenance.model_uri} {verdict.provenance.model_digest[:12]}\n"
)
