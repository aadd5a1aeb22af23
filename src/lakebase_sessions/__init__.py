"""OpenAI Agents SDK sessions on Databricks Lakebase, in one line: `session_for(request)`.

The names are loaded on first use (PEP 562): importing the package loads and does nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakebase_sessions.conversation.atomic import AtomicTurn
    from lakebase_sessions.conversation.history import merge_history
    from lakebase_sessions.conversation.listing import Conversation, Page, Pruned
    from lakebase_sessions.conversation.session import LakebaseSession
    from lakebase_sessions.conversation.session_id import get_session_id
    from lakebase_sessions.conversation.soundness import RefusedItem
    from lakebase_sessions.conversation.store import SessionStore
    from lakebase_sessions.conversation.turns import Branch, Turn, Usage
    from lakebase_sessions.errors import (
        ApprovalNotFound,
        BranchNotFound,
        ConfigurationError,
        ConversationBusy,
        ConversationConflict,
        ConversationExists,
        ConversationNotFound,
        DatabaseFailure,
        InvalidApproval,
        InvalidExport,
        InvalidItems,
        InvalidLimit,
        InvalidMetadata,
        InvalidQuery,
        InvalidSessionId,
        InvalidTurn,
        InvalidUser,
        ItemNotFound,
        LakebaseNotOpen,
        LakebaseSessionsError,
        LakebaseTimeout,
        LakebaseUnavailable,
        LocalLakebaseError,
        MissingConfiguration,
        PermissionDenied,
        StateUnreadable,
        TablesMissing,
        TargetNotFound,
        TurnNotFound,
        TurnNotOpen,
    )
    from lakebase_sessions.factory import default_lakebase, session_for
    from lakebase_sessions.lakebase import Lakebase
    from lakebase_sessions.server.conversations import add_conversations, conversations_router
    from lakebase_sessions.server.http import add_error_handlers
    from lakebase_sessions.server.turns import current_user, invoke_turn, stream_turn
    from lakebase_sessions.transfer.export import export_conversations
    from lakebase_sessions.transfer.load import Loaded, load_conversations
    from lakebase_sessions.workspace.target import resolve_lakebase_instance_name

_HOMES = {
    "conversation.atomic": ("AtomicTurn",),
    "conversation.history": ("merge_history",),
    "conversation.listing": ("Conversation", "Page", "Pruned"),
    "conversation.session": ("LakebaseSession",),
    "conversation.session_id": ("get_session_id",),
    "conversation.soundness": ("RefusedItem",),
    "conversation.store": ("SessionStore",),
    "conversation.turns": ("Branch", "Turn", "Usage"),
    "factory": ("default_lakebase", "session_for"),
    "lakebase": ("Lakebase",),
    "server.conversations": ("add_conversations", "conversations_router"),
    "server.http": ("add_error_handlers",),
    "server.turns": ("current_user", "invoke_turn", "stream_turn"),
    "transfer.export": ("export_conversations",),
    "transfer.load": ("Loaded", "load_conversations"),
    "workspace.target": ("resolve_lakebase_instance_name",),
}

__all__ = [
    "ApprovalNotFound",
    "AtomicTurn",
    "Branch",
    "BranchNotFound",
    "ConfigurationError",
    "Conversation",
    "ConversationBusy",
    "ConversationConflict",
    "ConversationExists",
    "ConversationNotFound",
    "DatabaseFailure",
    "InvalidApproval",
    "InvalidExport",
    "InvalidItems",
    "InvalidLimit",
    "InvalidMetadata",
    "InvalidQuery",
    "InvalidSessionId",
    "InvalidTurn",
    "InvalidUser",
    "ItemNotFound",
    "Lakebase",
    "LakebaseNotOpen",
    "LakebaseSession",
    "LakebaseSessionsError",
    "LakebaseTimeout",
    "LakebaseUnavailable",
    "Loaded",
    "LocalLakebaseError",
    "MissingConfiguration",
    "Page",
    "PermissionDenied",
    "Pruned",
    "RefusedItem",
    "SessionStore",
    "StateUnreadable",
    "TablesMissing",
    "TargetNotFound",
    "Turn",
    "TurnNotFound",
    "TurnNotOpen",
    "Usage",
    "add_conversations",
    "add_error_handlers",
    "conversations_router",
    "current_user",
    "default_lakebase",
    "export_conversations",
    "get_session_id",
    "invoke_turn",
    "load_conversations",
    "merge_history",
    "resolve_lakebase_instance_name",
    "session_for",
    "stream_turn",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
