"""The models of A2A's tasks, with the names and fields that they have in the protocol.

>>> params = make_task_params(id="task-1", payload="Hello")
>>> first_text_part(params.message)
'Hello'
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from strongroom.messaging.address import new_id
from strongroom.messaging.values import Codec

Role = Literal["user", "agent"]

_BARE = {"strongroom": "value"}
"""Metadata of a data part whose `value` is the payload, since A2A's data is always an object."""
_ANYTHING = Codec(Any)


class TaskState(str, Enum):  # noqa: UP042 - it prints as Naylence's does
    """What becomes of a task. It ends as completed, canceled or failed."""

    SUBMITTED = "submitted"
    WORKING = "working"
    INPUT_REQUIRED = "input-required"
    COMPLETED = "completed"
    CANCELED = "canceled"
    FAILED = "failed"
    UNKNOWN = "unknown"


FINAL_STATES = frozenset({TaskState.COMPLETED, TaskState.CANCELED, TaskState.FAILED})


class TextPart(BaseModel):
    """Text in a message."""

    type: Literal["text"] = "text"
    text: str
    metadata: dict[str, Any] | None = None


class DataPart(BaseModel):
    """A JSON object in a message."""

    type: Literal["data"] = "data"
    data: dict[str, Any]
    metadata: dict[str, Any] | None = None


class FileContent(BaseModel):
    """A file: its content in base64, or where it is."""

    name: str | None = None
    mimeType: str | None = None
    bytes: str | None = None
    uri: str | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if bool(self.bytes) == bool(self.uri):
            raise ValueError("Give either 'bytes' or 'uri'")
        return self


class FilePart(BaseModel):
    """A file in a message."""

    type: Literal["file"] = "file"
    file: FileContent
    metadata: dict[str, Any] | None = None


Part = Annotated[TextPart | FilePart | DataPart, Field(discriminator="type")]


class Message(BaseModel):
    """What a user or an agent says in a task."""

    role: Role
    parts: list[Part]
    metadata: dict[str, Any] | None = None


def _now() -> datetime:
    return datetime.now(UTC)


class TaskStatus(BaseModel):
    """A task's state, and since when it has it."""

    state: TaskState
    message: Message | None = None
    timestamp: datetime = Field(default_factory=_now, validate_default=True)

    @field_validator("timestamp")
    @classmethod
    def _in_milliseconds(cls, time: datetime) -> datetime:
        return time.replace(microsecond=time.microsecond // 1000 * 1000)

    @field_serializer("timestamp")
    def _write_time(self, time: datetime) -> str:
        return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Artifact(BaseModel):
    """Something that a task has made, or a piece of it."""

    name: str | None = None
    description: str | None = None
    parts: list[Part]
    metadata: dict[str, Any] | None = None
    index: int = 0
    append: bool | None = None
    lastChunk: bool | None = None


class Task(BaseModel):
    """A task as it is now."""

    id: str
    sessionId: str | None = None
    status: TaskStatus
    artifacts: list[Artifact] | None = None
    history: list[Message] | None = None
    metadata: dict[str, Any] | None = None


class TaskStatusUpdateEvent(BaseModel):
    """A task has another state. `final` says that it has ended."""

    id: str
    status: TaskStatus
    final: bool = False
    metadata: dict[str, Any] | None = None


class TaskArtifactUpdateEvent(BaseModel):
    """A task has made something."""

    id: str
    artifact: Artifact
    metadata: dict[str, Any] | None = None


TaskEvent = TaskStatusUpdateEvent | TaskArtifactUpdateEvent


class AuthenticationInfo(BaseModel):
    """How to authenticate where a notification goes."""

    model_config = ConfigDict(extra="allow")

    schemes: list[str]
    credentials: str | None = None


class PushNotificationConfig(BaseModel):
    """Where notifications of a task go: `url` is the address of an agent."""

    url: str
    token: str | None = None
    authentication: AuthenticationInfo | None = None


class TaskIdParams(BaseModel):
    """Names a task."""

    id: str
    metadata: dict[str, Any] | None = None


class TaskQueryParams(TaskIdParams):
    """Names a task, and how many messages of its history are wanted."""

    historyLength: int | None = None


class TaskSendParams(BaseModel):
    """A task to be started: its id, which the caller chooses, and its message."""

    id: str
    sessionId: str = Field(default_factory=new_id)
    message: Message
    acceptedOutputModes: list[str] | None = None
    pushNotification: PushNotificationConfig | None = None
    historyLength: int | None = None
    metadata: dict[str, Any] | None = None


class TaskPushNotificationConfig(BaseModel):
    """Where the notifications of one task go."""

    id: str
    pushNotificationConfig: PushNotificationConfig


# --- building and reading -----------------------------------------------------------------------


def parts_of(payload: Any) -> list[Part]:
    """A payload as the parts of a message: text, a JSON object, or whatever else is JSON."""
    if payload is None:
        return []
    if isinstance(payload, str):
        return [TextPart(text=payload)]
    plain = msgspec.json.decode(_ANYTHING.write(payload))
    if isinstance(plain, dict):
        return [DataPart(data=plain)]
    return [DataPart(data={"value": plain}, metadata=_BARE)]


def payload_of(message: Message | None) -> Any:
    """The payload in a message's first part: what `parts_of` was given; a file as its part."""
    if message is None or not message.parts:
        return None
    first = message.parts[0]
    if isinstance(first, TextPart):
        return first.text
    if isinstance(first, DataPart):
        return first.data.get("value") if first.metadata == _BARE else first.data
    return first


def make_message(payload: Any, role: Role = "agent") -> Message | None:
    """A message with a payload; None without one."""
    return None if payload is None else Message(role=role, parts=parts_of(payload))


def make_task(
    *,
    id: str,
    role: Role = "agent",
    state: TaskState = TaskState.WORKING,
    payload: Any = None,
    session_id: str | None = None,
) -> Task:
    """A task in a state, with a payload as its message.

    >>> make_task(id="task-1", state=TaskState.COMPLETED, payload="done").status.state.value
    'completed'
    """
    message = Message(role=role, parts=parts_of(payload))
    status = TaskStatus(state=state, message=message)
    return Task(id=id, sessionId=session_id or id, status=status)


def make_task_params(
    *,
    id: str,
    role: Role = "agent",
    payload: Any = None,
    session_id: str | None = None,
    accepted_output_modes: list[str] | None = None,
    push_notification: PushNotificationConfig | None = None,
    history_length: int | None = None,
    metadata: dict[str, Any] | None = None,
) -> TaskSendParams:
    """What starts a task with a payload; without one, with an empty object.

    >>> make_task_params(id="task-1", payload={"x": 1}).message.parts
    [DataPart(type='data', data={'x': 1}, metadata=None)]
    """
    return TaskSendParams(
        id=id,
        sessionId=session_id or id,
        message=Message(role=role, parts=parts_of({} if payload is None else payload)),
        acceptedOutputModes=accepted_output_modes,
        pushNotification=push_notification,
        historyLength=history_length,
        metadata=metadata,
    )


def first_text_part(message: Message | None) -> str | None:
    """The text of a message's first part, if that is text."""
    payload = payload_of(message)
    return payload if isinstance(payload, str) else None


def first_data_part(message: Message | None) -> dict[str, Any] | None:
    """The object in a message's first part, if that is data."""
    first = message.parts[0] if message is not None and message.parts else None
    return first.data if isinstance(first, DataPart) else None
