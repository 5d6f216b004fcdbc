"""A synchronous S3 client for tests: makes buckets, looks into them, and alters what lies there."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError


@functools.cache
def _session() -> Any:
    """One for all clients: the descriptions that it reads to make the first one take a second."""
    return botocore.session.Session()


class S3Client:
    """Speaks to one server with one identity; botocore's own client is `raw`."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str, *, ca: str | None = None) -> None:
        self.raw: Any = _session().create_client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            verify=ca or True,
            config=Config(
                s3={"addressing_style": "path"},
                signature_version="s3v4",
                connect_timeout=5,
                read_timeout=20,
                retries={"total_max_attempts": 2},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def make_bucket(self, bucket: str) -> None:
        """Make an empty bucket."""
        self.raw.create_bucket(Bucket=bucket)

    def empty_bucket(self, bucket: str) -> None:
        """Remove everything in a bucket; objects one by one, as Swift wants it."""
        for upload in self.uploads(bucket):
            self.abort_upload(bucket, upload)
        for key in list(self.keys(bucket)):
            self.raw.delete_object(Bucket=bucket, Key=key)

    def remove_bucket(self, bucket: str) -> None:
        """Remove a bucket and everything in it. Some servers say for a while that it is not empty."""
        self.empty_bucket(bucket)
        for pause in (0.2, 1.0, 3.0):
            try:
                self.raw.delete_bucket(Bucket=bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] != "BucketNotEmpty":
                    raise
                time.sleep(pause)
            else:
                return

    def keys(self, bucket: str, beginning: str = "") -> Iterator[str]:
        """The keys of all objects, in order."""
        for page in self.raw.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=beginning):
            yield from (found["Key"] for found in page.get("Contents", ()))

    def uploads(self, bucket: str) -> list[dict[str, Any]]:
        """The multipart uploads that are neither completed nor aborted."""
        return list(self.raw.list_multipart_uploads(Bucket=bucket).get("Uploads", ()))

    def abort_upload(self, bucket: str, upload: dict[str, Any]) -> None:
        """Abort one of them."""
        self.raw.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def read(self, bucket: str, key: str) -> bytes | None:
        """The bytes of an object; None when there is none."""
        try:
            return bytes(self.raw.get_object(Bucket=bucket, Key=key)["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] in {"NoSuchKey", "404"}:
                return None
            raise

    def write(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object, whatever is there."""
        self.raw.put_object(Bucket=bucket, Key=key, Body=data)

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self.raw.delete_object(Bucket=bucket, Key=key)
