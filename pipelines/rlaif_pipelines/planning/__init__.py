"""What a run will need before anyone pays for it."""

from rlaif_pipelines.planning.plan import Plan
from rlaif_pipelines.planning.planner import Planner
from rlaif_pipelines.planning.preparing import PlanOptions, prepare_plan

__all__ = ["Plan", "PlanOptions", "Planner", "prepare_plan"]
