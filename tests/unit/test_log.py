"""The log: what a line is for machines and for people, what never gets into one, and that every event has its name."""

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mirror
from mirror.admin.recent_events import Events
from mirror.common.log import REPEATS, REPEATS_SECONDS, ConsoleFormatter, JsonFormatter, Output, access, event, set_up
from tests.support.documents import listed

SOURCE = Path(mirror.__file__).parent
PAGE = SOURCE.parent / "docs" / "logs.md"
SAYING = {"info", "warning", "error", "exception", "critical", "log"}
FORMATTERS = [JsonFormatter(), ConsoleFormatter(), ConsoleFormatter(coloured=True)]


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Written:
    """A log of the test's own, and what it has written."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._stream = io.StringIO()
        self.output = Output(self._stream, self.clock)
        self.output.setFormatter(ConsoleFormatter())

    def say(self, message: str, *args: object, level: int = logging.WARNING, name: str = "mirror.x") -> None:
        self.output.handle(record(message, *args, level=level, name=name))

    @property
    def lines(self) -> list[str]:
        return [line.split(maxsplit=2)[2] for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before when the test is over."""
    root = logging.getLogger()
    kept = root.handlers[:], root.level, access.level
    yield root
    root.handlers[:], level, access_level = kept
    root.setLevel(level)
    access.setLevel(access_level)
    logging.captureWarnings(capture=False)


def record(message: str, *args: object, level: int = logging.INFO, name: str = "mirror.x") -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, args, None)


def with_error(error: BaseException, message: str = "it failed") -> logging.LogRecord:
    """What `log.exception` makes of an error that was raised."""
    try:
        raise error
    except type(error) as raised:
        made = record(message, level=logging.ERROR)
        made.exc_info = (type(raised), raised, raised.__traceback__)
        return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(JsonFormatter().format(made))
    return line


# JSON


def test_a_line_has_the_names_of_the_elastic_common_schema() -> None:
    made = record("fill of %s began", "abc")
    for name, value in event("fill.began", image="abc", size=7, seconds=0.5, path=Path("/x")).items():
        setattr(made, name, value)
    line = as_json(made)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("@timestamp"))
    assert line.pop("process.pid") == made.process
    assert line == {
        "ecs.version": "8.11.0",
        "log.level": "info",
        "log.logger": "mirror.x",
        "message": "fill of abc began",
        "event.action": "fill.began",
        "pps_mirror.image": "abc",
        "pps_mirror.size": 7,
        "pps_mirror.seconds": 0.5,
        "pps_mirror.path": "/x",
    }


def test_an_error_has_its_type_its_message_and_its_traceback() -> None:
    line = as_json(with_error(ValueError("a\x1b[2Jb")))
    assert (line["error.type"], line["error.message"]) == ("ValueError", "a\\x1b[2Jb")
    trace = line["error.stack_trace"].split("\n")
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-1] == "ValueError: a\\x1b[2Jb"


def test_a_person_gets_a_line_and_below_it_the_traceback_indented() -> None:
    first, *trace = ConsoleFormatter().format(with_error(ValueError("oh"))).split("\n")
    assert re.fullmatch(r"\d\d:\d\d:\d\d ERROR   it failed", first)
    assert trace[-1] == "  ValueError: oh"


# What never gets into a line

PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
SECRETS = st.builds("{}s3cr3t{}".format, PRINTABLE, PRINTABLE)
AROUND = st.text(max_size=20)
IN_A_CREDENTIAL = st.sampled_from(
    ["Bearer {}", "bearer {}", "Token {}", "Basic {}", "Authorization: Token  {}", "{{'Authorization': 'Bearer {}'}}"]
)
IN_A_URL = st.sampled_from(
    ["https://h.example/a?X-Amz-Signature={}", "http://h:80?{}", "HTTPS://h/b?a=1&sig={} HTTP/1.1"]
)


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["json", "console", "coloured"])
@given(SECRETS, AROUND, AROUND, st.one_of(IN_A_CREDENTIAL, IN_A_URL))
def test_no_credential_and_no_query_is_ever_written(
    formatter: logging.Formatter, secret: str, before: str, after: str, place: str
) -> None:
    text = f"{before}{place.format(secret)}{after}"
    made = with_error(RuntimeError(text))
    made.msg, made.args = "%s and then", (text,)
    made.fields = {"pps_mirror.what": text, "pps_mirror.object": RuntimeError(text)}
    line = formatter.format(made)
    values = [line, *map(str, json.loads(line).values())] if isinstance(formatter, JsonFormatter) else [line]
    for value in values:
        assert "s3cr3t" not in value


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/?#"), min_size=12))
def test_who_asks_is_blotted_out_of_a_url(secret: str) -> None:
    line = JsonFormatter().format(record("through %s", f"http://user:{secret}@proxy.example:3128/"))
    assert json.loads(line)["message"] == "through http://[redacted]@proxy.example:3128/"


@pytest.mark.parametrize("formatter", FORMATTERS[:2], ids=["json", "console"])
@given(st.text())
def test_no_text_makes_a_line_of_its_own_or_speaks_to_a_terminal(formatter: logging.Formatter, text: str) -> None:
    made = record("%s", text)
    made.fields = {"pps_mirror.what": text}
    line = formatter.format(made)
    assert line.isprintable()
    if isinstance(formatter, JsonFormatter):
        assert line.isascii()
        for value in json.loads(line).values():
            assert str(value).isprintable()


# What comes again and again


def test_what_repeats_is_held_back_and_its_last_is_written_when_the_time_is_over(written: Written) -> None:
    for number in range(100):
        written.say("request %d: reset", number)
    assert written.lines == [f"request {number}: reset" for number in range(REPEATS)]
    written.clock.now += REPEATS_SECONDS
    written.say("something else")
    assert written.lines[REPEATS:] == ["request 99: reset (and 79 more like this, not shown)", "something else"]
    written.say("request %d: reset", 100)
    assert written.lines[-1] == "request 100: reset"


def test_what_is_held_back_is_written_in_the_end(written: Written) -> None:
    for _ in range(REPEATS + 1):
        written.say("again")
    assert len(written.lines) == REPEATS
    written.output.close()
    assert written.lines == ["again"] * (REPEATS + 1)


def test_other_messages_requests_and_debugging_are_never_held_back(written: Written) -> None:
    for _ in range(3 * REPEATS):
        written.say("a request", name=access.name)
        written.say("a detail", level=logging.DEBUG)
        written.say("a warning")
        written.say("a warning", name="mirror.y")
    assert [written.lines.count(text) for text in ("a request", "a detail", "a warning")] == [60, 60, 40]


def test_messages_without_end_are_not_all_remembered(written: Written) -> None:
    for number in range(5000):
        written.say(f"somebody's own message {number}")
    assert len(written.lines) == 5000
    assert len(written.output._lately) <= 1000


# Who hears what


def test_the_status_page_hears_an_event_whatever_is_written(root: logging.Logger) -> None:
    stream = io.StringIO()
    set_up("error", "json", stream)
    with Events() as events:
        log = logging.getLogger("mirror.some_room")
        log.info("upstream is back", extra=event("upstream.back"))
        log.info("nothing notable")
        access.warning("a request", extra=event("http.request"))
    assert stream.getvalue() == ""
    assert [(each.level, each.action, each.message) for each in events.last] == [
        ("info", "upstream.back", "upstream is back")
    ]


def test_debugging_goes_on_and_off_again(root: logging.Logger) -> None:
    stream = io.StringIO()
    verbosity = set_up("warning", "console", stream)
    said = []
    for turn in range(3):
        logging.getLogger("mirror.some_room").debug("a detail of turn %d", turn)
        access.info("request %d", turn)
        said.append((f"a detail of turn {turn}" in stream.getvalue(), f"request {turn}" in stream.getvalue()))
        verbosity.toggle()
    assert said == [(False, False), (True, True), (False, False)]


# Every event has its name


def calls(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """All calls of something that is called so in the mirror, and where."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.parent.name == "simulator":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in names:
                    yield f"{path.relative_to(SOURCE.parent)}:{node.lineno}", node


def patterns(node: ast.expr) -> Iterator[str]:
    """What a name can be, as regular expressions."""
    match node:
        case ast.Constant(value=str(name)):
            yield re.escape(name)
        case ast.IfExp(body=body, orelse=other):
            yield from patterns(body)
            yield from patterns(other)
        case ast.JoinedStr(values=values):
            yield "".join(re.escape(str(each.value)) if isinstance(each, ast.Constant) else r"\w+" for each in values)
        case _:
            raise AssertionError(f"a name that cannot be read: {ast.dump(node)}")


def test_whatever_is_said_from_info_on_has_a_name() -> None:
    nameless = [
        place
        for place, call in calls(*SAYING)
        if isinstance(call.func, ast.Attribute)
        and re.search(r"\b_?log\b|getLogger|\baccess\b", ast.unparse(call.func.value))
        and "extra" not in {keyword.arg for keyword in call.keywords}
    ]
    assert nameless == []


def test_every_name_is_listed_and_every_listed_one_exists() -> None:
    used = {pattern for _, call in calls("event") for pattern in patterns(call.args[0])}
    used |= {re.escape(action) for action in ("http.request", "file.exposed")}  # made without `event`
    names = listed()
    assert [pattern for pattern in used if not any(re.fullmatch(pattern, name) for name in names)] == []
    assert [name for name in names if not any(re.fullmatch(pattern, name) for pattern in used)] == []
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", name) for name in names)
