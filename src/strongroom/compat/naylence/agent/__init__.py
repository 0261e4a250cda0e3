"""`naylence.agent`: agents and their tasks."""

from strongroom import (
    Agent,
    BackgroundTaskAgent,
    BaseAgent,
    BaseAgentState,
    first_data_part,
    first_text_part,
    make_message,
    make_task,
    make_task_params,
)
from strongroom.compat.naylence.agent import a2a_types, configs, errors
from strongroom.compat.naylence.agent.a2a_types import *  # noqa: F403 - lists its names
from strongroom.compat.naylence.agent.errors import *  # noqa: F403 - likewise

__all__ = [  # noqa: PLE0604
    "Agent",
    "BackgroundTaskAgent",
    "BaseAgent",
    "BaseAgentState",
    "configs",
    "first_data_part",
    "first_text_part",
    "make_message",
    "make_task",
    "make_task_params",
    *a2a_types.__all__,
    *errors.__all__,
]
