"""What a turn says of its run: the models that it asks, and the MLflow trace that it is in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlflow
from agents import Model, RunConfig

from lakebase_sessions.conversation.meter import asks

if TYPE_CHECKING:
    from agents import Agent
    from agents.run_config import CallModelData, ModelInputData
    from agents.util._types import MaybeAwaitable

    from lakebase_sessions.conversation.records import TurnRecord


def configured(
    config: RunConfig | dict[str, Any] | None,
    merging: Callable[..., Any],
    asking: Callable[[], None],
) -> RunConfig:
    """The configuration of a turn's run, which says before each request which model it is for.

    Not hooks: an agent that is a tool of another has its run's configuration and not its hooks,
    and a response whose items cannot be used is told to no hook.

    Args:
        config: The caller's. Its own filter is called too, and its own way of merging is kept.
        merging: For `session_input_callback`.
        asking: Called before each request, inside the run.
    """
    given = RunConfig(**config) if isinstance(config, dict) else config or RunConfig()
    theirs = given.call_model_input_filter

    def filtered(data: CallModelData[Any]) -> MaybeAwaitable[ModelInputData]:
        asks(model_name(data.agent, given))
        asking()
        return theirs(data) if theirs is not None else data.model_data

    return dataclasses.replace(
        given,
        call_model_input_filter=filtered,
        session_input_callback=given.session_input_callback or merging,
    )


def merges_itself(config: RunConfig | dict[str, Any] | None) -> bool:
    """Whether the caller says how history and input are merged."""
    if isinstance(config, dict):
        return "session_input_callback" in config
    return config is not None and config.session_input_callback is not None


def model_name(agent: Agent[Any], config: RunConfig) -> str:
    """What the model that an agent asks is called.

    As it was configured. A `Model` is called by its own `model`, which those of the SDK have, or
    by its class.
    """
    model: object = config.model or agent.model or config.model_provider.get_model(None)
    if not isinstance(model, Model):
        return str(model)
    name = getattr(model, "model", None)
    return name if isinstance(name, str) and name else type(model).__name__


def note_trace(record: TurnRecord, session_id: str, user: str | None) -> None:
    """Bind the turn and the MLflow trace around it to each other, if there is one.

    Again and again: a turn may turn out to go into a fork.
    """
    span = mlflow.get_current_active_span()
    if span is None:
        return
    record.trace_id = record.trace_id or span.trace_id
    of_the_user = {"mlflow.trace.user": user} if user is not None else {}
    mlflow.update_current_trace(metadata={"mlflow.trace.session": session_id, **of_the_user})
