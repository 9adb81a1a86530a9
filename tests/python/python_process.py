"""Python programs that tests start, watch and end together with everything they started."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from leftovers import Process, process_tree, wait_until

TREE_MARK = "STOOK_TEST_TREE"
STRICT = ("-X", "dev", "-W", "error")


@dataclass(frozen=True)
class Finished:
    """How a program ended; returncode is negative for a signal, as in subprocess."""

    returncode: int
    stdout: str
    stderr: str

    def check(self) -> Finished:
        """Fails the test, with all that was printed, unless the program ended with 0."""
        if self.returncode != 0:
            pytest.fail(f"The program ended with {self.returncode}.\n{self}", pytrace=False)
        return self

    def __str__(self) -> str:
        return f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class PythonProcess:
    """A script in an interpreter of its own, in a session of its own.

    Output goes to files: a pipe would stay open for as long as any descendant lives, and reading it
    would wait for those instead of for the script.
    """

    def __init__(
        self,
        folder: Path,
        code: str,
        arguments: tuple[str, ...],
        env: dict[str, str | None],
        cwd: Path | None,
        flags: tuple[str, ...],
    ) -> None:
        folder.mkdir(parents=True)
        script = folder / "script.py"
        script.write_text(textwrap.dedent(code))
        self._stdout = folder / "stdout"
        self._stderr = folder / "stderr"
        self._mark = f"{TREE_MARK}={secrets.token_hex(8)}"
        name, _, value = self._mark.partition("=")
        merged = {**os.environ, "PYTHONFAULTHANDLER": "1", **env, name: value}
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, *flags, str(script), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd if cwd is not None else folder,
                env={key: text for key, text in merged.items() if text is not None},
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def stdout(self) -> str:
        """What it and its descendants have printed up to now."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """The same for standard error."""
        return self._stderr.read_text(errors="replace")

    def running(self) -> bool:
        """Whether the script itself still runs."""
        return self._process.poll() is None

    def tree(self) -> list[Process]:
        """Its descendants, those included whose parents died; never the script itself."""
        return process_tree(self.pid, mark=self._mark, session=self.pid)

    def wait_for_output(self, text: str, deadline: float = 60) -> None:
        """Returns as soon as it has printed the text; fails if it ends or is late."""
        wait_until(lambda: text in self.stdout or not self.running(), deadline)
        if text not in self.stdout:
            self._fail(f"It did not print {text!r} within {deadline} s.")

    def send_signal(self, number: int) -> None:
        """To the script alone."""
        self._process.send_signal(number)

    def finish(self, deadline: float = 60, tree_deadline: float = 10) -> Finished:
        """Waits for the script, then for its whole tree, to be gone; fails if either is late."""
        try:
            self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            self._abort_tree()
            self._fail(f"It did not end within {deadline} s (tracebacks of its tree below).")
        if not wait_until(lambda: not self.tree(), tree_deadline):
            left = "\n".join(str(process) for process in self.tree())
            self._abort_tree()
            self._fail(f"{tree_deadline} s after its end there was left:\n{left}")
        return Finished(self._process.returncode, self.stdout, self.stderr)

    def end(self) -> None:
        """Kills whatever is left of it; nothing is left afterwards."""
        wait_until(self._kill_all, 10)

    def _kill_all(self) -> bool:
        if self.running():
            self._process.kill()
            self._process.wait()
        alive = [process.pid for process in self.tree() if process.state != "Z"]
        for pid in alive:
            self._signal(pid, signal.SIGKILL)
        return not alive

    def _abort_tree(self) -> None:
        """SIGABRT to every process: faulthandler prints where it stands. Then SIGKILL.

        All are stopped first and die one after the other: so none reacts to the death of another
        before its own, and the tracebacks do not mix.
        """
        pids = [self.pid, *(process.pid for process in self.tree() if process.pid != self.pid)]
        for number in (signal.SIGSTOP, signal.SIGABRT):
            for pid in pids:
                self._signal(pid, number)
        for pid in pids:
            self._signal(pid, signal.SIGCONT)
            wait_until(functools.partial(self._dead, pid), 2)
        self.end()

    def _dead(self, pid: int) -> bool:
        if pid == self.pid:
            return not self.running()
        return all(process.pid != pid or process.state == "Z" for process in self.tree())

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _fail(self, text: str) -> None:
        pytest.fail(f"{text}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}", pytrace=False)
