"""Data behind an address: s3://, gs://, az:// and http(s)://, through obstore.

A request that fails is tried again, each time later; one that keeps failing is a `DataError` that
names the key. Files are read by ranges of bytes, so that none is downloaded whole.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.formats import opened_file
from jitkit.stores.locations import Lazy
from jitkit.stores.opened import Opened

T = TypeVar("T")

SCHEMES = ("s3", "gs", "az", "http", "https")
OPTIONS = ("anonymous", "endpoint", "region", "allow_http", "retries")
RETRIES = 6
FIRST_CONTACT = 3  # tries of a host that has not answered yet: a machine may have no network
FIRST_WAIT = 0.2  # seconds before the second try; doubled each time, and varied by half
LONGEST_WAIT = 10.0
_process: int | None = None  # the process that runs obstore's threads
NO_STORE = "pip install 'jitkit[remote]'"
CAUSES = (
    ("dns error", "the name of the host is not found"),
    ("ConnectionRefused", "the connection is refused"),
    ("TimedOut", "no answer came in time"),
)
"""What obstore's state says of a failure beside its message."""
ELSEWHERE = (
    "where there is a network, `jitkit fetch RECIPE --to FOLDER` copies what a recipe reads; bring "
    "the folder here and point at it with domain.path=FOLDER"
)


class Remote:
    """An object store from an address on; keys are paths below it. Safe for threads; pickles."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        """Name a store; nothing is asked of it yet.

        Raises:
            DataError: an unknown scheme or option, or obstore is not installed.
        """
        _check(url, options)
        self.url, self.options = url.rstrip("/"), dict(options)
        self.retries = int(options.get("retries", RETRIES))
        self._store = Lazy(partial(_connect, self.url, self.options, 0))
        self._answered = False

    def __repr__(self) -> str:
        return f"Remote({self.url!r}, {sorted(self.options.items())})"

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        """As `places.Place.read`.

        Raises:
            DataError: refused, or failed ``retries`` times, or the host does not answer at all; the
                text names the key.
        """
        return self._patiently(key, partial(self._read, key, start, length))

    def _read(self, key: str, start: int, length: int | None) -> bytes:
        import obstore

        if length == 0:
            return b""
        if start < 0:
            tail = obstore.get(self._store(), key, options={"range": {"suffix": -start}})
            data = bytes(tail.bytes())[:length]
        elif length is None and not start:
            return bytes(obstore.get(self._store(), key).bytes())
        elif length is None:
            return bytes(
                obstore.get(self._store(), key, options={"range": {"offset": start}}).bytes()
            )
        else:
            data = bytes(obstore.get_range(self._store(), key, start=start, length=length))
        if length is not None and len(data) != length:
            raise OSError(f"{len(data)} of {length} bytes came")
        return data

    def stamp(self, key: str) -> str:
        """Size, time of change and entity tag; ``""`` where there is no key."""
        import obstore

        found = self._patiently(key, lambda: obstore.head(self._store(), key))
        if found is None:
            return ""
        return f"{found['size']} {found['last_modified']} {found.get('e_tag')}"

    def _patiently(self, key: str, ask: Callable[[], T]) -> T | None:
        """What ``ask`` gives, asked again while the connection fails; None for a missing key."""
        for attempt in range(self.retries + 1):
            try:
                found = ask()
                self._answered = True
                return found
            except FileNotFoundError:
                self._answered = True
                return None
            except BaseException as error:
                why = _final(error)
                unheard = not self._answered and "kind: Connect" in str(error)
                most = min(self.retries, FIRST_CONTACT - 1) if unheard else self.retries
                if why is None and attempt >= most:
                    why = f"failed {attempt + 1} times, at last with: {_short(error)}"
                if why is not None and unheard:
                    tries = f"failed {attempt + 1} times, since {_cause(error) or _short(error)}"
                    raise DataError(
                        f"{self.url}: cannot be reached: {tries}; {ELSEWHERE}"
                    ) from error
                if why is not None:
                    raise DataError(f"{self.url}/{key}: {why}") from error
                self._answered |= not unheard
            time.sleep(_wait(attempt))
        raise AssertionError("not reached")


def _wait(attempt: int) -> float:
    """Seconds before the next try, random so that workers do not come back all at once."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt) * random.uniform(0.5, 1.5)


def _short(error: BaseException) -> str:
    told = str(error).partition("Debug source")[0]  # what follows is obstore's own state
    return " ".join(told.split())[:300] or type(error).__name__


def _cause(error: BaseException) -> str:
    """Why a connection was not made, where obstore's state says so."""
    return next((what for sign, what in CAUSES if sign in str(error)), "")


def _final(error: BaseException) -> str | None:
    """Why another try would be in vain; None where it would not.

    Raises:
        BaseException: what is no failure of a request, such as an interrupt.
    """
    from obstore import exceptions as failed

    refused = (failed.PermissionDeniedError, failed.UnauthenticatedError)
    if isinstance(error, refused):
        return f"refused; for public data set domain.options.anonymous ({_short(error)})"
    if isinstance(error, failed.NotSupportedError):
        return f"the server does not do what is needed: {_short(error)}; copy the data to disk"
    if isinstance(error, failed.BaseError | OSError):
        return None
    if isinstance(error, Exception):
        return _short(error)
    raise error


class RemoteFile:
    """One object as a place of its own; its only key is ``""``."""

    def __init__(self, folder: Remote, key: str) -> None:
        self._folder, self._key = folder, key

    def __repr__(self) -> str:
        return f"RemoteFile({self._folder!r}, {self._key!r})"

    def read(self, key: str = "", start: int = 0, length: int | None = None) -> bytes:
        data = self._folder.read(self._key, start, length)
        if data is None:
            raise DataError(f"{self._folder.url}/{self._key}: is gone")
        return data

    def stamp(self, key: str = "") -> str:
        return self._folder.stamp(self._key)


def _check(url: str, options: Mapping[str, Any]) -> None:
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise DataError(f"{url}: no scheme {scheme!r}; known: {listed(SCHEMES)}")
    for name in options:
        if name not in OPTIONS:
            raise DataError(
                f"domain.options.{name}: unknown; known: {listed(OPTIONS)}{nearest(name, OPTIONS)}"
            )
    try:
        import obstore  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"{url} is read with obstore, which is not installed: {NO_STORE}"
        ) from error


def _connect(url: str, options: Mapping[str, Any], retries: int) -> Any:
    """An obstore store whose root is ``url``.

    Raises:
        DataError: in a fork of a process that has used obstore, whose threads are then gone; the
            process would hang or crash.
    """
    global _process
    from obstore.store import from_url

    _process = _process or os.getpid()
    if _process != os.getpid():
        raise DataError(f"{url}: cannot be read after a fork; start workers by spawn")

    scheme = url.partition("://")[0]
    config: dict[str, Any] = {}
    more: dict[str, Any] = {}
    if scheme in ("s3", "gs", "az") and options.get("anonymous"):
        config["skip_signature"] = True
    if scheme in ("s3", "gs", "az") and "endpoint" in options:
        config["base_url" if scheme == "gs" else "endpoint"] = options["endpoint"]
    if scheme == "s3":
        config["region"] = options.get("region") or os.environ.get("AWS_REGION", "us-east-1")
        more = {} if options.get("anonymous") else _shared_credentials()
    http = options.get("allow_http", scheme == "http")
    connect: Any = from_url
    return connect(
        url,
        **({"config": config} if config else {}),
        client_options={
            "allow_http": bool(http),
            "connect_timeout": timedelta(seconds=10),
            "read_timeout": timedelta(seconds=30),  # between bytes; a chunk may take longer
            "timeout": timedelta(minutes=10),
        },
        retry_config={
            "max_retries": retries,
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_WAIT),
                "max_backoff": timedelta(seconds=LONGEST_WAIT),
                "base": 2,
            },
            "retry_timeout": timedelta(minutes=3),
        },
        **more,
    )


def _shared_credentials() -> dict[str, Any]:
    """Those of ``~/.aws``, which obstore leaves to boto3; none where the environment has some."""
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    if "AWS_ACCESS_KEY_ID" in os.environ or not path.exists():
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    return {"credential_provider": Boto3CredentialProvider()}


@contextmanager
def opened_remote(url: str, group: str | None, options: Mapping[str, Any]) -> Iterator[Opened]:
    """The contents of a Zarr store or a file at an address.

    Raises:
        DataError: as `formats.opened`, or the store cannot be reached.
    """
    from jitkit.stores.zarrfiles import METADATA, opened_zarr

    if "*" in url:
        raise DataError(f"{url}: globs are for files on disk; name one file, or a Zarr store")
    place = Remote(url, options)
    metadata = {name: data for name in METADATA if (data := _probe(place, name))}
    if metadata:
        if url.startswith("http") and not _needs_no_listing(metadata):
            raise DataError(
                f"{url}: has no consolidated metadata, and a web server does not list what is "
                "there; run zarr.consolidate_metadata(path) where the data lie"
            )
        make_store = partial(_zarr_store, place.url, dict(options), place.retries)
        with opened_zarr(url, place, make_store, group) as found:
            yield found
        return
    folder, _, name = place.url.rpartition("/")
    file = RemoteFile(Remote(folder, options), name)
    if not file.stamp():
        raise DataError(f"{url}: nothing is there: neither a file, nor Zarr's {listed(METADATA)}")
    with opened_file(file, url, group) as found:
        yield found


def _zarr_store(url: str, options: Mapping[str, Any], retries: int) -> Any:
    from zarr.storage import ObjectStore

    return ObjectStore(_connect(url, options, retries), read_only=True)


def _probe(place: Remote, name: str) -> bytes | None:
    """Bytes of a key; None also where they are refused, as stores do whose keys none may list."""
    try:
        return place.read(name)
    except DataError as error:
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        if isinstance(error.__cause__, PermissionDeniedError | UnauthenticatedError):
            return None
        raise


def _needs_no_listing(metadata: Mapping[str, bytes]) -> bool:
    """Zarr's metadata name all arrays, or there is but one."""
    described = metadata.get("zarr.json", b"")
    whole = b'"consolidated_metadata"' in described or b'"array"' in described
    return whole or ".zmetadata" in metadata or ".zarray" in metadata
