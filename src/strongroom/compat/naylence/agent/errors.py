"""`naylence.agent.errors`: its names for the errors that an agent raises."""

from strongroom.errors import AgentError as AgentException
from strongroom.errors import Conflict as ConflictException
from strongroom.errors import DuplicateTask as DuplicateTaskException
from strongroom.errors import InvalidData as InvalidDataException
from strongroom.errors import InvalidTask as InvalidTaskException
from strongroom.errors import NoDataFound as NoDataFoundException
from strongroom.errors import PushNotificationNotSupported as PushNotificationNotSupportedException
from strongroom.errors import RateLimitExceeded as RateLimitExceededException
from strongroom.errors import TaskNotCancelable as TaskNotCancelableException
from strongroom.errors import Unauthorized as AuthorizationException
from strongroom.errors import UnsupportedOperation as UnsupportedOperationException

__all__ = [
    "AgentException",
    "AuthorizationException",
    "ConflictException",
    "DuplicateTaskException",
    "InvalidDataException",
    "InvalidTaskException",
    "NoDataFoundException",
    "PushNotificationNotSupportedException",
    "RateLimitExceededException",
    "TaskNotCancelableException",
    "UnsupportedOperationException",
]
