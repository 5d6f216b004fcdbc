"""Loads the configuration from a TOML file and the environment, which wins, and says in one line what is wrong with it.

That line names where the value was set, its key, the value unless it may be a secret, and what is allowed.
"""

import codecs
import difflib
import logging
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from mirror.common.environment import FILE_VARIABLE, PREFIX, TOKEN_VARIABLE
from mirror.common.log import event
from mirror.config.changes import given as given_in
from mirror.config.schema import KEYS, Config, Hook, RateWindow
from mirror.model.errors import ConfigError

_SECRET: Final = re.compile("token|secret|passw|credential|auth|proxy|key")
"""Names of keys, known or made up, whose value no message quotes; those that end in _file hold a path."""

_SECTIONS: Final = tuple(dict.fromkeys(section for key in KEYS if (section := key.rpartition(".")[0])))

_IN_TABLES: Final = tuple(
    f"{tables}.{name}"
    for tables, model in (("upstream.rates", RateWindow), ("hooks", Hook))
    for name in model.model_fields
)
"""The keys within tables of which there may be several."""

_log = logging.getLogger(__name__)


def load(path: Path | None, environ: Mapping[str, str], running: Config | None = None) -> Config:
    """Read the file at `path`, else the one that `PPS_MIRROR_CONFIG` names, else none, and then the environment.

    `running` is the configuration that was read from there before: then an empty file was emptied, or was a pipe.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value is bad or contradicts another.
    """
    if path is None and environ.get(FILE_VARIABLE):
        path = Path(environ[FILE_VARIABLE])
    if path is not None:
        path = _expanded(path)
    name = _plain(str(path or ""))
    if running is not None and path is not None and path.exists() and not path.is_file():
        raise ConfigError(f"{name}: it can be read only once; give a file that stays, to have it read again")
    given = _Given(_read(path) if path else {}, name, {})
    said_something = bool(given.tree)
    given.overlay(environ)
    if running is not None and not said_something and given_in(running) - given.variables.keys():
        raise ConfigError(f"{name}: it is empty now")
    try:
        return Config.model_validate(given.tree)
    except ValidationError as error:
        raise given.explain(error) from None


def load_token(config: Config, environ: Mapping[str, str]) -> str | None:
    """Return the mirror's own upstream token, from `upstream.token_file`, else `DATAROBOT_API_TOKEN`, else None.

    Raises:
        ConfigError: the file cannot be read, or what was found is not one token.
    """
    if path := config.upstream.token_file:
        return _token_in("upstream.token_file", path)
    if text := environ.get(TOKEN_VARIABLE, ""):
        return _one_token(TOKEN_VARIABLE, text)
    return None


def load_admin_token(config: Config) -> str | None:
    """Return the token that operators send, from `admin.token_file`; None when there is none. Raises ConfigError."""
    return _token_in("admin.token_file", config.admin.token_file) if config.admin.token_file else None


def _token_in(key: str, path: Path) -> str:
    source = f"{key} = {_shown(key, str(path))}"
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("ascii", "replace")
        if path.stat().st_mode & 0o004:
            said = "%s: every user of this machine can read it; expected mode 0600"
            _log.warning(said, source, extra=event("file.exposed"))
    except OSError as error:
        raise ConfigError(f"{source}: cannot read it: {error.strerror or type(error).__name__}") from None
    return _one_token(source, text)


def _one_token(source: str, text: str) -> str:
    if not re.fullmatch(r"[!-~]+", token := text.strip()):
        raise ConfigError(f"{source}: expected one token: ASCII, not empty, no white space within, no scheme before it")
    return token


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{_plain(str(path))}: no such home directory is known here") from None


def _read(path: Path) -> dict[str, Any]:
    name = _plain(str(path))
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"{name}: not UTF-8 but UTF-16; save it as UTF-8")
        text = content.decode("utf-8-sig")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{name}: cannot read it: {error.strerror or type(error).__name__}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{name}: not UTF-8 (at line {line}, column {column})") from None
    except tomllib.TOMLDecodeError as error:
        *lines, last = text.split("\n")
        end = f"at line {len(lines) + 1}, column {len(last) + 1}, end of document"
        raise ConfigError(f"{name}: not TOML: {str(error).replace('at end of document', end)}") from None
    except (ValueError, RecursionError):  # NUL in the path, thousands of digits or brackets
        raise ConfigError(f"{name}: expected a TOML file") from None


@dataclass(frozen=True, slots=True)
class _Given:
    """The given values, and where they were set: `tree` is TOML's, `variables` has the variable that set a key."""

    tree: dict[str, Any]
    file: str
    variables: dict[str, str]

    def overlay(self, environ: Mapping[str, str]) -> None:
        """Put the variables over what the file says."""
        for variable in sorted(name for name in environ if name.startswith(PREFIX)):
            key = variable.removeprefix(PREFIX).lower().replace("__", ".")
            if key not in KEYS or variable != _variable(key):
                shown = f"{_plain(variable)} = {_shown(key, environ[variable])}"
                raise ConfigError(f"{shown}: unknown name; {_suggestion(key, KEYS, _variable)}")
            *sections, name = key.split(".")
            node: Any = self.tree
            for section in sections:
                node = node.setdefault(section, {}) if isinstance(node, dict) else None
            if isinstance(node, dict):  # otherwise validation says what is wrong with it
                node[name] = environ[variable]
                self.variables[key] = variable

    def explain(self, error: ValidationError) -> ConfigError:
        """Return the first problem in our own words."""
        first = error.errors(include_url=False)[0]
        place = [str(part) for part in first["loc"]]
        match first["type"]:
            case "conflict":
                return self.problem(first["ctx"]["key"].split("."), f" {first['msg']}")
            case "extra_forbidden":
                key, known = ".".join(place), (*_SECTIONS, *KEYS)
                if key != (within := re.sub(r"\.\d+\.", ".", key)):
                    key, known = within, _IN_TABLES
                return self.problem(place, f": unknown name; {_suggestion(key, known, str)}")
            case "missing":
                return ConfigError(f"{self.variables.get(place[0], self.file)}: {'.'.join(place)} is missing")
            case "model_type":
                return self.problem(place, f": expected a section, [{'.'.join(place)}]")
            case _:
                reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
                return self.problem(place, f": {reason}")

    def problem(self, place: Sequence[str], reason: str) -> ConfigError:
        """Say where the value at `place` was set, its key, the value if it may be shown, and the reason."""
        key = ".".join(place)
        value = reduce(_within, place, self.tree)
        return ConfigError(f"{self.variables.get(key, self.file)}: {_plain(key)} = {_shown(key, value)}{reason}")


def _within(node: Any, name: str) -> Any:
    """Return what is at `name` in a table or a list; a text in its place (from the environment) is returned whole."""
    if isinstance(node, list):
        return node[int(name)]
    return node.get(name, node) if isinstance(node, dict) else node


def _variable(key: str) -> str:
    return PREFIX + key.upper().replace(".", "__")


def _suggestion(key: str, known: Sequence[str], spell: Callable[[str], str]) -> str:
    """Guess which key was meant: one like it in its section, the same name elsewhere, or the nearest one."""
    key = key[:100].lower()
    section, _, name = key.rpartition(".")
    neighbours = {option.rpartition(".")[2]: option for option in known if option.rpartition(".")[0] == section}
    elsewhere = [option for option in known if option.rpartition(".")[2] == name]
    if alike := difflib.get_close_matches(name, neighbours, n=1, cutoff=0.7):
        hint = f"did you mean {spell(neighbours[alike[0]])}?"
    elif neighbours and elsewhere:
        hint = f"it belongs in another section: {' or '.join(map(spell, elsewhere))}"
    else:
        hint = f"the nearest is {spell(difflib.get_close_matches(key, known, n=1, cutoff=0)[0])}"
    if not neighbours:
        return hint
    return f"{hint} ({f'[{section}] takes' if section else 'the sections are'} {', '.join(neighbours)})"


def _shown(key: str, value: object) -> str:
    """Quote a value, cut to a sensible length, unless it may hold a secret: a password, a token, a signed URL."""
    if isinstance(value, dict):
        return "a section"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits or of nested tables
        return "(too large to show)"
    name = key.rpartition(".")[2].lower()
    if re.search("[@?#{]", text) or (_SECRET.search(name) and not name.endswith("_file")):
        return "(not shown)"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(text: str) -> str:
    """Make a name from outside fit for one line."""
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= 200 else f"{shown[:197]}..."
