"""Hooks without a mirror: signatures, addresses, a flood, what an event says."""

import asyncio
import hashlib
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mirror.admin.hooks.cloud_event import LONGEST, CloudEvent, encoded
from mirror.admin.hooks.publisher import Publisher
from mirror.admin.hooks.queue import MOST_BYTES, MOST_IN_MEMORY
from mirror.admin.hooks.target import Undelivered
from mirror.admin.hooks.told import Told
from mirror.admin.hooks.webhook import Webhook, load_keys, signature
from mirror.common.metrics import Metrics
from mirror.config import Config, Hook
from mirror.model.metadata import ImageMetadata
from mirror.model.notification import Kind, Notification
from tests.support.hooks import hook
from tests.support.metadata import GOOD
from tests.support.receiver import Receiver

EVENT = CloudEvent.parse(encoded(Notification(Kind.UPSTREAM_BACK, "upstream answers")))


def metadata_of(filename: str) -> ImageMetadata:
    image_hash = hashlib.sha256(filename.encode()).hexdigest()
    return ImageMetadata.parse(json.dumps(GOOD | {"filename": filename, "hash": image_hash}).encode())


def made(**keys: Any) -> Hook:
    return Hook.model_validate(hook(**keys))


def test_a_signature_is_that_of_the_conventions_own_libraries(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    (key,) = load_keys(made(url="http://localhost/", secret_file=str(secret)))
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("name", "address", "refused"),
    [
        ("inside.example", "127.0.0.1", "a loopback address"),
        ("inside.example", "0.0.0.0", "a loopback address"),
        ("cloud.example", "169.254.169.254", "a link-local address"),
        ("localhost", "127.0.0.1", None),
    ],
)
async def test_a_name_is_judged_by_the_address_that_it_leads_to(
    name: str, address: str, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, *more, **named: really(address, *more, **named))
    with Receiver() as receiver:
        webhook = await Webhook.opened(made(url=f"http://{name}:{receiver.port}/"), {})
        try:
            if refused is None:
                assert await webhook.deliver(EVENT) == f"{name} answered 204"
            else:
                with pytest.raises(Undelivered, match=refused):
                    await webhook.deliver(EVENT)
        finally:
            await webhook.close()
        assert len(receiver.told) == (refused is None)


async def test_a_name_is_judged_before_a_proxy_is_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    really = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: really("169.254.169.254" if host == "cloud.example" else host, *more, **named),
    )
    with Receiver() as proxy:
        environ = {"http_proxy": f"http://127.0.0.1:{proxy.port}"}
        webhook = await Webhook.opened(made(url="http://cloud.example/"), environ)
        try:
            with pytest.raises(Undelivered, match="a link-local address"):
                await webhook.deliver(EVENT)
        finally:
            await webhook.close()
        assert proxy.told == []


async def test_ten_thousand_events_stay_within_bounds_and_what_is_given_up_is_counted(tmp_path: Path) -> None:
    config = Config.model_validate({"store": {"path": str(tmp_path)}, "hooks": [hook(url="http://localhost:1/")]})
    metrics = Metrics()
    many = 10_000
    async with Publisher(config, metrics).running() as publisher:
        for number in range(many):
            publisher(Notification(Kind.FILL_FAILED, f"number {number}"))
            if number % 100 == 0:
                await asyncio.sleep(0)
            assert len(publisher._new) <= MOST_IN_MEMORY
        queue = publisher.queues["it"]
    assert queue.file.stat().st_size <= MOST_BYTES
    body, waiting = queue.look()
    assert body is not None
    given_up = metrics.hook_deliveries.labels("it", "given_up")._value.get()
    assert waiting + given_up == many
    assert waiting >= MOST_IN_MEMORY // 2
    assert CloudEvent.parse(queue.file.read_bytes().splitlines()[-1]).body.endswith(b'"number 9999"}}')


def test_an_event_has_no_secret_and_no_long_text() -> None:
    said = f"https://user:password@host/x?X-Amz-Signature=abc Bearer token {'x' * 10_000}\n\x1b[31m"
    body = encoded(Notification(Kind.FILL_FAILED, said))
    assert len(body) < LONGEST + 400
    assert b"\n" not in body
    for secret in (b"password", b"X-Amz-Signature", b"token ", b"\x1b", b"\\u001b"):
        assert secret not in body


def test_an_event_of_an_image_says_which_and_its_tags() -> None:
    metadata = metadata_of("datarobot-portable-prediction-api-11.1.0-r1736.tar.gz")
    event = CloudEvent.parse(encoded(Notification.about(Kind.IMAGE_STORED, metadata, "it is stored", seconds=1.5)))
    assert event.image == metadata.hash
    assert event.tags[0] == "11.1.0-r1736"
    assert json.loads(event.body)["data"]["seconds"] == 1.5


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b"{}", b'{"data": 3}', b"{" * 100_000, b'{"time": "x", "data": {}}']
)
def test_what_is_no_event_is_told_from_one(body: bytes) -> None:
    with pytest.raises(ValueError):
        CloudEvent.parse(body)


def images(*names: str) -> list[ImageMetadata]:
    return [metadata_of(name) for name in names]


def test_a_thing_is_news_once() -> None:
    told = Told()
    one, two = images("one", "two")

    def is_news(kind: Kind, image: ImageMetadata | None = None, at: float = 0.0) -> bool:
        moment = datetime.fromtimestamp(1_000_000 + at, UTC)
        about = Notification(kind, "it happened", image.hash if image else None, at=moment)
        return told.news(about) is not None

    assert [is_news(Kind.IMAGE_CURRENT, image) for image in (one, one, two, two, one)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert [is_news(kind) for kind in 2 * [Kind.UPSTREAM_BACK]] == [False, False]
    assert [is_news(kind) for kind in 2 * [Kind.UPSTREAM_AWAY]] == [True, False]
    assert [is_news(kind) for kind in 2 * [Kind.UPSTREAM_BACK]] == [True, False]
    assert [is_news(Kind.STORE_FAILING, at=at) for at in (0, 10, 59, 61)] == [True, False, False, True]
    assert [is_news(Kind.IMAGE_STORED, image) for image in (one, one)] == [True, True]
    assert [is_news(Kind.FILL_FAILED, image) for image in (one, one)] == [True, True]


def test_images_that_nobody_was_told_of_are_found_but_not_those_that_were_there_before_hooks() -> None:
    told = Told()
    assert told.missed(["a", "b"]) == []
    assert told.missed(["a", "b", "c"]) == ["c"]
    for image in ("c", "d"):
        told.news(Notification(Kind.IMAGE_STORED, "stored", image))
    assert told.missed(["c", "d"]) == []
    told.news(Notification(Kind.IMAGE_EVICTED, "gone", "c", details={"place": "disk"}))
    assert told.missed(["c", "d"]) == ["c"]
