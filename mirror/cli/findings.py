"""What `check` and `doctor` find, and how it is shown to people and machines."""

from dataclasses import dataclass

from mirror.common.log import plain


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. It fails the command unless it is `ok`; a `note` is fine, but worth knowing.

    `advice` says what to do about it, if that is known. `errno` and `port` are those that the message is about, if any;
    advice is chosen by them, never by the text.
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
        """The finding in one word."""
        return "FAIL" if not self.ok else "note" if self.note else "ok"

    def describe(self) -> dict[str, object]:
        """Return the finding for machines."""
        return {
            "check": self.check,
            "ok": self.ok,
            "note": self.note,
            "message": ascii_only(self.message),
            "advice": ascii_only(self.advice),
        }

    def lines(self) -> list[str]:
        """Return the finding for people, in ASCII: a line that says it, and below that what to do."""
        lines = [f"{self.mark:<4}  {self.check:<13}  {self.message}"]
        if self.advice and (self.note or not self.ok):
            lines.append(f"{'':21}-> {self.advice}")
        return [ascii_only(line) for line in lines]


def ascii_only(text: str) -> str:
    """Make a text safe for one line of any terminal. It must not contain secrets, which are not removed here."""
    return plain(text).encode("ascii", "backslashreplace").decode()
