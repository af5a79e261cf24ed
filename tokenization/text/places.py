"""Places of files: paths on this machine, and URLs, which fsspec opens: https://, s3://, gs://, hf:// and more.

A name with "://" in it is a URL. It stays a string of its own, for a Path would make s3:/ of s3://. What the libraries
behind it raise, each in its own way, becomes an InputError with one line.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tokenization.errors import InputError
from tokenization.text.packing import kind

SEPARATOR = "://"
SILENT_SECONDS = 60  # that a server may take for the next bytes; there is no limit for a file as a whole
BUFFER_BYTES = 1 << 20
VERSIONS = ("ETag", "etag", "md5Hash", "oid", "LastModified", "Last-Modified", "last_modified", "mtime", "created")
NEED_ANY_PLACE = (".parquet",)  # kinds that are not read from the beginning to the end


class Url(os.PathLike[str]):
    """A file at a URL, with what is used of a Path."""

    def __init__(self, url: str):
        self._url = url

    def __str__(self) -> str:
        return self._url

    __fspath__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    @property
    def name(self) -> str:
        """The last part of the path, without what a web address has behind it; of a chain, that of its first link."""
        in_chain = self._url.partition(SEPARATOR)[2].partition("::")[0]
        path = urlsplit(self._url).path if is_web_address(self._url) else in_chain
        return PurePosixPath(path).name

    @property
    def suffix(self) -> str:
        """The suffix of the name."""
        return PurePosixPath(self.name).suffix

    @cached_property
    def _about(self) -> dict[str, Any]:
        """What the server says of the file."""
        with named_errors(self._url):
            files, path = file_system(self._url)
            return dict(files.info(path))

    @property
    def size(self) -> int:
        """The size in bytes; 0 where the server does not tell."""
        return int(self._about.get("size") or 0)

    @property
    def version(self) -> str:
        """What the server says to tell the file's versions apart: a digest, or when it changed; "" where nothing."""
        return next((str(self._about[name]) for name in VERSIONS if self._about.get(name)), "")

    def open(self, mode: str = "rb") -> BinaryIO:
        """Opens the file for reading bytes."""
        with named_errors(self._url):
            files, path = file_system(self._url)
            in_order = is_web_address(self._url) and kind(self.name) not in NEED_ANY_PLACE
            file = files.open(path, mode, **({"block_size": 0} if in_order else {}))
            return io.BufferedReader(RemoteFile(self._url, files, file, not in_order), BUFFER_BYTES)


Place = Path | Url


class RemoteFile(io.RawIOBase):
    """An open file at a URL, whose errors are InputErrors.

    files: its file system, which closes an archive when nothing holds it any longer.
    """

    def __init__(self, url: str, files: Any, file: Any, seekable: bool):
        self._url, self._files, self._file, self._seekable = url, files, file, seekable

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with some of the next bytes, and returns their number, 0 at the end."""
        with named_errors(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seekable(self) -> bool:
        """Returns whether any place of the file can be read."""
        return self._seekable

    def seek(self, offset: int, whence: int = 0) -> int:
        """Goes to a place, and returns it."""
        with named_errors(self._url):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Returns the place that is read next."""
        return int(self._file.tell())

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            super().close()
            self._file.close()


def normalized(name: str) -> str:
    """Returns a name as it is looked up: a URL with its scheme in lower case, and the path that a file:// URL names.

    Raises InputError for a file of another host.
    """
    scheme, separator, rest = name.partition(SEPARATOR)
    if separator and re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme):
        name = scheme.lower() + separator + rest
    if not name.startswith("file://"):
        return name
    from urllib.request import url2pathname

    host, slash, path = rest.partition("/")
    if host.lower() not in ("", "localhost"):
        raise InputError(f"{name}: is on the host {host!r}; a file of this machine is file:///PATH, or PATH alone")
    return url2pathname(slash + path)


def is_url(name: str) -> bool:
    """Returns whether a name is a URL, and not a path of this machine."""
    return SEPARATOR in name


def is_web_address(url: str) -> bool:
    """Returns whether a URL leads to a web server, which neither lists folders nor knows patterns."""
    return url.startswith(("http://", "https://"))


def size_of(place: Place) -> int:
    """Returns the size in bytes; 0 where it is not known, as of a pipe."""
    return place.size if isinstance(place, Url) else place.stat().st_size


def version_of(place: Place) -> int | str:
    """Returns what changes with the file: of a path its time of change in nanoseconds, of a URL see Url.version."""
    return place.version if isinstance(place, Url) else place.stat().st_mtime_ns


def file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL, and the path there."""
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if is_web_address(url):  # the bytes as they are stored; aiohttp would decompress, and end a file after 5 minutes
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
        options["client_kwargs"] = {"auto_decompress": False, "timeout": timeout}
        options["headers"] = {"Accept-Encoding": "identity"}
    found: tuple[Any, str] = url_to_fs(url, **options)
    return found


def find(url: str) -> tuple[list[Url], bool]:
    """Returns the files that a URL names, in order, and whether it is a folder: then all below it.

    Raises InputError where there is none, and where a package for this kind of URL is missing.
    """
    if is_web_address(url) or "::" in url:  # a chain, such as zip://a.txt::https://example.org/a.zip
        file = Url(url)
        assert file.size >= 0  # asks whether it is there
        return [file], False
    with named_errors(url):
        files, path = file_system(url)
        is_folder = files.isdir(path)
        if is_folder:
            found = files.find(path)
        elif files.exists(path):
            found = [path]
        else:
            found = [name for name in files.glob(path) if files.isfile(name)] if re.search(r"[*?[]", path) else []
        names = [files.unstrip_protocol(name) for name in sorted(found, key=lambda name: name.split("/"))]
    if not names:
        raise InputError(f"{url}: no such file, folder or pattern")
    return [Url(name) for name in names], is_folder


@contextmanager
def named_errors(url: str) -> Iterator[None]:
    """Raises InputError, with the URL, for whatever the libraries raise; their exceptions have no common class."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__  # of web servers, whatever they answered
        if cause is None or getattr(cause, "status", None) == 404:
            pattern = "; a web server has no globs, so name each file" if "*" in url and is_web_address(url) else ""
            raise InputError(f"{url}: no such file{pattern}") from None
        raise InputError(f"{url}: cannot be read ({one_line(cause)})") from None
    except ImportError as error:
        raise InputError(f"{url}: needs a package that is not installed ({one_line(error)})") from None
    except Exception as error:
        if "range requests" in str(error) or "Cannot seek streaming" in str(error):
            reason, remedy = "the server sends whole files only, and this kind is read in parts", "download it first"
        elif isinstance(error, (TimeoutError, ConnectionResetError)) or "payload is not completed" in str(error):
            reason, remedy = f"the connection was lost: {one_line(error)}", "try again, or download it first"
        else:
            reason, remedy = one_line(error), "is it there, and do you have access?"
        raise InputError(f"{url}: cannot be read ({reason}); {remedy}") from None


def one_line(error: BaseException) -> str:
    """Returns the message of an error, or the name of its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
