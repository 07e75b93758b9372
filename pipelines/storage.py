"""All reading and writing goes through here: a `Store` is one root on S3, Azure or local disk.

It uses obstore (Rust's object_store): a GET costs about half the CPU of pyarrow's and a third of boto3's, listings
contain etags, conditional puts are supported, and a local put is atomic too. How a store is reached, with which
credentials and endpoint, is told in `connections.py`.

A put of one object is the unit of commit: whole or not at all. A folder is committed by the object written last.
Requests answered with 5xx or 429, and broken connections, are retried at most RETRIES times with growing, jittered
pauses; then a `StorageError` is raised.
"""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import obstore
from obstore import exceptions
from obstore.store import ObjectStore

from models.messages import first_line
from pipelines.connections import AZURE_CREDENTIALS, RETRIES, SCHEMES, connect, s3_client
from pipelines.errors import AccessError, InputError, NoBucketError, NotFoundError, StorageError

CLOCK_TRIES = 5
_DENIED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)
_NO_BUCKET = ("<Code>NoSuchBucket</Code>", "<Code>ContainerNotFound</Code>")
_NO_IDENTITY = "Error performing token request"
"""Of Azure's client, which asks for the machine's managed identity where the environment holds no key."""
_REFUSES_CONDITIONS = ("status code: 501", "<Code>InvalidArgument</Code>", "<Code>InvalidRequest</Code>")
"""In the answer to a put with If-None-Match: this store does not know it, unless it refuses the plain put as well."""
_UNCONDITIONAL: set[str] = set()
"""The buckets that answered so to this process. One refusal costs RETRIES requests, because it may be a 5xx."""
_ARCHIVED = "<Code>InvalidObjectState</Code>"
_CUT_OFF = "response body"
_NOT_PARTIAL = "non-partial response"


LIST_CHUNK = 16_000
"""Objects of one Arrow batch of a listing."""


class UnaddressableKeyError(InputError):
    """A key with an empty, "." or ".." segment, or with control characters."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    key: str
    """Relative to the root of its store."""
    size: int
    """Bytes."""
    etag: str
    """Changes when the content changes; without the quotes that HTTP puts around it."""
    modified: datetime
    """In UTC."""


@dataclass(frozen=True)
class Store:
    """One root: `s3://bucket/prefix`, `az://container/prefix` or `file:///folder`.

    Cheap to pickle: it holds only the URI.

    Every method raises `AccessError` if the credentials are missing or refused, and `StorageError` if the store still
    fails after the retries.
    """

    root: str
    """Canonical URI without a trailing slash; build one with `open_store`."""
    is_impatient: bool = False
    """Whether it retries once instead of RETRIES times, and gives up after IMPATIENT_SECONDS."""

    def impatient(self) -> "Store":
        """The same place for a question to which "no answer" is an answer: does the store work at all?"""
        return replace(self, is_impatient=True)

    def uri(self, key: str) -> str:
        """Full URI of a key. Keys are not percent-encoded: the URI contains the file name as it is."""
        return f"{self.root}/{key}" if key else self.root

    def child(self, key: str) -> "Store":
        """The store rooted at a folder of this one."""
        return replace(self, root=self.uri(key.strip("/")))

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return self.root.startswith("file://")

    @property
    def path(self) -> Path:
        """The folder of a local store. Raises `InputError` for a remote one."""
        if not self.is_local:
            raise InputError(f"{self.root}: not a local folder")
        return Path(self.root.removeprefix("file://") or "/")

    @property
    def _bucket(self) -> str:
        return "/".join(self.root.split("/")[:3])

    @cached_property
    def _backend(self) -> ObjectStore:
        return connect(self.root, impatient=self.is_impatient)

    def __reduce__(self) -> "tuple[type[Store], tuple[str, bool]]":
        return Store, (self.root, self.is_impatient)  # without the connection

    def list(self, prefix: str = "") -> Iterator[list[ObjectInfo]]:
        """All objects below a folder, in the store's own chunks, in no particular order.

        Raises `NotFoundError` when the bucket or the local root does not exist; an empty folder lists nothing.
        """
        self._require_root()
        last, failures = "", 0
        with _translated(self.uri(prefix)):
            while True:
                try:
                    for chunk in obstore.list(self._backend, prefix=prefix or None, offset=last or None):
                        # Not every S3 server supports offsets.
                        infos = [_info(meta) for meta in chunk if self.is_local or meta["path"] > last]
                        last, failures = max((info.key for info in infos), default=last), 0
                        yield infos
                except exceptions.BaseError as error:
                    # obstore resumes the body of an object that was cut off, but not that of a listing. Servers list
                    # keys in order, so the listing continues after the last key received.
                    failures += 1
                    if _CUT_OFF not in str(error) or failures > RETRIES:
                        raise
                else:
                    return

    def list_arrow(self, after: str = "") -> Iterator[Any]:
        """All objects after a key, in the order of bytes, as Arrow record batches of obstore: no Python object each.

        Columns path, last_modified, size, e_tag (in quotes), version. Raises `UnaddressableKeyError` at a key that
        obstore cannot address: the listing ends there, and what came before it may not have been handed over.
        """
        self._require_root()
        with _translated(self.root):
            yield from obstore.list(self._backend, offset=after or None, return_arrow=True, chunk_size=LIST_CHUNK)

    def has_objects(self) -> bool:
        """Whether the listing finds anything; of a local folder, whether anything is in it. Raises as `list` does."""
        self._require_root()
        if self.is_local:
            try:
                with os.scandir(self.path) as entries:
                    return any(True for _ in entries)
            except PermissionError as error:
                raise AccessError(f"{self.path}: this folder may not be read; mend its rights") from error
        try:
            return any(chunk for chunk in self.list())
        except UnaddressableKeyError:
            return True

    def first_keys(self, after: str = "") -> Sequence[str]:
        """The keys of one page of the listing, after a key in the order of bytes; of a local folder in no order."""
        self._require_root()
        with _translated(self.root):
            page = next(iter(obstore.list(self._backend, offset=after or None)), [])
            return [meta["path"] for meta in page if meta["path"] > after]

    def head(self, key: str) -> ObjectInfo:
        """Size, etag and time of one object. Raises `NotFoundError`."""
        self._require_root()
        with _translated(self.uri(key)):
            return _info(obstore.head(self._backend, key))

    def get(self, key: str) -> bytes:
        """The whole object. Raises `NotFoundError`."""
        return self.get_version(key)[0]

    def get_version(self, key: str) -> tuple[bytes, str]:
        """The whole object and the etag of the version that was read. Raises `NotFoundError`."""
        self._require_root()
        with _translated(self.uri(key)):
            answer = obstore.get(self._backend, key)
            return bytes(answer.bytes()), _info(answer.meta).etag

    def get_range(self, key: str, start: int, length: int) -> tuple[bytes, str]:
        """Bytes of an object, fewer where it ends before, and the etag of the version that was read.

        Raises `NotFoundError`, and `StorageError` for a range that begins at the end or behind it.
        """
        self._require_root()
        with _translated(self.uri(key)):
            try:
                answer = obstore.get(self._backend, key, options={"range": (start, start + length)})
            except exceptions.GenericError as error:
                if _NOT_PARTIAL not in str(error) or not self.root.startswith("s3://"):
                    raise
            else:
                return bytes(answer.bytes()), _info(answer.meta).etag
        return self._range_of_200(key, start, length)

    def _range_of_200(self, key: str, start: int, length: int) -> tuple[bytes, str]:
        """`get_range` from a server that sends the range as if it were the whole (rclone), or ignores the range."""
        _, _, bucket, *prefix = self.root.split("/")
        try:
            answer = s3_client().get_object(
                Bucket=bucket, Key="/".join([*prefix, key]), Range=f"bytes={start}-{start + length - 1}"
            )
            if "ContentRange" not in answer:
                answer["Body"].read(start)
            return bytes(answer["Body"].read(length)), answer["ETag"].strip('"')
        except Exception as error:
            raise StorageError(f"{self.uri(key)}: a range could not be read: {first_line(error)}") from error

    def put(self, key: str, data: bytes) -> None:
        """Write one object, whole or not at all; replaces what was there."""
        self._make_root()
        with _translated(self.uri(key)):
            obstore.put(self._backend, key, data)

    def put_file(self, key: str, file: Path) -> None:
        """`put` of what a local file holds, in several requests where it is large; the object appears with the last."""
        self._make_root()
        with _translated(self.uri(key)):
            obstore.put(self._backend, key, file)

    def create(self, key: str, data: bytes) -> bool:
        """Write one object only if the key is free; returns whether it was.

        On a store without conditional put (see `has_conditional_put`) this replaces the object and returns True. Such a
        store ignores the condition or refuses the request; this process asks a bucket that refused it only once.
        """
        self._make_root()
        if self._bucket not in _UNCONDITIONAL:
            with _translated(self.uri(key)):
                try:
                    obstore.put(self._backend, key, data, mode="create")
                except (exceptions.AlreadyExistsError, FileExistsError):
                    return False
                except exceptions.BaseError as error:
                    if not any(sign in str(error) for sign in _REFUSES_CONDITIONS):
                        raise
                else:
                    return True
        self.put(key, data)
        _UNCONDITIONAL.add(self._bucket)
        return True

    def has_conditional_put(self) -> bool:
        """Whether `create` really refuses an existing key here; tested on a key of its own."""
        key = f".rayscan-probe-{secrets.token_hex(8)}"
        try:
            return self.create(key, b"") and not self.create(key, b"")
        finally:
            self.delete(key)

    def clock(self) -> datetime:
        """The time on the store's own clock, read from an object written just now; UTC, whole seconds on S3.

        Tried up to CLOCK_TRIES times: `rclone serve s3` removes a folder with its last object, and loses at times what
        another client puts into it just then. Raises `NotFoundError` after the last.
        """
        for attempt in range(1, CLOCK_TRIES + 1):
            key = f".rayscan-clock-{secrets.token_hex(8)}"
            try:
                self.put(key, b"")
                return self.head(key).modified
            except NotFoundError:
                if attempt == CLOCK_TRIES:
                    raise
            finally:
                self.delete(key)
        raise AssertionError("the last attempt returns or raises")

    def require_writable(self) -> None:
        """Raise what a later put would raise, before the work whose result is to be stored here."""
        self.clock()

    def require_place(self) -> None:
        """Raise what a put would raise (folder cannot be made, no bucket, no credentials) without writing anything.

        A user who may write to a bucket need not be allowed to list it, so a refused listing raises nothing.
        """
        if self.is_local:
            self._require_room()
            return
        _ = self._backend  # refuses missing credentials
        with suppress(AccessError):
            next(self.list(), None)

    def _require_room(self) -> None:
        # os.path.exists is False below a folder that may not be searched, where Path.exists would raise
        there = next(folder for folder in (self.path, *self.path.parents) if os.path.exists(folder))
        reason = ""
        if not there.is_dir():
            reason = os.strerror(errno.EEXIST if there == self.path else errno.ENOTDIR)
        elif not os.access(there, os.W_OK | os.X_OK):
            reason = os.strerror(errno.EACCES)
        if reason:
            raise _no_folder(self.path, f"{reason}: {there}" if there != self.path else reason)

    def delete_all(self, keys: Sequence[str]) -> None:
        """Remove many objects, as many per request as the store takes; absent ones are no error."""
        with _translated(self.root):
            try:
                obstore.delete(self._backend, list(keys))
            except FileNotFoundError:
                for key in keys:
                    self.delete(key)

    def delete(self, key: str) -> None:
        """Remove one object; an absent one is no error."""
        with _translated(self.uri(key)), suppress(FileNotFoundError):
            obstore.delete(self._backend, key)

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            self.head(key)
        except NotFoundError:
            return False
        return True

    def _require_root(self) -> None:
        if self.is_local and not self.path.is_dir():
            raise NotFoundError(f"{self.path}: no such folder")

    def _make_root(self) -> None:
        if self.is_local:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _no_folder(self.path, str(error.strerror)) from error


def open_store(uri: str) -> Store:
    """The store at a URI or a local path. Raises `InputError` for a scheme rayscan does not know.

    Opening touches no network; the first request does.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Store(f"file://{Path(uri).expanduser().absolute().resolve()}".rstrip("/"))
    if scheme not in SCHEMES:
        raise InputError(f"{uri}: unknown scheme {scheme!r}; use a local path, s3:// or az://")
    if scheme == "file":
        return open_store(rest)
    if not rest.partition("/")[0]:
        raise InputError(f"{uri}: the bucket is missing; write {scheme}://bucket/prefix")
    return Store(f"{scheme}://{rest.strip('/')}")


def split_uri(uri: str, *, impatient: bool = False) -> tuple[Store, str]:
    """The store that holds an object, and the object's key in it. One store per bucket is kept in the process."""
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        return _kept_store("file://", impatient), rest.lstrip("/")
    bucket, _, key = rest.partition("/")
    return _kept_store(f"{scheme}://{bucket}", impatient), key


def read_object(uri: str) -> bytes:
    """One whole object at a URI or local path, such as a CSV file. Raises `NotFoundError`."""
    store, key = split_uri(open_store(uri).root)
    return store.get(key)


def require_file(uri: str, what: str) -> None:
    """Raise `NotFoundError` unless there is an object at a URI or local path; `what` names it in the message."""
    store, key = split_uri(open_store(uri).root)
    absent = NotFoundError(f"{uri}: there is no such {what}; check the path")
    if store.is_local and not (store.path / key).is_file():
        raise absent
    try:
        store.head(key)
    except NotFoundError as error:
        raise absent from error


def file_place(uri: str, what: str, example: str) -> tuple[Store, str]:
    """The store and the key of one file that is to be written; `what` and `example` name it in the message.

    Raises `InputError` when the URI is that of a folder or a bucket.
    """
    target = open_store(uri)
    folder, _, name = target.root.rpartition("/")
    if uri.endswith("/") or folder.endswith(":/") or (target.is_local and target.path.is_dir()):
        raise InputError(f"{uri}: {what} is one file; name it, as in {uri.rstrip('/')}/{example}")
    return Store(folder), name


def _no_folder(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: cannot make this folder: {reason}; choose another place")


@lru_cache(maxsize=64)
def _kept_store(root: str, impatient: bool) -> Store:
    return Store(root, impatient)


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(
        key=meta["path"], size=meta["size"], etag=(meta["e_tag"] or "").strip('"'), modified=meta["last_modified"]
    )


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn obstore's exceptions into those of `pipelines/errors.py`, naming the object."""
    try:
        yield
    except FileNotFoundError as error:
        raise _absent(uri, str(error)) from error
    except exceptions.InvalidPathError as error:
        raise UnaddressableKeyError(f"{uri}: not a usable object name: {first_line(error)}") from error
    except ValueError as error:
        raise InputError(f"{uri}: not a usable object name: {first_line(error)}") from error
    except (exceptions.BaseError, OSError) as error:
        text = str(error)
        if isinstance(error, _DENIED) or any(f"status code: {code}" in text for code in (401, 403)):
            if _ARCHIVED in text:
                raise AccessError(f"{uri}: archived (Glacier or Deep Archive): restore it first") from error
            if _NO_IDENTITY not in text:
                raise AccessError(f"{uri}: access denied; check the credentials and the bucket's policy") from error
        if _NO_IDENTITY in text:
            raise AccessError(f"{uri}: no credentials found; {AZURE_CREDENTIALS}") from error
        if any(sign in text for sign in _NO_BUCKET):
            raise _absent(uri, text) from error
        raise StorageError(f"{uri}: the store failed after {RETRIES} retries: {first_line(error)}") from error


def _absent(uri: str, text: str) -> NotFoundError:
    if any(sign in text for sign in _NO_BUCKET):
        return NoBucketError(f"{uri}: no such {'container' if uri.startswith('az://') else 'bucket'}")
    return NotFoundError(f"{uri}: no such object")
