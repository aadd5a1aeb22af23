"""Which Lakebase, and as whom: settings, target, the workspace's API, credentials."""
