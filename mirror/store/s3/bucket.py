"""Typed access to the objects of one bucket below one prefix; every failure becomes a BucketFailed with an explanation.

It relies only on what all servers agree on. Large objects are read by `mirror.store.s3.object_reader`.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
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
from mirror.store.s3.object_reader import ObjectReader
from mirror.store.s3.objects import Answer, ConditionFailed, Listed, NotSupported, ObjectGone, Unfinished, Version
from mirror.store.s3.outage import Outage
from mirror.store.s3.timings import Timings

SLOWEST = 128 << 10
"""The lowest speed, in bytes per second, at which a server may take what is written."""


_ABSENT = frozenset({"404", "NoSuchKey", "NoSuchUpload", "NotFound"})
_CONDITION = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})
_UNSUPPORTED = frozenset({"501", "NotImplemented"})


class Bucket:
    """`config.bucket` below `config.prefix`; names are keys without the prefix. A context manager.

    Credentials come from the standard chain of AWS's libraries. Every method raises BucketFailed.
    """

    def __init__(self, config: S3, timings: Timings | None = None) -> None:
        assert config.bucket is not None  # noqa: S101 - else there is no such store
        self.name = config.bucket
        self.quoted = True
        self.timings = timings or Timings()
        self._config = config
        self._clients = Clients(config, self.timings.credentials)
        self._outage = Outage(self.name, self._attempt, self.timings.spared)
        self._reader = ObjectReader(self.name, self._clients, self._outage, self._asking, self._object)
        self.read = self._reader.read

    async def __aenter__(self) -> Self:
        """Open nothing: credentials are looked for at the first request."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._outage.close()
        await self._clients.close()

    async def find_anew(self) -> bool:
        """Look for credentials, region and CA again; return whether they have changed. Changes nothing."""
        try:
            return await self._clients.find_anew()
        except TROUBLE as error:
            raise failed(error, self.name, "finding credentials") from error

    def forget(self) -> None:
        """Forget the credentials found before: the next request looks for them again."""
        self._clients.forget()

    async def credentials(self) -> str | None:
        """Return where the credentials come from, in the words of AWS's libraries; None when there are none."""
        try:
            found = await get_session().get_credentials()
        except TROUBLE as error:
            raise failed(error, self.name, "finding credentials") from error
        return str(found.method) if found else None

    # Small objects

    async def head(self, name: str) -> Version | None:
        """Return the object's version; None when there is no such object."""
        async with self._asking("HeadObject", name=name):
            return _version(await self._clients.ask("head_object", **self._object(name)))
        return None

    async def get(self, name: str) -> Answer | None:
        """Return a small object; None when there is no such object."""
        async with (
            self._asking("GetObject", name=name),
            self._clients.asked("get_object", **self._object(name)) as answer,
        ):
            now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            async with answer["Body"] as body:
                return Answer(await body.read(), _version(answer), now)
        return None

    async def put(self, name: str, data: bytes | Span, *, if_absent: bool = False, if_etag: str | None = None) -> str:
        """Write a whole object and return its ETag.

        Raises ConditionFailed, NotSupported when the server knows no conditions, and OSError when reading the data
        fails.
        """
        conditions: dict[str, str] = {"IfNoneMatch": "*"} if if_absent else {}
        if if_etag is not None:
            conditions = {"IfMatch": self.condition(if_etag)}
        async with self._asking("PutObject", seconds=self._patience(data), absent=if_etag is not None):
            answer = await self._clients.ask("put_object", **self._object(name), Body=_file(data), **conditions)
            return str(answer["ETag"])
        raise ConditionFailed("PutObject")  # the object that was to have that ETag is gone

    async def delete(self, name: str, *, if_etag: str | None = None) -> None:
        """Remove an object, if it exists. Some servers ignore `if_etag`. Raises ConditionFailed."""
        condition = {"IfMatch": self.condition(if_etag)} if if_etag is not None else {}
        async with self._asking("DeleteObject"):
            await self._clients.ask("delete_object", **self._object(name), **condition)

    async def list(self, beginning: str) -> AsyncIterator[Listed]:
        """Yield all objects whose name begins with the prefix, in order."""
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
        """Return the time at the server; this also shows that it answers and that the bucket exists."""
        async with self._asking("ListBucket", absent=False):
            page = await self._clients.ask("list_objects_v2", Bucket=self.name, Prefix=self._config.prefix, MaxKeys=1)
            return parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
        raise AssertionError

    def condition(self, etag: str) -> str:
        """Return an ETag as this server wants it in If-Match: most want quotes, Ceph wants none."""
        return etag if self.quoted else etag.strip('"')

    # Multipart uploads

    async def begin_upload(self, name: str) -> str:
        """Begin an upload and return its id."""
        async with self._asking("CreateMultipartUpload", absent=False):
            answer = await self._clients.ask(
                "create_multipart_upload", **self._object(name), ContentType="application/octet-stream"
            )
            return str(answer["UploadId"])
        raise AssertionError

    async def copy_part(self, name: str, upload: str, number: int, source: str, etag: str) -> str:
        """Let the server copy that version of an object into the upload as part `number` (from 1); return its ETag.

        Raises ObjectGone, NotSupported.
        """
        answer = None
        async with self._asking("UploadPartCopy", seconds=10 * self.timings.answer):
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
        """Write part `number` (from 1) and return its ETag. Raises ObjectGone."""
        answer = None
        async with self._asking("UploadPart", seconds=self._patience(data)):
            answer = await self._clients.ask(
                "upload_part", **self._object(name), UploadId=upload, PartNumber=number, Body=_file(data)
            )
        if answer is None:
            raise ObjectGone("the upload is not there any more")
        return str(answer["ETag"])

    async def complete_upload(self, name: str, upload: str, etags: Sequence[str]) -> None:
        """Join the parts into one object. Raises ObjectGone when the upload or one of its parts is no longer there.

        If the upload was completed before, the server may say that it is gone, or complete it once more.
        """
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        try:
            async with self._asking("CompleteMultipartUpload", seconds=10 * self.timings.answer):
                await self._clients.ask(
                    "complete_multipart_upload", **self._object(name), UploadId=upload, MultipartUpload={"Parts": parts}
                )
                return
        except BucketFailed as error:
            # Ceph answers 500 for an upload that does not exist, and would do so however often it is asked.
            if error.code != "InvalidPart" and upload in {found.upload for found in await self.uploads(name)}:
                raise
        raise ObjectGone("the upload is not there any more")

    async def abort_upload(self, name: str, upload: str) -> None:
        """Abort an upload, if it exists."""
        async with self._asking("AbortMultipartUpload"):
            await self._clients.ask("abort_multipart_upload", **self._object(name), UploadId=upload)

    async def uploads(self, beginning: str) -> Sequence[Unfinished]:
        """Return the uploads of names that begin with the prefix: the first thousand."""
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
        """Return a URL at the public endpoint with which anybody may GET the object for that long. It is a secret."""
        async with self._asking("signing", absent=False):
            parameters = {**self._object(name), "ResponseContentDisposition": disposition}
            return await self._clients.presign("get_object", parameters, int(seconds))
        raise AssertionError

    # How requests are made

    def _object(self, name: str) -> Mapping[str, str]:
        return {"Bucket": self.name, "Key": self._config.prefix + name}

    @asynccontextmanager
    async def _asking(
        self, operation: str, *, seconds: float | None = None, absent: bool = True, name: str | None = None
    ) -> AsyncIterator[None]:
        """Turn failures into words. A missing object is no failure if it may be missing (`absent`).

        `name` is the object that is read. While the server is away, no request waits for it.
        """
        question = self._outage.begin(operation)
        try:
            async with asyncio.timeout(self.timings.answer if seconds is None else seconds):
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

    def _patience(self, data: bytes | Span) -> float:
        """Return the seconds that writing it may take."""
        return self.timings.answer + (data.size if isinstance(data, Span) else len(data)) / SLOWEST

    async def _attempt(self, name: str | None) -> None:
        """Check whether the server is reachable; an object must be readable, if it is there at all."""
        if name is None:
            await self.now()
            return
        with suppress(ObjectGone):
            async with self._reader.opened(name, 0, 1):
                pass


def _file(data: bytes | Span) -> io.IOBase:
    return data if isinstance(data, Span) else io.BytesIO(data)


def _version(answer: Mapping[str, Any]) -> Version:
    return Version(str(answer["ETag"]), int(answer["ContentLength"]), answer["LastModified"])
