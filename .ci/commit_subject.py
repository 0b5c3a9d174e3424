"""Check the message of a commit: its subject has at most 72 characters, and a blank line follows it.

A commit-msg hook of pre-commit runs it with the path of the message.
"""

import sys
from pathlib import Path

LONGEST = 72


def problem(message: str) -> str | None:
    """Return what is wrong with the message, or None."""
    lines = [line for line in message.splitlines() if not line.startswith("#")]
    subject, rest = (lines[0], lines[1:]) if lines else ("", [])
    if subject.startswith(("Merge ", "Revert ", "fixup! ", "squash! ")):
        return None  # git writes these
    if not subject.strip():
        return "the subject is empty"
    if len(subject) > LONGEST:
        return f"the subject has {len(subject)} characters; at most {LONGEST} are allowed"
    if subject.endswith("."):
        return "the subject ends with a period"
    if rest and rest[0].strip():
        return "a blank line must follow the subject"
    return None


if __name__ == "__main__":
    found = problem(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if found:
        sys.exit(f"commit message: {found}")
