"""The objects of one bucket below one prefix: what S3 offers, typed, and its failures as BucketFailed, in words.

Only what all servers agree on is relied upon. `read` goes on by itself where a connection broke.
"""

import asyncio
import io
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from mirror.config import S3
from mirror.store.s3.byte_range import Span
from mirror.store.s3.clients import Clients
from mirror.store.s3.errors import TROUBLE, BucketFailed, failed
from mirror.store.s3.outage import Outage

ANSWER = 15.0
"""Seconds for a request without a large body, with all its repetitions: clients may be waiting."""

SLOWEST = 128 << 10
"""Bytes per second at which a server has to take what is written."""


PIECE = 256 << 10
LEAST_PIECE = 16 << 10
READING = 4 << 20
"""Bytes given at a time, at most and at least, and for all who read together as long as that allows."""

RETRY_SECONDS = 60.0
"""Seconds without a byte after which `read` gives up."""

_ABSENT = frozenset({"404", "NoSuchKey", "NoSuchUpload", "NotFound"})
_CONDITION = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})
_UNSUPPORTED = frozenset({"501", "NotImplemented"})
_SHORTER = frozenset({"416", "InvalidRange"})


class ConditionFailed(Exception):
    """Another writer was first."""


class NotSupported(Exception):
    """The server does not know what was asked for."""


class ObjectGone(Exception):
    """There is no such object, or not that version of it."""


@dataclass(frozen=True, slots=True)
class Version:
    """One state of an object: its `etag` as the server wrote it, `size` in bytes, when it was written."""

    etag: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing; `name` is its key without the prefix."""

    name: str
    version: Version


@dataclass(frozen=True, slots=True)
class Answer:
    """A small object: its bytes, its version, and what time it was at the server."""

    data: bytes
    version: Version
    now: datetime


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that was neither completed nor aborted."""

    name: str
    upload: str
    began: datetime


class Bucket:
    """`config.bucket` below `config.prefix`; names are keys without the prefix. A context manager.

    Credentials come from the standard chain of AWS's libraries. Every method raises BucketFailed.
    """

    def __init__(self, config: S3) -> None:
        assert config.bucket is not None  # noqa: S101 - else there is no such store
        self.name = config.bucket
        self.quoted = True
        self._config = config
        self._clients = Clients(config)
        self._reading = 0
        self._outage = Outage(self.name, self._attempt)

    async def __aenter__(self) -> Self:
        """Nothing is looked for, and nobody asked, yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._outage.close()
        await self._clients.close()

    async def find_anew(self) -> bool:
        """Look for credentials, region and CA anew; whether others are found. Changes nothing."""
        try:
            return await self._clients.find_anew()
        except TROUBLE as error:
            raise failed(error, self.name, "finding credentials") from error

    def forget(self) -> None:
        """Forget what was found before: whoever asks next finds it anew."""
        self._clients.forget()

    async def credentials(self) -> str | None:
        """Where the credentials come from, in the words of AWS's libraries; None when there are none."""
        try:
            found = await get_session().get_credentials()
        except TROUBLE as error:
            raise failed(error, self.name, "finding credentials") from error
        return str(found.method) if found else None

    # Small objects

    async def head(self, name: str) -> Version | None:
        """The object's version; None when there is none."""
        async with self._asking("HeadObject", name=name):
            return _version(await self._clients.ask("head_object", **self._object(name)))
        return None

    async def get(self, name: str) -> Answer | None:
        """A small object; None when there is none."""
        async with (
            self._asking("GetObject", name=name),
            self._clients.asked("get_object", **self._object(name)) as answer,
        ):
            now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            async with answer["Body"] as body:
                return Answer(await body.read(), _version(answer), now)
        return None

    async def put(self, name: str, data: bytes | Span, *, if_absent: bool = False, if_etag: str | None = None) -> str:
        """Write a whole object; its ETag. Raises ConditionFailed, NotSupported for a condition, OSError of the data."""
        conditions: dict[str, str] = {"IfNoneMatch": "*"} if if_absent else {}
        if if_etag is not None:
            conditions = {"IfMatch": self.condition(if_etag)}
        async with self._asking("PutObject", seconds=_patience(data), absent=if_etag is not None):
            answer = await self._clients.ask("put_object", **self._object(name), Body=_file(data), **conditions)
            return str(answer["ETag"])
        raise ConditionFailed("PutObject")  # the object that was to have that ETag has gone

    async def delete(self, name: str, *, if_etag: str | None = None) -> None:
        """Remove an object, if there is one. Some servers do not heed `if_etag`. Raises ConditionFailed."""
        condition = {"IfMatch": self.condition(if_etag)} if if_etag is not None else {}
        async with self._asking("DeleteObject"):
            await self._clients.ask("delete_object", **self._object(name), **condition)

    async def list(self, beginning: str) -> AsyncIterator[Listed]:
        """All objects whose name begins so, in order."""
        token: dict[str, str] = {}
        while True:
            async with self._asking("ListBucket", absent=False):
                page = await self._clients.ask(
                    "list_objects_v2", Bucket=self.name, Prefix=self._config.prefix + beginning, **token
                )
            for found in page.get("Contents", ()):
                version = Version(found["ETag"], found["Size"], found["LastModified"])
                yield Listed(found["Key"].removeprefix(self._config.prefix), version)
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    async def now(self) -> datetime:
        """What time it is at the server; also shows that it answers and the bucket is there."""
        async with self._asking("ListBucket", absent=False):
            page = await self._clients.ask("list_objects_v2", Bucket=self.name, Prefix=self._config.prefix, MaxKeys=1)
            return parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
        raise AssertionError

    def condition(self, etag: str) -> str:
        """An ETag as this server wants it in If-Match: most with quotes, Ceph without."""
        return etag if self.quoted else etag.strip('"')

    # Large objects

    async def read(
        self,
        name: str,
        start: int,
        stop: int,
        etag: str | None = None,
        *,
        patience: float = RETRY_SECONDS,
        eager: bool = False,
        seen: Callable[[str], None] = lambda _: None,
    ) -> AsyncGenerator[bytes, None]:
        """Give the bytes [start, stop) of an object, going on where a connection broke, in the version `etag`.

        Without one it is the version that is there first; `seen` is told. Raises Gone, and BucketFailed when there is
        no byte for `patience` seconds; for who is `eager` for the first one, at once when there will be none.
        """
        clock = asyncio.get_running_loop().time
        progressed = clock()
        for attempt in itertools.count():
            try:
                async with self._opened(name, start, stop) as (found, piece, body):
                    if etag is not None and found != etag:
                        raise ObjectGone(f"{name} is another version now")
                    if etag is None:
                        seen(etag := found)
                    while piece:
                        start += len(piece)
                        progressed, attempt, eager = clock(), 0, False
                        yield piece
                        piece = await body.read(min(self._piece(), stop - start)) if start < stop else b""
            except TROUBLE as error:
                trouble = failed(error, self.name, "GetObject")
            except BucketFailed as error:
                trouble = error
            else:
                trouble = BucketFailed(f"the bucket {self.name} cannot be used: {name} ends early")
            if start >= stop:
                return
            if clock() - progressed > patience or (eager and (self._outage.lasts or trouble.code)):
                raise trouble
            await asyncio.sleep(min(5.0, 0.1 * 2.0 ** min(attempt, 6)) * random.uniform(0.5, 1.0))  # noqa: S311

    @asynccontextmanager
    async def _opened(self, name: str, start: int, stop: int) -> AsyncIterator[tuple[str, bytes, Any]]:
        """The object's ETag, its first bytes, which show that it can be read, and what the others are read from."""
        async with AsyncExitStack() as stack:
            body = None
            try:
                async with self._asking("GetObject", name=name):
                    wanted = {**self._object(name), "Range": f"bytes={start}-{stop - 1}"}
                    answer = await stack.enter_async_context(self._clients.asked("get_object", **wanted))
                    body = await stack.enter_async_context(answer["Body"])
                    stack.enter_context(self._read_from())
                    first = await body.read(min(self._piece(), stop - start))
            except BucketFailed as error:
                if error.code not in _SHORTER:
                    raise
            if body is None:
                raise ObjectGone(f"{name} is not there any more")
            yield str(answer["ETag"]), first, body

    @contextmanager
    def _read_from(self) -> Iterator[None]:
        """Be one of those who read, and share the memory."""
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    def _piece(self) -> int:
        return max(LEAST_PIECE, min(PIECE, READING // self._reading))

    # Multipart uploads

    async def begin_upload(self, name: str) -> str:
        """Begin one; its id."""
        async with self._asking("CreateMultipartUpload", absent=False):
            answer = await self._clients.ask(
                "create_multipart_upload", **self._object(name), ContentType="application/octet-stream"
            )
            return str(answer["UploadId"])
        raise AssertionError

    async def copy_part(self, name: str, upload: str, number: int, source: str, etag: str) -> str:
        """Let the server copy an object of that version into the upload, as part `number` (1 and up); the part's ETag.

        Raises Gone, NotSupported.
        """
        answer = None
        async with self._asking("UploadPartCopy", seconds=10 * ANSWER):
            answer = await self._clients.ask(
                "upload_part_copy",
                **self._object(name),
                UploadId=upload,
                PartNumber=number,
                CopySource={"Bucket": self.name, "Key": self._config.prefix + source},
                CopySourceIfMatch=etag,
            )
        if answer is None:
            raise ObjectGone(f"{source} or the upload is not there any more")
        return str(answer["CopyPartResult"]["ETag"])

    async def upload_part(self, name: str, upload: str, number: int, data: Span) -> str:
        """Write part `number` (1 and up); its ETag. Raises Gone."""
        answer = None
        async with self._asking("UploadPart", seconds=_patience(data)):
            answer = await self._clients.ask(
                "upload_part", **self._object(name), UploadId=upload, PartNumber=number, Body=_file(data)
            )
        if answer is None:
            raise ObjectGone("the upload is not there any more")
        return str(answer["ETag"])

    async def complete_upload(self, name: str, upload: str, etags: Sequence[str]) -> None:
        """Make the parts one object. Raises Gone when the upload or one of its parts is not there any more.

        An upload that was completed before may be gone, or completed once more.
        """
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        try:
            async with self._asking("CompleteMultipartUpload", seconds=10 * ANSWER):
                await self._clients.ask(
                    "complete_multipart_upload", **self._object(name), UploadId=upload, MultipartUpload={"Parts": parts}
                )
                return
        except BucketFailed as error:
            # Ceph has a 500 for an upload that is not there; asked for ever, it would say so for ever.
            if error.code != "InvalidPart" and upload in {found.upload for found in await self.uploads(name)}:
                raise
        raise ObjectGone("the upload is not there any more")

    async def abort_upload(self, name: str, upload: str) -> None:
        """Give up an upload, if there is one."""
        async with self._asking("AbortMultipartUpload"):
            await self._clients.ask("abort_multipart_upload", **self._object(name), UploadId=upload)

    async def uploads(self, beginning: str) -> Sequence[Unfinished]:
        """The uploads of names that begin so: the first thousand."""
        async with self._asking("ListBucketMultipartUploads", absent=False):
            page = await self._clients.ask(
                "list_multipart_uploads", Bucket=self.name, Prefix=self._config.prefix + beginning
            )
            return [
                Unfinished(found["Key"].removeprefix(self._config.prefix), found["UploadId"], found["Initiated"])
                for found in page.get("Uploads", ())
                if found["Key"].startswith(self._config.prefix + beginning)
            ]
        raise AssertionError

    # Pre-signed URLs

    async def presign(self, name: str, seconds: float, disposition: str) -> str:
        """A URL with which anybody may GET the object for that long, at the public endpoint. It is a secret."""
        async with self._asking("signing", absent=False):
            parameters = {**self._object(name), "ResponseContentDisposition": disposition}
            return await self._clients.presign("get_object", parameters, int(seconds))
        raise AssertionError

    # How it is asked

    def _object(self, name: str) -> Mapping[str, str]:
        return {"Bucket": self.name, "Key": self._config.prefix + name}

    @asynccontextmanager
    async def _asking(
        self, operation: str, *, seconds: float | None = None, absent: bool = True, name: str | None = None
    ) -> AsyncIterator[None]:
        """Give a failure its words. What is not there is passed over when that may be (`absent`).

        `name` is the object that is read. Nobody waits for a server that is away.
        """
        question = self._outage.begin(operation)
        try:
            async with asyncio.timeout(ANSWER if seconds is None else seconds):
                yield
            self._outage.answered(question)
        except TROUBLE as error:
            trouble = failed(error, self.name, operation)
            self._outage.failed(question, error, trouble, name)
            code = str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""
            if code in _CONDITION:
                raise ConditionFailed(operation) from error
            if code in _UNSUPPORTED:
                raise NotSupported(operation) from error
            if code not in _ABSENT or not absent:
                raise trouble from error
        finally:
            self._outage.dropped(question)

    async def _attempt(self, name: str | None) -> None:
        """See whether the server is there; an object must be readable, if it is there at all."""
        if name is None:
            await self.now()
            return
        with suppress(ObjectGone):
            async with self._opened(name, 0, 1):
                pass


def _file(data: bytes | Span) -> io.IOBase:
    return data if isinstance(data, Span) else io.BytesIO(data)


def _patience(data: bytes | Span) -> float:
    """Seconds that writing it may take."""
    return ANSWER + (data.size if isinstance(data, Span) else len(data)) / SLOWEST


def _version(answer: Mapping[str, Any]) -> Version:
    return Version(str(answer["ETag"]), int(answer["ContentLength"]), answer["LastModified"])
