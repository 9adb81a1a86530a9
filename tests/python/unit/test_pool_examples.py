"""The examples of the pools run as they stand, and their game is a game."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
KINGS = [5, 11]  # planes
tqdm_lock = pytest.mark.leaves("tqdm keeps the lock of its first bar", "mappings")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def self_play() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_self_play", EXAMPLES / "self_play.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its module up; and functions of it are found by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# ---- the game ------------------------------------------------------------------------------------


def test_a_game_is_the_same_for_the_same_seed(self_play: ModuleType) -> None:
    games = [self_play.play(seed) for seed in range(20)]
    assert all(np.array_equal(game, self_play.play(seed)) for seed, game in enumerate(games))
    assert len({game.tobytes() for game in games}) == 20


def test_games_have_5_to_200_boards(self_play: ModuleType) -> None:
    games = [self_play.play(seed) for seed in range(300)]
    assert all(game.shape[1:] == (8, 8, 12) and game.dtype == np.uint8 for game in games)
    lengths = {len(game) for game in games}
    assert min(lengths) >= 5
    assert max(lengths) <= 200
    assert len(lengths) > 100


def test_a_game_begins_as_chess_does(self_play: ModuleType) -> None:
    first = self_play.play(1)[0]
    assert first.sum(axis=(0, 1)).tolist() == [8, 2, 2, 2, 1, 1] * 2
    assert first[0].argmax(axis=1).tolist() == [3, 1, 2, 4, 5, 2, 1, 3]
    assert first[7].argmax(axis=1).tolist() == [9, 7, 8, 10, 11, 8, 7, 9]
    assert first[1, :, 0].all()
    assert first[6, :, 6].all()
    assert first[2:6].sum() == 0


@pytest.mark.parametrize("seed", range(40))
def test_each_board_is_one_move_from_the_one_before(self_play: ModuleType, seed: int) -> None:
    game = self_play.play(seed).astype(int).reshape(-1, 64, 12)
    assert game.sum(axis=2).max() == 1  # one piece on a square
    for number, (before, after) in enumerate(pairwise(game)):
        mover = slice(0, 6) if number % 2 == 0 else slice(6, 12)
        left = before[:, mover].sum(axis=1) - after[:, mover].sum(axis=1)
        assert sorted(left[left != 0]) == [-1, 1]  # the mover left one square and came to another
        [start], [target] = np.flatnonzero(left == 1), np.flatnonzero(left == -1)
        changed = np.flatnonzero((before != after).any(axis=1))
        assert set(changed) == {start, target}
        kind, became = before[start].argmax(), after[target].argmax()
        promoted = kind % 6 == 0 and target // 8 in (0, 7)
        assert became == (kind + 4 if promoted else kind)


@pytest.mark.parametrize("seed", range(40))
def test_pieces_move_as_in_chess(self_play: ModuleType, seed: int) -> None:
    game = self_play.play(seed).astype(int).reshape(-1, 64, 12)
    for before, after in pairwise(game):
        empty_before, empty_after = (board.sum(axis=1) == 0 for board in (before, after))
        [start] = np.flatnonzero(~empty_before & empty_after)
        [target] = np.flatnonzero(((before != after).any(axis=1)) & ~empty_after)
        side, kind = divmod(int(before[start].argmax()), 6)
        up, right = target // 8 - start // 8, target % 8 - start % 8
        far = max(abs(up), abs(right))
        takes = not empty_before[target]
        ahead = 1 - 2 * side
        straight, diagonal = up == 0 or right == 0, abs(up) == abs(right)
        assert {
            0: (right == 0 and not takes and up in (ahead, 2 * ahead))
            or (abs(right) == 1 and takes and up == ahead),
            1: sorted((abs(up), abs(right))) == [1, 2],
            2: diagonal,
            3: straight,
            4: straight or diagonal,
            5: far == 1,
        }[kind]
        if kind != 1:  # all but the knight pass over empty squares alone
            steps = [start + n * (8 * np.sign(up) + np.sign(right)) for n in range(1, far)]
            assert all(empty_before[steps])


def test_a_game_ends_where_a_king_is_taken(self_play: ModuleType) -> None:
    games = [self_play.play(seed) for seed in range(100)]
    kings = [game[..., KINGS].sum(axis=(1, 2, 3)) for game in games]
    assert all((there[:-1] == 2).all() for there in kings)
    assert 10 < sum(int(there[-1]) == 1 for there in kings) < 90


# ---- the programs --------------------------------------------------------------------------------


def test_self_play_plays_the_same_games_three_ways(self_play: ModuleType) -> None:
    done = run("self_play", "--games", "30", "--workers", "2", "--seed", "7")
    assert done.returncode == 0, done.stderr
    boards = sum(len(self_play.play(seed)) for seed in range(7, 37))
    first, _, *table = done.stdout.splitlines()
    assert first.startswith(f"30 games, {boards:,} boards")
    assert [line[:22].strip() for line in table] == [
        "one process",
        "multiprocessing.Pool",
        "stook.Pool",
    ]
    # Read through a pipe, no progress bar moves a cursor.
    assert not {"\r", "\x1b"} & set(done.stdout + done.stderr)


@tqdm_lock
def test_self_play_asks_for_a_generation_at_a_time(
    self_play: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[range] = []

    @contextlib.contextmanager
    def watched(workers: int) -> Iterator[object]:
        def play_all(seeds: range) -> list[np.ndarray]:
            asked.append(seeds)
            return list(map(self_play.play, seeds))

        yield play_all

    monkeypatch.setattr(self_play, "WAYS", {"one process": watched})
    monkeypatch.setattr(self_play, "GENERATION", 4)
    monkeypatch.setattr(sys, "argv", ["self_play", "--games", "10", "--workers", "2"])
    self_play.main()
    assert asked[1:] == [range(4), range(4, 8), range(8, 10)]
    assert capsys.readouterr().out.startswith("10 games")


@tqdm_lock
@pytest.mark.parametrize("change", ["one game twice", "a shorter game", "a game less"])
def test_self_play_notices_other_games(
    self_play: ModuleType, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    @contextlib.contextmanager
    def wrong(workers: int) -> Iterator[object]:
        def play_all(seeds: range) -> list[np.ndarray]:
            games = [self_play.play(seed) for seed in seeds]
            if change == "one game twice":
                games[1] = games[0]
            elif change == "a shorter game":
                games[0] = games[0][1:]
            else:
                games.pop()
            return games

        yield play_all

    ways = {"one process": self_play.in_one_process, "wrong": wrong}
    monkeypatch.setattr(self_play, "WAYS", ways)
    monkeypatch.setattr(sys, "argv", ["self_play", "--games", "5", "--workers", "1"])
    with pytest.raises(SystemExit, match="wrong played other games"):
        self_play.main()


def test_pure_gather_draws_the_same_picture_four_ways() -> None:
    done = run("pure_gather", "--rows", "20", "--limit", "50")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    picture = lines[:20]
    # It is symmetric, dark within and light without.
    assert picture == picture[::-1]
    assert "#" in picture[9]
    assert not {"#", "@"} & set(picture[0])
    assert [line[:22].strip() for line in lines[-4:]] == [
        "a loop",
        "threads",
        "threads, pure",
        "gather, pure",
    ]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("self_play", "--games", "0"), "must be at least 1"),
        (("self_play", "--workers", "-1"), "must be at least 1"),
        (("pure_gather", "--rows", "0"), "--rows must be at least 1"),
        (("pure_gather", "--limit", "70000"), "--limit from 1 to 65535"),
    ],
)
def test_examples_refuse_what_they_cannot_do(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
