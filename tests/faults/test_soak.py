"""The soak, in short, and whether its checker sees what it is there to see."""

from __future__ import annotations

import pytest
from conftest import admin, choice

from faults.checker import Checker
from faults.report import Options
from faults.soak import soak
from lakebase_sessions import Lakebase, LakebaseNotOpen
from lakebase_sessions.local import LocalLakebase


@pytest.mark.long
def test_a_short_soak(pytestconfig: pytest.Config) -> None:
    """Some seconds of faults. `uv run tests/faults/soak.py` goes on for as long as one likes."""
    options = Options(
        seconds=4.0,
        conversations=10,
        seed=5,
        postgres=choice(pytestconfig),
        call_timeout_seconds=1.0,
        longest_fault_seconds=1.0,
        longest_pause_seconds=0.2,
    )
    report = soak(options)
    assert report.problems() == []
    assert report.verdict.acknowledged > 20, "it has tried something"


DELETE = "DELETE FROM agent_messages WHERE message_data LIKE '%{}%'"
DATE_BACK = (
    "UPDATE agent_messages SET created_at = created_at - interval '1 day' "
    "WHERE message_data LIKE '%{}%'"
)
REPEAT = (
    "INSERT INTO agent_messages (session_id, message_data) "
    "SELECT session_id, message_data FROM agent_messages WHERE message_data LIKE '%{}%'"
)


@pytest.mark.parametrize(
    ("tampering", "where", "found"),
    [
        pytest.param(DELETE, "batch 9", {}, id="nothing"),
        pytest.param(DELETE, "batch 1", {"lost": 1}, id="a batch is gone"),
        pytest.param(DELETE, "batch 1 item 2", {"lost": 1, "torn": 1}, id="an item is gone"),
        pytest.param(REPEAT, "batch 1 item 0", {"doubled": 1}, id="an item comes twice"),
        pytest.param(DATE_BACK, "batch 2", {"disordered": 1}, id="a batch is too early"),
        # in two pieces, and one of them stands before batch 0
        pytest.param(DATE_BACK, "batch 1 item 1", {"disordered": 2}, id="an item is too early"),
    ],
)
async def test_the_checker_sees_what_has_been_tampered_with(
    lakebase: Lakebase,
    local: LocalLakebase,
    database: str,
    tampering: str,
    where: str,
    found: dict[str, int],
) -> None:
    checker = Checker()
    session = lakebase.session("s")
    for size in (1, 3, 1):
        await checker.add(session, size)
    with admin(local, database) as connection:
        assert checker.verdict(connection).clean
        connection.execute(tampering.format(where).encode())
        verdict = checker.verdict(connection)
    expected = dict.fromkeys(("lost", "doubled", "torn", "disordered", "phantoms"), 0) | found
    assert {name: getattr(verdict, name) for name in expected} == expected
    assert verdict.clean is not bool(found)


async def test_the_checker_sees_what_was_refused_and_stored(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    checker = Checker()
    await checker.add(lakebase.session("s"))
    await lakebase.close()
    with pytest.raises(LakebaseNotOpen):
        await checker.add(lakebase.session("s"))
    with admin(local, database) as connection:
        verdict = checker.verdict(connection)
        assert (verdict.acknowledged, verdict.refused, verdict.phantoms) == (1, 1, 0)
        connection.execute(
            "INSERT INTO agent_messages (session_id, message_data) "
            """VALUES ('s', '{"content": "batch 1 item 0 of 1"}')"""
        )
        assert checker.verdict(connection).phantoms == 1
