"""What `check` and `doctor` find, and how a person or a machine reads it."""

from dataclasses import dataclass

from mirror.common.log import plain


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. One that is not `ok` fails the command; a `note` is fine and worth knowing.

    `advice` says what to do about it, when somebody knows. `errno` and `port` are what the words are about, where it is
    an error of the system's, or a port: advice is chosen by these.
    """

    check: str
    ok: bool
    message: str
    note: bool = False
    advice: str = ""
    errno: int | None = None
    port: int | None = None

    @property
    def mark(self) -> str:
        """It in one word."""
        return "FAIL" if not self.ok else "note" if self.note else "ok"

    def describe(self) -> dict[str, object]:
        """It for a machine."""
        return {
            "check": self.check,
            "ok": self.ok,
            "note": self.note,
            "message": ascii_only(self.message),
            "advice": ascii_only(self.advice),
        }

    def lines(self) -> list[str]:
        """It for a person, in ASCII: what was found, and below it what to do."""
        lines = [f"{self.mark:<4}  {self.check:<13}  {self.message}"]
        if self.advice and (self.note or not self.ok):
            lines.append(f"{'':21}-> {self.advice}")
        return [ascii_only(line) for line in lines]


def ascii_only(text: str) -> str:
    """Make a text fit for one line of any terminal. Whoever makes a finding has kept secrets out of it."""
    return plain(text).encode("ascii", "backslashreplace").decode()
