"""`naylence.agent.util`: builders and readers of tasks."""

from strongroom import first_data_part as first_data_part
from strongroom import first_text_part as first_text_part
from strongroom import make_message as make_message
from strongroom import make_task as make_task
from strongroom import make_task_params as make_task_params
