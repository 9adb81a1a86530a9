"""How exceptions of user code, and failures before the first element, arrive at the consumer."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from typing import Any

import pytest
from process_loader import each_method, made

import stook
from conftest import RunPython


class OwnError(Exception):
    """As exceptions should be."""


class TwoArgumentsError(Exception):
    """Pickle cannot call it again: it passes on something else than it was given."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class KeywordError(OSError):
    def __init__(self, *, path: str) -> None:
        super().__init__(2, "no such thing")
        self.path = path


class LockError(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class TextError(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class ReduceError(Exception):
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not reduced")


class ReduceExitError(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class LoadExitError(Exception):
    """Would end whoever unpickles it."""

    def __reduce__(self) -> Any:
        return sys.exit, (4,)


class LoadDeepError(Exception):
    def __reduce__(self) -> Any:
        return LoadDeepError.load, ()

    @staticmethod
    def load() -> Any:
        raise RecursionError("too deep")


class MissingError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "no such photograph", path)
        self.path = path


class NoCodecError(ImportError):
    def __init__(self, codec: str) -> None:
        super().__init__(f"no codec {codec}", name="codecs_of_ours", path="/there")
        self.codec = codec


def raise_by_name(name: str) -> Any:
    if name == "os":
        raise MissingError("a.jpg")
    if name == "import":
        raise NoCodecError("heic")
    if name == "own":
        error: BaseException = OwnError("text", 7)
        stook.errors.add_note(error, "a note of the user's")
        raise error
    if name == "two":
        raise TwoArgumentsError(404, "not there")
    if name == "keyword":
        raise KeywordError(path="/there")
    kinds = {kind.__name__: kind for kind in (LockError, TextError, ReduceError)}
    kinds.update({kind.__name__: kind for kind in (ReduceExitError, LoadExitError, LoadDeepError)})
    if name in kinds:
        raise kinds[name]("text of it")
    return name


@each_method
def test_an_exception_arrives_as_itself(method: str) -> None:
    with made(method, ["a", "own", "b"], raise_by_name) as loader:
        elements = iter(loader)
        assert next(elements) == "a"
        with pytest.raises(OwnError) as caught:
            next(elements)
        error = caught.value
        assert type(error) is OwnError
        assert error.args == ("text", 7)
        assert error.__notes__ == ["a note of the user's", "while loading element 1 (index 1)"]
        remote = error.__cause__
        assert isinstance(remote, stook.RemoteError)
        assert "in raise_by_name" in str(remote)
        assert "in raise_by_name" in "".join(traceback.format_exception(error))
        assert remote.type_name == "OwnError"
        # The iterator goes on.
        assert list(elements) == ["b"]
        assert (loader.stats().errors, loader.stats().elements) == (1, 2)


@each_method
def test_an_exception_that_pickle_cannot_call_again(method: str) -> None:
    with made(method, ["two"], raise_by_name) as loader:
        with pytest.raises(TwoArgumentsError) as caught:
            next(iter(loader))
    error = caught.value
    assert (str(error), error.args, error.code) == ("404: not there", ("404: not there",), 404)
    assert error.__notes__ == ["while loading element 0 (index 0)"]


@each_method
def test_an_exception_of_the_system_with_arguments_of_its_own(method: str) -> None:
    with made(method, ["keyword", "os", "import"], raise_by_name) as loader:
        elements = iter(loader)
        with pytest.raises(KeywordError, match="no such thing") as keyword:
            next(elements)
        assert keyword.value.path == "/there"
        with pytest.raises(MissingError) as missing:
            next(elements)
        with pytest.raises(NoCodecError) as no_codec:
            next(elements)
    error = missing.value
    assert str(error) == "[Errno 2] no such photograph: 'a.jpg'"
    assert (error.errno, error.filename, error.path) == (2, "a.jpg", "a.jpg")
    assert error.args == MissingError("a.jpg").args
    other = no_codec.value
    assert (str(other), other.name, other.path) == ("no codec heic", "codecs_of_ours", "/there")
    assert other.codec == "heic"


@each_method
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LockError", "cannot be pickled (TypeError: cannot pickle '_thread.lock' object)"),
        ("ReduceError", "cannot be pickled (RuntimeError: not reduced)"),
        ("ReduceExitError", "cannot be pickled (SystemExit: 3)"),
        ("LoadExitError", "its pickle cannot be read (SystemExit: 4)"),
        ("LoadDeepError", "its pickle cannot be read (RecursionError: too deep)"),
    ],
)
def test_an_exception_that_cannot_cross_arrives_as_text(method: str, name: str, text: str) -> None:
    with made(method, ["a", name, "b"], raise_by_name) as loader:
        elements = iter(loader)
        assert next(elements) == "a"
        with pytest.raises(stook.RemoteError) as caught:
            next(elements)
        assert text in str(caught.value)
        assert "in raise_by_name" in str(caught.value)
        assert caught.value.__notes__ == ["while loading element 1"]
        assert list(elements) == ["b"]


@each_method
def test_an_exception_without_a_text(method: str) -> None:
    with made(method, ["TextError"], raise_by_name) as loader:
        with pytest.raises(TextError) as caught:
            next(iter(loader))
    assert "in raise_by_name" in str(caught.value.__cause__)


@each_method
def test_classes_of_main_come_back_as_themselves(method: str, run_python: RunPython) -> None:
    run_python(
        """
        import dataclasses, sys, stook

        class Own(Exception):
            pass

        @dataclasses.dataclass
        class Point:
            x: int

        def outer():
            class Local(Exception):
                pass

            def transform(index):
                if index == 0:
                    raise Own("own")
                if index == 1:
                    raise Local("local")
                return Point(index)
            return Local, transform

        local, transform = outer()
        options = stook.MultiprocessingOptions(num_workers=2, start_method=sys.argv[1])
        with stook.DataLoader(range(4), transform, options=options) as loader:
            elements = iter(loader)
            try:
                next(elements)
            except Own as error:
                assert error.args == ("own",)
            try:
                next(elements)
            except local as error:
                assert error.args == ("local",)
            assert list(elements) == [Point(2), Point(3)]
        print("done")
        """,
        method,
    ).check()


# ---- results that cannot be sent -----------------------------------------------------------------


def unsendable(index: int) -> Any:
    if index == 1:
        return {"lock": threading.Lock()}
    if index == 2:
        return (x for x in ())
    return index


@each_method
def test_a_result_that_cannot_be_pickled(method: str) -> None:
    with made(method, range(4), unsendable) as loader:
        elements = iter(loader)
        assert next(elements) == 0
        for index, what in ((1, "_thread.lock"), (2, "generator")):
            with pytest.raises(TypeError, match=f"cannot pickle '{what}' object") as caught:
                next(elements)
            assert caught.value.__notes__ == [f"while loading element {index}"]
        assert list(elements) == [3]


class Lost:
    """Pickles, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def lost(index: int) -> Any:
    return Lost() if index == 1 else index


@each_method
def test_a_result_that_cannot_be_unpickled(method: str) -> None:
    with made(method, range(3), lost) as loader:
        elements = iter(loader)
        assert next(elements) == 0
        with pytest.raises(ValueError, match="no number"):
            next(elements)
        assert list(elements) == [2]


# ---- before the first element --------------------------------------------------------------------


def init_raises(index: int, count: int) -> None:
    raise OwnError(f"{count} workers")


def init_exits(index: int, count: int) -> None:
    sys.exit(3)


def init_dies(index: int, count: int) -> None:
    os._exit(0)


@each_method
def test_worker_init_fn_raises(method: str) -> None:
    with made(method, range(3), worker_init_fn=init_raises) as loader:
        elements = iter(loader)
        with pytest.raises(OwnError, match="2 workers") as caught:
            next(elements)
        assert caught.value.__notes__[0].startswith("while worker ")
        assert caught.value.__notes__[0].endswith(" was being set up")
        assert "in init_raises" in str(caught.value.__cause__)
        assert list(elements) == []
        with pytest.raises(OwnError):  # anew
            list(loader)


@each_method
def test_worker_init_fn_exits(method: str) -> None:
    with made(method, range(3), worker_init_fn=init_exits) as loader:
        with pytest.raises(stook.StookError, match=r"SystemExit.*was being set up") as caught:
            list(loader)
        assert isinstance(caught.value.__cause__, SystemExit)


@each_method
def test_worker_init_fn_ends_the_process(method: str) -> None:
    with made(method, range(3), worker_init_fn=init_dies) as loader:
        with pytest.raises(stook.PoolBroken, match="workers end before they run anything"):
            list(loader)


class Unloadable:
    """A transform that cannot be unpickled in a fresh interpreter."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        if self.how == "raise":
            return int, ("no number",)
        return (sys.exit, (4,)) if self.how == "exit" else (os._exit, (5,))

    def __call__(self, index: int) -> int:
        return index


def test_loading_raises() -> None:
    with made("forkserver", range(3), Unloadable("raise")) as loader:
        with pytest.raises(ValueError, match="no number") as caught:
            list(loader)
        assert "set up" in caught.value.__notes__[0]
    with made("forkserver", range(3), Unloadable("exit")) as loader:
        with pytest.raises(RuntimeError, match=r"loading raised SystemExit\(4\)"):
            list(loader)
    with made("forkserver", range(3), Unloadable("die")) as loader:
        with pytest.raises(stook.PoolBroken, match=r"the fork server .* ended"):
            list(loader)
    with made("fork", range(3), Unloadable("die")) as loader:
        assert list(loader) == [0, 1, 2]


def test_an_import_fails_in_the_worker(run_python: RunPython) -> None:
    run_python(
        """
        import pathlib, sys, stook

        module = pathlib.Path("only_here.py")
        module.write_text("def transform(index): return index")
        sys.path.insert(0, "")
        sys.dont_write_bytecode = True
        import only_here
        module.unlink()
        options = stook.MultiprocessingOptions(num_workers=2)
        try:
            list(stook.DataLoader(range(3), only_here.transform, options=options))
        except ModuleNotFoundError as error:
            assert error.name == "only_here", error
            assert "was being set up" in error.__notes__[0]
        else:
            raise AssertionError("nothing was raised")
        print("done")
        """
    ).check()


def test_a_loader_at_import_is_refused(run_python: RunPython, tmp_path: Any) -> None:
    (tmp_path / "at_import.py").write_text(
        "import stook\n"
        "def transform(index):\n"
        "    return index\n"
        "options = stook.MultiprocessingOptions(num_workers=1)\n"
        "found = list(stook.DataLoader(range(3), transform, options=options))\n"
    )
    run_python(
        """
        import sys, stook
        sys.path.insert(0, sys.argv[1])
        try:
            import at_import
        except stook.StookError as error:
            text = str(error)
            assert "imports a module that starts worker processes itself" in text, text
            assert "at_import.py, line 5" in text, text
            assert "found = list(stook.DataLoader(" in text, text
            assert "__main__" in text, text
        else:
            raise AssertionError("nothing was raised")
        """,
        str(tmp_path),
    ).check()
