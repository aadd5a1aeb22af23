"""Environment -> Settings: which variables count, in which order, and who was overruled."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import pytest

from lakebase_sessions import ConfigurationError, MissingConfiguration
from lakebase_sessions.workspace.settings import Settings, check_schema
from lakebase_sessions.workspace.target import Address

ENDPOINT = "LAKEBASE_AUTOSCALING_ENDPOINT"
PROJECT = "LAKEBASE_AUTOSCALING_PROJECT"
BRANCH = "LAKEBASE_AUTOSCALING_BRANCH"
INSTANCE = "LAKEBASE_INSTANCE_NAME"
SCHEMA = "LAKEBASE_AGENT_MEMORY_SCHEMA"

ENDPOINT_PATH = "projects/shop/branches/main/endpoints/primary"
BRANCH_PATH = "projects/shop/branches/dev"

IN_ORDER: list[tuple[tuple[str, ...], dict[str, str], str]] = [
    ((ENDPOINT,), {ENDPOINT: ENDPOINT_PATH}, ENDPOINT_PATH),
    ((BRANCH, PROJECT), {PROJECT: "shop", BRANCH: "dev"}, BRANCH_PATH),
    ((INSTANCE,), {INSTANCE: "my-lake"}, "my-lake"),
    (("PGHOST",), {"PGHOST": "ep-a-1.database.x.cloud.databricks.com"}, "ep-a-1.database.x."),
]
"""What can name a Lakebase, first to last: sources, variables, target."""


@pytest.fixture(autouse=True)
def misleading_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is given an environ and reads the process's finds this."""
    for name in (ENDPOINT, PROJECT, BRANCH, INSTANCE, SCHEMA, "PGHOST", "PGDATABASE"):
        monkeypatch.setenv(name, "of-the-process")


class TestTheOrder:
    @pytest.mark.parametrize("first", range(4), ids=[sources[0] for sources, _, _ in IN_ORDER])
    def test_earlier_ones_win_and_later_ones_are_named(self, first: int) -> None:
        environ: dict[str, str] = {}
        for _, variables, _ in IN_ORDER[first:]:
            environ |= variables
        settings = Settings.from_environ(environ)
        sources, _, target = IN_ORDER[first]
        assert settings.target.startswith(target)
        assert settings.source in sources
        assert set(settings.ignored) == {
            name for names, _, _ in IN_ORDER[first + 1 :] for name in names
        }

    def test_the_order_of_the_mapping_does_not_matter(self) -> None:
        for (_, one, target), (_, other, _) in combinations(IN_ORDER, 2):
            assert Settings.from_environ(other | one).target.startswith(target)

    def test_an_argument_comes_before_all(self) -> None:
        settings = Settings.from_environ(
            {INSTANCE: "my-lake", ENDPOINT: ENDPOINT_PATH}, target="  other-lake "
        )
        assert (settings.target, settings.source) == ("other-lake", "argument")
        assert set(settings.ignored) == {INSTANCE, ENDPOINT}

    @pytest.mark.parametrize("blank", ["", "  ", "\t\n"])
    def test_a_blank_is_unset(self, blank: str) -> None:
        environ = {ENDPOINT: blank, BRANCH: blank, PROJECT: blank, INSTANCE: " my-lake\n"}
        settings = Settings.from_environ(environ | {"PGHOST": blank, SCHEMA: blank}, target=blank)
        assert settings == Settings(target="my-lake", source=INSTANCE)

    def test_nothing_is_ignored_where_there_is_one(self) -> None:
        assert Settings.from_environ({INSTANCE: "my-lake"}).ignored == ()

    def test_pghost_and_pgdatabase_are_kept_whoever_wins(self) -> None:
        """PGDATABASE counts if PGHOST turns out to be the target's host."""
        settings = Settings.from_environ(
            {INSTANCE: "my-lake", "PGHOST": "h.example.com", "PGDATABASE": "shop"}
        )
        assert (settings.pg_host, settings.pg_database) == ("h.example.com", "shop")


class TestWhatIsRead:
    def test_only_the_environ_that_is_given(self) -> None:
        with pytest.raises(MissingConfiguration):
            Settings.from_environ({})
        assert Settings.from_environ({INSTANCE: "my-lake"}) == Settings("my-lake", INSTANCE)

    def test_the_process_environment_where_none_is_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(ENDPOINT)
        monkeypatch.delenv(BRANCH)
        monkeypatch.delenv(PROJECT)
        settings = Settings.from_environ()
        assert (settings.target, settings.source) == ("of-the-process", INSTANCE)
        assert settings.schema == "of-the-process"

    def test_settings_do_not_change(self) -> None:
        settings = Settings.from_environ({INSTANCE: "my-lake"})
        with pytest.raises(dataclasses.FrozenInstanceError):
            settings.target = "other"  # type: ignore[misc]


class TestNothing:
    @pytest.mark.parametrize("environ", [{}, {INSTANCE: " "}, {"PGDATABASE": "x", SCHEMA: "x"}])
    def test_the_message_lists_every_way(self, environ: dict[str, str]) -> None:
        with pytest.raises(MissingConfiguration) as raised:
            Settings.from_environ(environ)
        message = str(raised.value)
        assert message.startswith("LAKEBASE_INSTANCE_NAME environment variable is required")
        for way in (ENDPOINT, PROJECT, BRANCH, "PGHOST", "Lakebase(", "lakebase-sessions local"):
            assert way in message


class TestPairs:
    @pytest.mark.parametrize(
        ("project", "branch"),
        [
            ("shop", "dev"),
            ("projects/shop", "dev"),
            (" shop ", " dev "),
            ("shop", BRANCH_PATH),
            ("projects/shop", BRANCH_PATH),
            ("", BRANCH_PATH),
        ],
    )
    def test_ids_and_paths(self, project: str, branch: str) -> None:
        settings = Settings.from_environ({PROJECT: project, BRANCH: branch})
        assert settings.target == BRANCH_PATH
        assert settings.ignored == ()

    @pytest.mark.parametrize(
        ("half", "missing"),
        [
            ({PROJECT: "shop"}, BRANCH),
            ({PROJECT: "shop", BRANCH: "  "}, BRANCH),
            ({BRANCH: "dev"}, PROJECT),
            ({BRANCH: "dev", PROJECT: ""}, PROJECT),
            ({BRANCH: "dev", INSTANCE: "my-lake"}, PROJECT),
        ],
    )
    def test_half_a_pair_names_the_missing_half(self, half: dict[str, str], missing: str) -> None:
        with pytest.raises(ConfigurationError, match=f"{missing} is not: set both") as raised:
            Settings.from_environ(half)
        assert not isinstance(raised.value, MissingConfiguration)

    def test_half_a_pair_does_no_harm_where_something_else_wins(self) -> None:
        settings = Settings.from_environ({ENDPOINT: ENDPOINT_PATH, BRANCH: "dev"})
        assert (settings.target, settings.ignored) == (ENDPOINT_PATH, (BRANCH,))

    def test_two_projects_at_odds(self) -> None:
        with pytest.raises(ConfigurationError, match=f"another project than {PROJECT} names"):
            Settings.from_environ({PROJECT: "other", BRANCH: BRANCH_PATH})

    @pytest.mark.parametrize(
        ("project", "branch"),
        [
            ("shop", "feature/dev"),
            ("shop", "../dev"),
            ("shop", "projects"),
            ("shop/../x", "dev"),
            ("shop", "dev?x"),
            ("shop", "projects/"),
        ],
    )
    def test_what_is_no_id_never_becomes_another_branch(self, project: str, branch: str) -> None:
        """`feature/dev`, as Git would call it, is no branch of Lakebase, least of all `dev`."""
        try:
            address = Address.parse(
                Settings.from_environ({PROJECT: project, BRANCH: branch}).target
            )
        except ConfigurationError:
            return
        assert address.value == f"projects/{project}/branches/{branch}"


class TestSchema:
    def test_from_the_variable(self) -> None:
        assert Settings.from_environ({INSTANCE: "x", SCHEMA: " memory "}).schema == "memory"

    def test_an_argument_comes_first(self) -> None:
        settings = Settings.from_environ({INSTANCE: "x", SCHEMA: "memory"}, schema="mine")
        assert settings.schema == "mine"

    def test_none_is_the_roles_default(self) -> None:
        assert Settings.from_environ({INSTANCE: "x"}).schema is None
        assert check_schema(None) is None

    @pytest.mark.parametrize(
        "schema", ["a", "My Schema", 'say "hi"', "x; DROP TABLE y", "x" * 63, "ü" * 31]
    )
    def test_names_that_postgres_keeps(self, schema: str) -> None:
        """They are quoted where they are used, so that any name is only a name."""
        assert check_schema(schema) == schema

    @pytest.mark.parametrize(
        "schema",
        ["", "  ", "x" * 64, "ü" * 32, "a\x00b", "a\nb", "a\ud800", "x" * 10_000],
        ids=["empty", "blank", "64", "64 bytes", "NUL", "newline", "surrogate", "long"],
    )
    def test_names_that_it_cannot_keep(self, schema: str) -> None:
        with pytest.raises(ConfigurationError, match="1 to 63 bytes") as raised:
            Settings.from_environ({INSTANCE: "x"}, schema=schema)
        message = str(raised.value)
        assert SCHEMA in message
        assert len(message) < 300
        message.encode("utf-8")

    def test_a_bad_variable_too(self) -> None:
        with pytest.raises(ConfigurationError, match=SCHEMA):
            Settings.from_environ({INSTANCE: "x", SCHEMA: "x" * 64})
