"""Conversations on their way: out of a Lakebase, and in from a file or another store."""
