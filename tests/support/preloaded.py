"""Done once before commands are forked, in place of once in each of them."""

import asyncio
import gc

from mirror.store.s3.clients import new_session


async def _describe_s3() -> None:
    """Let the description of S3 be read, which takes as long as all else that a mirror over a bucket does at start."""
    async with new_session().create_client(
        "s3", "nowhere", endpoint_url="http://127.0.0.1", aws_access_key_id="none", aws_secret_access_key="none"
    ):
        pass


asyncio.run(_describe_s3())
gc.collect()
gc.freeze()  # what is imported is looked through for garbage by nobody, and so stays shared with all
