"""Runs on Kubeflow Pipelines from Python: what `rlaif submit`, `runs`, `logs`, `cancel` and `schedule` are made of."""

from rlaif_pipelines.submission.client import PipelinesClient, RunPage, Uploaded
from rlaif_pipelines.submission.connection import Connection, Credentials, find_connection
from rlaif_pipelines.submission.logs import LogReader
from rlaif_pipelines.submission.package import Package, Parameter
from rlaif_pipelines.submission.parameters import check_parameters, parameters_from, read_parameters, run_settings
from rlaif_pipelines.submission.preparing import Submission, compile_package, prepare_submission
from rlaif_pipelines.submission.runs import Run, Task
from rlaif_pipelines.submission.schedules import Schedule, SchedulePage, Trigger

__all__ = [
    "Connection",
    "Credentials",
    "LogReader",
    "Package",
    "Parameter",
    "PipelinesClient",
    "Run",
    "RunPage",
    "Schedule",
    "SchedulePage",
    "Submission",
    "Task",
    "Trigger",
    "Uploaded",
    "check_parameters",
    "compile_package",
    "find_connection",
    "parameters_from",
    "prepare_submission",
    "read_parameters",
    "run_settings",
]
