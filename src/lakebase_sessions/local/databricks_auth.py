"""A stand-in for the platform's extension `databricks_auth`, which makes roles for identities.

It offers what the platform's documents name: `CREATE EXTENSION IF NOT EXISTS databricks_auth`, in
each database, by somebody with CREATE on it; then `databricks_create_role(name, type)` and the
view `databricks_list_roles`. Nothing is installed beside the server's own files for it, which may
be somebody else's: an event trigger sees the statement coming and fills in the catalog.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakebase_sessions.local.admin import Connection

MARK = "made by lakebase_sessions.local"
"""The beginning of the comment on a role that may be altered here. Others are somebody else's."""
SUPERUSER = "databricks_superuser"
CONTROL_PLANE = "databricks_control_plane"
"""Its comment holds, behind the mark, who is in the workspace: `{name: [kind, id]}`."""

_OFFER = f"""
CREATE SCHEMA IF NOT EXISTS __db_system;
CREATE OR REPLACE FUNCTION __db_system.create_databricks_auth() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $trigger$
DECLARE
  extension oid;
BEGIN
  IF current_query() !~* 'databricks_auth'
    OR EXISTS (SELECT FROM pg_extension WHERE extname = 'databricks_auth')
  THEN
    RETURN;
  END IF;
  IF current_query() !~* 'if\\s+not\\s+exists' THEN
    RAISE feature_not_supported USING MESSAGE =
      'in a local Lakebase it is CREATE EXTENSION IF NOT EXISTS databricks_auth';
  END IF;
  IF NOT has_database_privilege(session_user, current_database(), 'CREATE') THEN
    RAISE insufficient_privilege USING
      MESSAGE = 'permission denied to create extension "databricks_auth"',
      HINT = 'Must have CREATE privilege on current database to create this extension.';
  END IF;

  CREATE FUNCTION public.databricks_create_role(role_name text, identity_type text) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
  DECLARE
    everybody json := substr(
      shobj_description('{CONTROL_PLANE}'::regrole, 'pg_authid'), {len(MARK) + 1});
    caller pg_roles := (SELECT r FROM pg_roles r WHERE rolname = session_user);
  BEGIN
    IF NOT EXISTS (
      SELECT FROM pg_shseclabel WHERE objoid = caller.oid AND provider = 'databricks_auth')
    THEN
      RAISE insufficient_privilege USING
        MESSAGE = 'permission denied to create role',
        DETAIL = 'Only who is logged in with a Databricks identity may create roles for others.';
    END IF;
    IF NOT caller.rolcreaterole THEN
      RAISE insufficient_privilege USING
        MESSAGE = 'permission denied to create role',
        DETAIL = 'Only roles with the CREATEROLE attribute may create roles.';
    END IF;
    IF NOT has_database_privilege(session_user, current_database(), 'CREATE') THEN
      RAISE insufficient_privilege USING
        MESSAGE = format('permission denied for database %s', current_database());
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
      RAISE duplicate_object USING MESSAGE = format('role "%s" already exists', role_name);
    END IF;
    IF everybody -> role_name ->> 0 IS DISTINCT FROM upper(identity_type) THEN
      RAISE invalid_parameter_value USING MESSAGE =
        format('Databricks identity "%s" of type "%s" not found', role_name, identity_type);
    END IF;
    EXECUTE format('CREATE ROLE %I LOGIN', role_name);
    EXECUTE format('COMMENT ON ROLE %I IS %L', role_name, '{MARK}');
    INSERT INTO pg_shseclabel (objoid, classoid, provider, label)
    SELECT oid, 'pg_authid'::regclass, 'databricks_auth',
      format('id=%s,type=%s', everybody -> role_name ->> 1, everybody -> role_name ->> 0)
    FROM pg_roles WHERE rolname = role_name;
  END
  $function$;
  CREATE VIEW public.databricks_list_roles AS
  SELECT rolname AS role_name, lower(substring(label FROM 'type=(.*)')) AS identity_type
  FROM pg_roles r JOIN pg_shseclabel l ON l.objoid = r.oid AND provider = 'databricks_auth';
  GRANT SELECT ON public.databricks_list_roles TO PUBLIC;

  extension := pg_nextoid('pg_extension', 'oid', 'pg_extension_oid_index');
  INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
  SELECT extension, 'databricks_auth', oid, 'public'::regnamespace, false, '1.0'
  FROM pg_roles WHERE rolname = current_user;
  -- What the extension consists of, so that DROP EXTENSION takes it along.
  INSERT INTO pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
  SELECT classid, objid, 0, 'pg_extension'::regclass, extension, 0, 'e'
  FROM (VALUES
    ('pg_proc'::regclass, 'public.databricks_create_role(text, text)'::regprocedure::oid),
    ('pg_class'::regclass, 'public.databricks_list_roles'::regclass::oid)
  ) AS member (classid, objid);
END
$trigger$;
DROP EVENT TRIGGER IF EXISTS create_databricks_auth;
CREATE EVENT TRIGGER create_databricks_auth ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION')
EXECUTE FUNCTION __db_system.create_databricks_auth();
"""  # noqa: S608 constants of ours

_REMOVE = """
DROP EXTENSION IF EXISTS databricks_auth;
DROP EVENT TRIGGER IF EXISTS create_databricks_auth;
DROP SCHEMA IF EXISTS __db_system CASCADE;
"""


def offer(conn: Connection) -> None:
    """Let people create the extension in the database of a superuser's connection."""
    with conn.transaction():
        conn.execute(_OFFER)


def remove(conn: Connection) -> None:
    """Take the extension and the offer out of a database."""
    with conn.transaction():
        conn.execute(_REMOVE)
