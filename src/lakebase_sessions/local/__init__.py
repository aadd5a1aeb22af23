"""A Lakebase on this machine: a real PostgreSQL behind a control plane that speaks REST.

Code under it is unchanged production code. The real `WorkspaceClient`, `AsyncDatabricksSession`,
`LakebaseClient` and pools work against it; three environment variables are all that differs::

    from lakebase_sessions.local import LocalLakebase

    with LocalLakebase() as local:
        os.environ.update(local.environ)
        ...

PostgreSQL comes with `pip install 'lakebase-sessions[local]'`, or is a server
that already runs (`dsn=`).
"""

from lakebase_sessions.local.compute import Compute
from lakebase_sessions.local.http_server import Fault, Request
from lakebase_sessions.local.identities import ServicePrincipal
from lakebase_sessions.local.lakebase import (
    DEFAULT_ENDPOINT,
    DEFAULT_INSTANCE,
    DEFAULT_USER,
    LocalLakebase,
)

__all__ = [
    "DEFAULT_ENDPOINT",
    "DEFAULT_INSTANCE",
    "DEFAULT_USER",
    "Compute",
    "Fault",
    "LocalLakebase",
    "Request",
    "ServicePrincipal",
]
