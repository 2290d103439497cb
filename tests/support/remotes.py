"""Doubles of other machines: what a device would answer to the scripts that are run on it."""

from collections.abc import Callable, Mapping, Sequence

from tlc.runtime.remote import Completed, Remote, RemoteError

Answer = bytes | RemoteError


class ToldRemote(Remote):
    """Answers every script by the first of `answers` whose text occurs in it; no connection is made."""

    def __init__(self, answers: Mapping[str, Answer | Callable[[], Answer]], host: str = "board") -> None:
        super().__init__(host)
        self.answers = dict(answers)
        self.scripts: list[str] = []

    def run(self, script: str, *, input: bytes | None = None, timeout_s: float = 60) -> Completed:  # noqa: A002
        self.scripts.append(script)
        found = next((answer for key, answer in self.answers.items() if key in script), None)
        assert found is not None, f"nothing is told for {script}"
        answer = found() if callable(found) else found
        if isinstance(answer, RemoteError):
            raise answer
        return Completed(0, answer, "")


def told_files(files: Mapping[str, str | int]) -> bytes:
    """Return what `tail -n +1 -v` prints of files, by path without the leading slash."""
    return "\n".join(f"==> /{path} <==\n{content}\n" for path, content in files.items()).encode()


def told_facts(facts: Mapping[str, str | Sequence[str]]) -> bytes:
    """Return what the script of `device_facts` prints."""
    rows = [(key, row) for key, rows in facts.items() for row in ([rows] if isinstance(rows, str) else rows)]
    return "".join(f"{key}={row}\n" for key, row in rows).encode()
