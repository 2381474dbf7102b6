"""Where good ends: the limits that alerts fire at, and that panels turn red at."""

from __future__ import annotations

from typing import Final

QUEUE_USED: Final = 0.8
"""Share of a queue's places in use."""
CALLS_REFUSED: Final = 0.01
"""Share of calls refused because a queue was full."""
MISSES_LEAST: Final = 5
"""Calls that failed or were slow before an objective is in danger: with few calls one is a large share."""
POLICY_BEHIND: Final = 0.6
"""Share of `sync_deadline_seconds`, after which a replica that is behind takes no calls: this is told before."""
REWARDS_FAILED: Final = 0.1
"""Share of rewards that are no number."""
ABSTENTIONS: Final = 0.2
"""Share of labels without a verdict."""
INCONSISTENT: Final = 0.35
"""Share of comparisons that depend on the order of presentation; the gate's own limit."""
INCONSISTENT_RISE: Final = 1.5
"""Times what it was over the window of label quality, from INCONSISTENT_LEAST on."""
INCONSISTENT_LEAST: Final = 0.1
INJECTIONS: Final = 0.05
"""Share of labels on responses that address the judge."""
LABELS_LEAST: Final = 30
"""Labels, or rewards, of a window of which a share says something."""
HUMAN_AGREEMENT: Final = 0.65
"""What the upper end of the interval of agreement with people must reach; arXiv 2309.00267 reports .69 to .78."""
HUMAN_AGREEMENT_IN_SLICE: Final = 0.6
"""The same in a slice, where the interval is wide."""
REVIEWED_LEAST: Final = 20
"""Labels that people voted on before somebody is woken: three votes in a row are no evidence."""
LONGER_PREFERRED: Final = 0.7
"""Share of comparisons won by the longer response that the lower end of the interval may not pass."""
GUARD_USED: Final = 0.9
"""Share of a guard's limit."""
SAMPLES_DROPPED: Final = 0.25
"""Share of completions that a training could not train on."""
CERTIFICATE_DAYS: Final = 14
"""Days that a certificate has left when somebody should look."""
CERTIFICATE_LAST_DAYS: Final = 2
"""Days when somebody is woken."""
TRAINING_STALLED_STEPS: Final = 10
"""Times the last step's duration without another step."""
