"""The bytes of one scan of a listing, or the reason they cannot be had."""

from pipelines.contracts import Reason
from pipelines.decoding.members import inflated, is_compressed, read_member, split_member
from pipelines.errors import AccessError, NoBucketError, NotFoundError, ScanError, StorageError
from pipelines.storage import split_uri


def fetch(uri: str, etag: str) -> bytes:
    """The version of the file that was listed: another one would be another scan.

    A member of a container (`batch.zip!/p1.dcm`) is read from where it lies in it; `p1.dcm.gz` is inflated.
    Raises `ScanError` with the reason vanished, changed, access_denied or storage_error, and for what is compressed
    truncated, corrupt or too_large.
    """
    member = split_member(uri)
    try:
        if member:
            return read_member(member[0], etag)
        store, key = split_uri(uri)
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
    return inflated(data) if is_compressed(uri) else data
