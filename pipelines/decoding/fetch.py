"""The bytes of one scan of a listing, or the reason they cannot be had."""

from pipelines.contracts import Reason
from pipelines.errors import AccessError, NoBucketError, NotFoundError, ScanError, StorageError
from pipelines.storage import split_uri


def fetch(uri: str, etag: str) -> bytes:
    """The version of the file that was listed: another one would be another scan.

    Raises `ScanError` with the reason vanished, changed, access_denied or storage_error.
    """
    store, key = split_uri(uri)
    try:
        data, version = store.get_version(key)
    except NoBucketError as error:  # the whole archive is away, which says nothing about this scan
        raise ScanError(Reason.STORAGE_ERROR) from error
    except NotFoundError as error:
        raise ScanError(Reason.VANISHED) from error
    except AccessError as error:
        raise ScanError(Reason.ACCESS_DENIED) from error
    except StorageError as error:
        raise ScanError(Reason.STORAGE_ERROR) from error
    if version != etag:
        raise ScanError(Reason.CHANGED)
    return data
