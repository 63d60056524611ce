"""Remote data: s3://, gs://, az:// and http(s):// URLs through obstore, with retries.

obstore retries failed requests with exponential backoff; if one keeps failing, a `DataError` names
the key. Files are read by byte ranges and never downloaded whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.formats import open_file
from jitkit.stores.locations import Lazy
from jitkit.stores.opened import Opened

T = TypeVar("T")

SCHEMES = ("s3", "gs", "az", "http", "https")
OPTIONS = ("anonymous", "endpoint", "region", "allow_http", "retries")
RETRIES = 6
CONNECT_RETRIES = 2  # until a host answered for the first time: there may be no network
FIRST_WAIT = 0.2  # seconds before the second try
LONGEST_WAIT = 10.0
GROWTH = 4.0  # a wait is drawn between the first and this times the last, so the mean doubles
LONGEST_RETRY = timedelta(minutes=5)  # a request's signature expires later
RETRIED = re.compile(r", after (\d+) retries, max_retries: \d+, retry_timeout: \w+")
_process: int | None = None  # id of the process with obstore's threads
NO_STORE = "pip install 'jitkit[remote]'"
CAUSES = (
    ("dns error", "the name of the host is not found"),
    ("ConnectionRefused", "the connection is refused"),
    ("TimedOut", "the request timed out"),
)
"""Signs of a cause in obstore's debug output, and the text to show."""
OFFLINE_HINT = (
    "on a machine with network access, `jitkit fetch RECIPE --to FOLDER` copies what a recipe "
    "reads; move the folder here and set domain.path=FOLDER"
)


class Remote:
    """An object store below a URL; keys are relative paths. Thread-safe and picklable."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        """Check URL and options; no request is sent yet.

        Raises:
            DataError: an unknown scheme or option, or obstore is not installed.
        """
        _check(url, options)
        self.url, self.options = url.rstrip("/"), dict(options)
        self.retries = int(options.get("retries", RETRIES))
        self._store = Lazy(partial(_connect, self.url, self.options, self.retries))
        few = min(self.retries, CONNECT_RETRIES)
        self._first_store = Lazy(partial(_connect, self.url, self.options, few))
        self._answered = False

    def __repr__(self) -> str:
        return f"Remote({self.url!r}, {sorted(self.options.items())})"

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        """As `locations.Location.read`.

        Raises:
            DataError: access denied, ``retries`` failures, or no answer from the host; the text
                names the key.
        """
        if length == 0:
            return b""
        return self._request(key, partial(_read, key, start, length))

    def stamp(self, key: str) -> str:
        """Size, modification time and entity tag; ``""`` if the key does not exist."""
        import obstore

        head = self._request(key, lambda store: obstore.head(store, key))
        if head is None:
            return ""
        return f"{head['size']} {head['last_modified']} {head.get('e_tag')}"

    def _request(self, key: str, request: Callable[[Any], T]) -> T | None:
        """Result of ``request``, given the store; None for a missing key."""
        answered = self._answered
        try:
            result: T | None = request(self._store() if answered else self._first_store())
        except FileNotFoundError:
            result = None
        except Exception as error:
            if answered:
                raise DataError(f"{self.url}/{key}: {_reason(error, self.retries)}") from error
            if "kind: Connect" in str(error):
                tries = min(self.retries, CONNECT_RETRIES) + 1
                why = f"failed {tries} times: {_cause(error) or _short(error)}"
                raise DataError(f"{self.url}: cannot be reached: {why}; {OFFLINE_HINT}") from error
            self._answered = True
            return self._request(key, request)  # with all retries
        self._answered = True
        return result


def _read(key: str, start: int, length: int | None, store: Any) -> bytes:
    import obstore

    if length is None or start < 0:
        span: Any = {"suffix": -start} if start < 0 else {"offset": start}
        options: Any = {"range": span} if start else None
        return bytes(obstore.get(store, key, options=options).bytes())[:length]
    data = bytes(obstore.get_range(store, key, start=start, length=length))
    if len(data) != length:
        raise OSError(f"received {len(data)} of {length} bytes")
    return data


def _short(error: BaseException) -> str:
    text = str(error).partition("Debug source")[0]  # without obstore's debug output
    return " ".join(RETRIED.sub("", text).split())[:300] or type(error).__name__


def _cause(error: BaseException) -> str:
    """Cause of a failed connection by obstore's debug output, if known."""
    return next((text for sign, text in CAUSES if sign in str(error)), "")


def _reason(error: Exception, retries: int) -> str:
    """Why a request failed, and after how many tries."""
    from obstore import exceptions

    denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    if isinstance(error, denied):
        return f"access denied; for public data set domain.options.anonymous ({_short(error)})"
    if isinstance(error, exceptions.NotSupportedError):
        return f"the server does not support the request: {_short(error)}; copy the data to disk"
    if retried := RETRIED.search(str(error)):
        return f"failed {int(retried[1]) + 1} times, last with: {_short(error)}"
    if "body error" in str(error):  # obstore does not count these
        return f"failed {retries + 1} times, last with: {_short(error)}"
    return _short(error)


class RemoteFile:
    """One object as a location; its only key is ``""``."""

    def __init__(self, folder: Remote, key: str) -> None:
        self._folder, self._key = folder, key

    def __repr__(self) -> str:
        return f"RemoteFile({self._folder!r}, {self._key!r})"

    def read(self, key: str = "", start: int = 0, length: int | None = None) -> bytes:
        data = self._folder.read(self._key, start, length)
        if data is None:
            raise DataError(f"{self._folder.url}/{self._key}: no longer exists")
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
    """An obstore store with root ``url``.

    Raises:
        DataError: in a fork of a process that has used obstore; without obstore's threads, the
            fork would hang or crash.
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
                "base": GROWTH,
            },
            "retry_timeout": LONGEST_RETRY,
        },
        **more,
    )


def _shared_credentials() -> dict[str, Any]:
    """Credentials of ``~/.aws`` through boto3; empty if the environment has credentials."""
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    if "AWS_ACCESS_KEY_ID" in os.environ or not path.exists():
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    return {"credential_provider": Boto3CredentialProvider()}


@contextmanager
def open_remote(url: str, group: str | None, options: Mapping[str, Any]) -> Iterator[Opened]:
    """Open a Zarr store or a file by URL.

    Raises:
        DataError: as `open.open_path`, or the store cannot be reached.
    """
    from jitkit.stores.zarrfiles import METADATA, open_zarr

    if "*" in url:
        raise DataError(f"{url}: globs are for files on disk; name one file, or a Zarr store")
    location = Remote(url, options)
    metadata = {name: data for name in METADATA if (data := _probe(location, name))}
    if metadata:
        if url.startswith("http") and not _needs_no_listing(metadata):
            raise DataError(
                f"{url}: has no consolidated metadata, and a web server cannot list arrays; run "
                "zarr.consolidate_metadata(path) on the server"
            )
        make_store = partial(_zarr_store, location.url, dict(options), location.retries)
        with open_zarr(url, location, make_store, group) as opened:
            yield opened
        return
    folder, _, name = location.url.rpartition("/")
    file = RemoteFile(Remote(folder, options), name)
    if not file.stamp():
        raise DataError(f"{url}: does not exist: neither a file nor Zarr's {listed(METADATA)}")
    with open_file(file, url, group) as opened:
        yield opened


def _zarr_store(url: str, options: Mapping[str, Any], retries: int) -> Any:
    from zarr.storage import ObjectStore

    return ObjectStore(_connect(url, options, retries), read_only=True)


def _probe(location: Remote, name: str) -> bytes | None:
    """Bytes of a key; None also if access is denied, as by stores without permission to list."""
    try:
        return location.read(name)
    except DataError as error:
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        if isinstance(error.__cause__, PermissionDeniedError | UnauthenticatedError):
            return None
        raise


def _needs_no_listing(metadata: Mapping[str, bytes]) -> bool:
    """Whether the Zarr metadata list all arrays, or the store is a single array."""
    zarr_json = metadata.get("zarr.json", b"")
    complete = b'"consolidated_metadata"' in zarr_json or b'"array"' in zarr_json
    return complete or ".zmetadata" in metadata or ".zarray" in metadata
