"""What each S3 server does of that which the code relies on, asked by the code's own calls.

Servers differ, and what is right for one is a surprise on another: here it is in one table, which a new version of a
server, or a new server, has to confirm. S3_SERVER says which one is asked.
"""

import asyncio
import http.client
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

import botocore.auth
import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from mirror.config import S3
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.byte_range import Span
from mirror.store.s3.capabilities import find_out
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.lease import Lease, LeaseNote
from mirror.store.s3.live_processes import Processes
from mirror.store.s3.objects import ConditionFailed, NotSupported, ObjectGone
from tests.support.s3.fixtures import KIND, SERVERS, TestBucket, make_bucket
from tests.support.s3.server import S3Server, credentials

MIB = 1 << 20
IMAGE = "images/image"
OTHER_ETAG = f'"{"0" * 32}"'


@dataclass(frozen=True, slots=True)
class Site:
    """A server that is asked: through the code's `bucket`, whose prefix is this test's own, and around it."""

    server: S3Server
    bucket: Bucket
    around: TestBucket
    monkeypatch: pytest.MonkeyPatch

    @asynccontextmanager
    async def another(self, **changes: object) -> AsyncIterator[Bucket]:
        """The bucket as it is with another configuration."""
        async with Bucket(S3.model_validate({**self.around.section, **changes})) as bucket:
            yield bucket

    async def uploaded(self, *parts: bytes) -> tuple[str, list[str]]:
        """Begin an upload of the image, with parts that the server copies: its id and their ETags."""
        upload = await self.bucket.begin_upload(IMAGE)
        etags = []
        for number, data in enumerate(parts or (b"part",), 1):
            etag = await self.bucket.put(f"parts/{number}", data)
            etags.append(await self.bucket.copy_part(IMAGE, upload, number, f"parts/{number}", etag))
        return upload, etags

    async def aborted(self) -> tuple[str, list[str]]:
        """The same, and it is gone."""
        upload, etags = await self.uploaded()
        await self.bucket.abort_upload(IMAGE, upload)
        return upload, etags

    async def read(self, start: int, stop: int, etag: str | None = None) -> bytes:
        """Read bytes of the image."""
        return b"".join([piece async for piece in self.bucket.read(IMAGE, start, stop, etag, patience=1.0)])

    async def url(self, seconds: float = 60) -> str:
        """A pre-signed URL of the image, whose bytes are `image`."""
        await self.bucket.put(IMAGE, b"image")
        return await self.bucket.presign(IMAGE, seconds, 'attachment; filename="image.tar.gz"')


# How something ends, in a word


async def ended(work: Awaitable[object]) -> str:
    """Do it; `done`, or the code's own word for why not."""
    try:
        await work
    except ConditionFailed:
        return "refused"
    except NotSupported:
        return "unknown"
    except ObjectGone:
        return "gone"
    except BucketFailed as error:
        return error.code or "no answer"
    return "done"


def said(work: Callable[[], object]) -> str:
    """Ask around the code; the server's own words."""
    try:
        work()
    except ClientError as error:
        return f"{error.response['ResponseMetadata']['HTTPStatusCode']} {error.response['Error']['Code']}"
    return "200"


def asked(url: str, method: str = "GET", **headers: str) -> tuple[int, Message, bytes]:
    """Ask as any client does: status, headers and body."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)) as connection:
        connection.request(method, f"{parts.path}?{parts.query}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


# Conditions, on which leases rest


async def what_the_code_finds_out(site: Site) -> object:
    found = await find_out(site.bucket)
    abilities = {"conditions": found.conditions, "copies": found.copies, "bare": not site.bucket.quoted}
    return " ".join(ability for ability, has in abilities.items() if has)


async def write_if_absent(site: Site) -> object:
    return await ended(site.bucket.put("lease", b"1", if_absent=True))


async def write_if_absent_where_something_is(site: Site) -> object:
    await site.bucket.put("lease", b"1")
    return await ended(site.bucket.put("lease", b"2", if_absent=True)), site.around.read("lease")


async def eight_write_if_absent_at_once(site: Site) -> object:
    writes = [ended(site.bucket.put("lease", b"%d" % number, if_absent=True)) for number in range(8)]
    return ", ".join(f"{times} {how}" for how, times in sorted(Counter(await asyncio.gather(*writes)).items()))


async def write_if_etag_quoted(site: Site) -> object:
    etag = await site.bucket.put("lease", b"1")
    site.bucket.quoted = True
    return await ended(site.bucket.put("lease", b"2", if_etag=etag))


async def write_if_etag_unquoted(site: Site) -> object:
    etag = await site.bucket.put("lease", b"1")
    site.bucket.quoted = False
    return await ended(site.bucket.put("lease", b"2", if_etag=etag))


async def write_if_etag_is_another(site: Site) -> object:
    await find_out(site.bucket)
    await site.bucket.put("lease", b"1")
    return await ended(site.bucket.put("lease", b"2", if_etag=OTHER_ETAG)), site.around.read("lease")


async def write_if_etag_where_nothing_is(site: Site) -> object:
    await find_out(site.bucket)
    return await ended(site.bucket.put("lease", b"2", if_etag=OTHER_ETAG)), site.around.read("lease")


async def delete_if_etag(site: Site) -> object:
    await find_out(site.bucket)
    etag = await site.bucket.put("lease", b"1")
    return await ended(site.bucket.delete("lease", if_etag=etag)), site.around.read("lease")


async def delete_if_etag_is_another(site: Site) -> object:
    await site.bucket.put("lease", b"1")
    return await ended(site.bucket.delete("lease", if_etag=OTHER_ETAG)), site.around.read("lease")


# Objects


async def etags_of_put_head_get_and_list_are_one(site: Site) -> object:
    etag = await site.bucket.put("object", b"1")
    head, answer = await site.bucket.head("object"), await site.bucket.get("object")
    listed = [found.version.etag async for found in site.bucket.list("")]
    assert head
    assert answer
    return {etag, head.etag, answer.version.etag, *listed} == {etag}


async def delete_what_is_missing(site: Site) -> object:
    return await ended(site.bucket.delete("nothing"))


async def look_for_what_is_missing(site: Site) -> object:
    return await site.bucket.head("nothing"), await site.bucket.get("nothing")


async def write_nothing(site: Site) -> object:
    await site.bucket.put("pinned", b"")
    return await site.bucket.get("pinned") is not None


async def write_over_https(site: Site) -> object:
    site.monkeypatch.setenv("AWS_CA_BUNDLE", str(site.server.ca_file))
    async with site.another(endpoint_url=site.server.https_endpoint_url) as bucket:
        await bucket.put("object", b"whole")
    return site.around.read("object")


async def read_ranges(site: Site) -> object:
    image = os.urandom(MIB)
    etag = await site.bucket.put(IMAGE, image)
    spans = [(0, 1), (0, MIB), (1000, 500_000), (MIB - 1, MIB)]
    return [await site.read(*span, etag) == image[slice(*span)] for span in spans]


async def read_beyond_the_end(site: Site) -> object:
    await site.bucket.put(IMAGE, b"image")
    return await ended(site.read(5, 6)), await ended(site.read(1000, 2000))


async def read_another_version(site: Site) -> object:
    await site.bucket.put(IMAGE, b"image")
    return await ended(site.read(0, 5, OTHER_ETAG))


async def read_what_is_missing(site: Site) -> object:
    return await ended(site.read(0, 5))


async def list_more_than_a_page(site: Site) -> object:
    pages: list[None] = []

    def short(params: dict[str, object], **_: object) -> None:
        pages.append(None)
        params["MaxKeys"] = 3

    await site.bucket.now()
    assert site.bucket._clients._made is not None
    events = site.bucket._clients._made.client.meta.events
    events.register("before-parameter-build.s3.ListObjectsV2", short)
    names = [f"list/{number}" for number in range(8)]
    for name in reversed([*names, "lisu", "lis"]):
        await site.bucket.put(name, b"")
    listed = [found.name async for found in site.bucket.list("list/")]
    events.unregister("before-parameter-build.s3.ListObjectsV2", short)
    return listed == names, len(pages)


async def list_at_once_what_was_written_and_deleted(site: Site) -> object:
    for number in range(10):
        await site.bucket.put("object", b"x" * number)
        assert [found.version.size async for found in site.bucket.list("")] == [number]
        await site.bucket.delete("object")
        assert [found.name async for found in site.bucket.list("")] == []
    return True


async def clock(site: Site) -> object:
    await site.bucket.put("lease", b"1")
    answer = await site.bucket.get("lease")
    assert answer
    ages = answer.now - answer.version.modified, datetime.now(UTC) - await site.bucket.now()
    return [timedelta(seconds=-2) <= age <= timedelta(seconds=20) for age in ages]


# Uploads


async def copied_parts_become_the_image(site: Site) -> object:
    parts = [os.urandom(5 * MIB), os.urandom(5 * MIB), b"end"]
    upload, etags = await site.uploaded(*parts)
    await site.bucket.complete_upload(IMAGE, upload, etags)
    return await site.read(0, 10 * MIB + 3) == b"".join(parts)


async def copy_another_version(site: Site) -> object:
    await site.bucket.put("part", b"part")
    upload = await site.bucket.begin_upload(IMAGE)
    return await ended(site.bucket.copy_part(IMAGE, upload, 1, "part", OTHER_ETAG))


async def copy_what_is_missing(site: Site) -> object:
    upload = await site.bucket.begin_upload(IMAGE)
    return await ended(site.bucket.copy_part(IMAGE, upload, 1, "nothing", OTHER_ETAG))


async def copy_into_an_aborted_upload(site: Site) -> object:
    upload, _ = await site.aborted()
    etag = await site.bucket.put("part", b"part")
    return await ended(site.bucket.copy_part(IMAGE, upload, 1, "part", etag))


async def write_into_an_aborted_upload(site: Site) -> object:
    upload, _ = await site.aborted()
    data = Span(lambda _, buffer: len(buffer), 0, 4)
    return await ended(site.bucket.upload_part(IMAGE, upload, 1, data))


async def complete_an_aborted_upload(site: Site) -> object:
    upload, etags = await site.aborted()
    return await ended(site.bucket.complete_upload(IMAGE, upload, etags))


async def complete_an_aborted_upload_where_an_object_is(site: Site) -> object:
    await site.bucket.put(IMAGE, b"image")
    upload, etags = await site.aborted()
    return await ended(site.bucket.complete_upload(IMAGE, upload, etags)), site.around.read(IMAGE)


async def complete_an_aborted_upload_raw(site: Site) -> object:
    upload, etags = await site.aborted()
    parts = [{"PartNumber": 1, "ETag": etags[0]}]
    of = {"Bucket": site.bucket.name, "Key": f"pps-mirror/{IMAGE}", "UploadId": upload}
    return said(lambda: site.around.client.raw.complete_multipart_upload(**of, MultipartUpload={"Parts": parts}))


async def complete_without_a_part(site: Site) -> object:
    upload, _ = await site.uploaded()
    return await ended(site.bucket.complete_upload(IMAGE, upload, [OTHER_ETAG]))


async def complete_twice(site: Site) -> object:
    upload, etags = await site.uploaded()
    await site.bucket.complete_upload(IMAGE, upload, etags)
    return await ended(site.bucket.complete_upload(IMAGE, upload, etags)), site.around.read(IMAGE)


async def complete_twice_and_the_image_has_gone_meanwhile(site: Site) -> object:
    upload, etags = await site.uploaded()
    await site.bucket.complete_upload(IMAGE, upload, etags)
    await site.bucket.delete(IMAGE)
    return await ended(site.bucket.complete_upload(IMAGE, upload, etags)), site.around.read(IMAGE)


async def complete_where_an_object_is(site: Site) -> object:
    await site.bucket.put(IMAGE, b"image")
    upload, etags = await site.uploaded()
    return await ended(site.bucket.complete_upload(IMAGE, upload, etags)), site.around.read(IMAGE)


async def uploads_are_listed_until_they_end(site: Site) -> object:
    aborted, _ = await site.uploaded()
    completed, etags = await site.uploaded()
    counts = []
    for end in (site.bucket.abort_upload(IMAGE, aborted), site.bucket.complete_upload(IMAGE, completed, etags)):
        counts.append({found.upload for found in await site.bucket.uploads(IMAGE)})
        await end
    counts.append({found.upload for found in await site.bucket.uploads(IMAGE)})
    return counts == [{aborted, completed}, {completed}, set()]


async def abort_what_has_ended(site: Site) -> object:
    aborted, _ = await site.aborted()
    completed, etags = await site.uploaded()
    await site.bucket.complete_upload(IMAGE, completed, etags)
    ends = [await ended(site.bucket.abort_upload(IMAGE, upload)) for upload in (aborted, completed)]
    return *ends, site.around.read(IMAGE)


# Pre-signed URLs


async def presigned_get(site: Site) -> object:
    status, headers, body = asked(await site.url())
    return status, headers["Content-Disposition"], body


async def presigned_range(site: Site) -> object:
    status, headers, body = asked(await site.url(), Range="bytes=1-3")
    return status, headers["Content-Range"], body


async def presigned_head(site: Site) -> object:
    return asked(await site.url(), "HEAD")[0]


async def presigned_with_another_authorization(site: Site) -> object:
    return asked(await site.url(), Authorization="Bearer token")[0]


async def presigned_and_altered(site: Site) -> object:
    return asked((await site.url()).replace("image.tar.gz", "other.tar.gz"))[0]


async def presigned_and_expired(site: Site) -> object:
    url = await site.url(1)
    async with asyncio.timeout(20):
        while (status := asked(url)[0]) == 200:
            await asyncio.sleep(0.2)
    return status


# What is said of credentials, clocks and buckets that are wrong


async def wrong_secret(site: Site) -> object:
    return await _as_somebody(site, site.server.access_key, "another-secret-key")


async def unknown_access_key(site: Site) -> object:
    return await _as_somebody(site, "nobody", "another-secret-key")


async def _as_somebody(site: Site, access_key: str, secret_key: str) -> str:
    for name, value in credentials(access_key, secret_key).items():
        site.monkeypatch.setenv(name, value)
    async with site.another() as bucket:
        return await ended(bucket.now())


async def wrong_clock(site: Site) -> object:
    wrong = datetime.now(UTC) - timedelta(minutes=20)
    site.monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: wrong.replace(tzinfo=None))
    return await ended(site.bucket.now())


async def no_such_bucket(site: Site) -> object:
    async with site.another(bucket="nothing-of-that-name") as bucket:
        return await ended(bucket.now()), await ended(bucket.put("object", b"1"))


Deed = Callable[[Site], Awaitable[object]]

EVERYWHERE: Mapping[Deed, object] = {
    delete_if_etag: ("done", None),
    etags_of_put_head_get_and_list_are_one: True,
    delete_what_is_missing: "done",
    look_for_what_is_missing: (None, None),
    write_nothing: True,
    write_over_https: b"whole",
    read_ranges: [True, True, True, True],
    read_beyond_the_end: ("gone", "gone"),
    read_another_version: "gone",
    read_what_is_missing: "gone",
    list_more_than_a_page: (True, 3),
    list_at_once_what_was_written_and_deleted: True,
    clock: [True, True],
    copied_parts_become_the_image: True,
    copy_what_is_missing: "gone",
    copy_into_an_aborted_upload: "gone",
    write_into_an_aborted_upload: "gone",
    complete_an_aborted_upload: "gone",
    complete_an_aborted_upload_where_an_object_is: ("gone", b"image"),
    complete_without_a_part: "gone",
    complete_twice: ("done", b"part"),
    complete_twice_and_the_image_has_gone_meanwhile: ("gone", None),
    complete_where_an_object_is: ("done", b"part"),
    uploads_are_listed_until_they_end: True,
    abort_what_has_ended: ("done", "done", b"part"),
    presigned_get: (200, 'attachment; filename="image.tar.gz"', b"image"),
    presigned_range: (206, "bytes 1-3/5", b"mag"),
    presigned_head: 403,
    presigned_and_altered: 403,
    presigned_and_expired: 403,
    wrong_secret: "SignatureDoesNotMatch",
    wrong_clock: "RequestTimeTooSkewed",
    no_such_bucket: ("NoSuchBucket", "NoSuchBucket"),
}

# fmt: off
BY_SERVER: Mapping[Deed, tuple[object, object, object]] = {
    # what is done                         SeaweedFS 4.48          Ceph 16.2                 Swift 2.30 s3api
    what_the_code_finds_out:              ("conditions copies",    "conditions copies bare", "copies"),
    write_if_absent:                      ("done",                 "done",                   "unknown"),
    write_if_absent_where_something_is:   (("refused", b"1"),      ("refused", b"1"),        ("unknown", b"1")),
    eight_write_if_absent_at_once:        ("1 done, 7 refused",    "1 done, 7 refused",      "8 unknown"),
    write_if_etag_quoted:                 ("done",                 "refused",                "unknown"),
    write_if_etag_unquoted:               ("done",                 "done",                   "unknown"),
    write_if_etag_is_another:             (("refused", b"1"),      ("refused", b"1"),        ("unknown", b"1")),
    write_if_etag_where_nothing_is:       (("refused", None),      ("refused", None),        ("unknown", None)),
    delete_if_etag_is_another:            (("refused", b"1"),      ("done", None),           ("refused", b"1")),
    copy_another_version:                 ("refused",              "done",                   "refused"),
    complete_an_aborted_upload_raw:       ("404 NoSuchUpload",     "500 InternalError",      "404 NoSuchUpload"),
    presigned_with_another_authorization: (200,                    400,                      200),
    unknown_access_key:                   ("InvalidAccessKeyId",   "InvalidAccessKeyId",     "SignatureDoesNotMatch"),
}
# fmt: on

EXPECTED = {**EVERYWHERE, **{deed: does[[*SERVERS].index(KIND)] for deed, does in BY_SERVER.items()}}


@pytest.fixture(scope="module")
def around(s3_server: S3Server) -> Iterator[TestBucket]:
    """A bucket for all deeds, which makes them quick; each begins with an empty one."""
    bucket = make_bucket(s3_server)
    yield bucket
    bucket.client.remove_bucket(bucket.name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def code(around: TestBucket) -> AsyncIterator[Bucket]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in around.server.environ.items():
            monkeypatch.setenv(name, value)
        async with Bucket(S3.model_validate(around.section)) as bucket:
            yield bucket


@pytest.fixture
def site(around: TestBucket, code: Bucket, monkeypatch: pytest.MonkeyPatch) -> Site:
    around.client.empty_bucket(around.name)
    code.quoted = True
    return Site(around.server, code, around, monkeypatch)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("deed", EXPECTED, ids=lambda deed: deed.__name__.replace("_", " "))
async def test_a_server_does_what_is_known_of_it(site: Site, deed: Deed) -> None:
    assert await deed(site) == EXPECTED[deed]


@pytest.mark.leases
@pytest.mark.asyncio(loop_scope="module")
async def test_a_lease_is_removed_also_when_the_answer_to_its_last_renewal_was_not_waited_for(
    site: Site, tmp_path: Path
) -> None:
    lease = Lease(site.bucket, "0" * 64, Processes(tmp_path))
    note = LeaseNote("ab12", 1, 1, ("ab12",))
    assert await lease.take(note, None)
    held = await lease.look()
    assert held is not None
    await site.bucket.put(f"leases/{'0' * 64}", replace(note, position=0).encode(), if_etag=held.etag)
    await lease.remove()
    assert await lease.look() is None


def lose_an_answer(site: Site) -> None:
    """Make the next write twice, as the client does that writes again when no answer came."""
    really_put = site.bucket.put
    written: list[str] = []

    async def put(name: str, data: bytes | Span, *, if_absent: bool = False, if_etag: str | None = None) -> str:
        if not written:
            await really_put(name, data, if_absent=if_absent, if_etag=if_etag)
        written.append(name)
        return await really_put(name, data, if_absent=if_absent, if_etag=if_etag)

    site.monkeypatch.setattr(site.bucket, "put", put)


@pytest.mark.leases
@pytest.mark.asyncio(loop_scope="module")
async def test_conditions_are_found_also_when_an_answer_was_lost(site: Site) -> None:
    lose_an_answer(site)
    assert (await find_out(site.bucket)).conditions
    assert not site.around.names("leases/")


@pytest.mark.leases
@pytest.mark.asyncio(loop_scope="module")
async def test_a_lease_is_taken_also_when_the_answer_was_lost_and_then_nobody_else_has_it(
    site: Site, tmp_path: Path
) -> None:
    lease, other = (Lease(site.bucket, "0" * 64, Processes(tmp_path)) for _ in range(2))
    lose_an_answer(site)
    note = LeaseNote("ab12", 1, 1, ("ab12",))
    assert await lease.take(note, None)
    assert not await other.take(replace(note, fill="cd34"), None)
    await lease.renew(replace(note, validator="its tag"))
    held = await other.look()
    assert held is not None
    assert held.note is not None
    assert (held.note.fill, held.note.validator) == ("ab12", "its tag")
