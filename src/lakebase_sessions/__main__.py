"""`python -m lakebase_sessions`: the command line, where its script is not on the path."""

from lakebase_sessions.cli import main

main(prog_name="lakebase-sessions")
