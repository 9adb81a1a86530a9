"""Plays 100,000 short games of a chess-like game: in one process, with Pool.map, with stook.Pool.

    python examples/self_play.py                  # minutes
    python examples/self_play.py --games 5000     # fewer games

A game grows a list of boards, each (8, 8, 12) uint8, stacks it and returns it. How many boards it
will be, 5 to 200, nobody knows before the game is over. The games of all three ways are the same
ones, and the program sees to it that they are.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

import stook

FEWEST, MOST = 5, 200  # boards in a game
GENERATION = 1000  # games in one call of map: what a trainer takes before it plays on
Play = Callable[[range], list[np.ndarray]]


# ---- the game: chess without check, castling and en passant --------------------------------------

# Squares are numbered 0 to 63, row by row, White's home row first. Kinds are numbered 0 to 5,
# pawn, knight, bishop, rook, queen, king; a piece is its kind, and 6 more if it is Black's.
PAWN, QUEEN, KING, EMPTY = 0, 4, 5, -1
HOME = [3, 1, 2, 4, 5, 2, 1, 3]
START = [*HOME, *[PAWN] * 8, *[EMPTY] * 32, *[6 + PAWN] * 8, *[6 + kind for kind in HOME]]
STRAIGHT = [(0, 1), (0, -1), (1, 0), (-1, 0)]
DIAGONAL = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
LEAPS = [(a, b) for a in (-2, -1, 1, 2) for b in (-2, -1, 1, 2) if abs(a) != abs(b)]
REACH = [  # of each kind: in which directions, and how far
    ([], 0),
    (LEAPS, 1),
    (DIAGONAL, 7),
    (STRAIGHT, 7),
    (STRAIGHT + DIAGONAL, 7),
    (STRAIGHT + DIAGONAL, 1),
]


def ray(square: int, up: int, right: int, far: int) -> list[int]:
    """The squares in one direction, the nearest first."""
    row, column = divmod(square, 8)
    steps = [(row + n * up, column + n * right) for n in range(1, far + 1)]
    return [8 * r + c for r, c in steps if 0 <= r < 8 and 0 <= c < 8]


RAYS = [[[ray(square, *way, far) for way in ways] for square in range(64)] for ways, far in REACH]
PUSHES = [  # of each side's pawn: the squares ahead, two from where it began
    [ray(square, up, 0, 2 if square // 8 == home else 1) for square in range(64)]
    for up, home in ((1, 1), (-1, 6))
]
TAKES = [[ray(square, up, -1, 1) + ray(square, up, 1, 1) for square in range(64)] for up in (1, -1)]


def targets(squares: list[int], start: int) -> list[int]:
    """Where the piece on ``start`` may go."""
    side, kind = divmod(squares[start], 6)
    found = []
    for squares_ahead in RAYS[kind][start]:
        for square in squares_ahead:
            if squares[square] == EMPTY:
                found.append(square)
                continue
            if squares[square] // 6 != side:
                found.append(square)
            break
    if kind == PAWN:
        for square in PUSHES[side][start]:
            if squares[square] != EMPTY:
                break
            found.append(square)
        found += [s for s in TAKES[side][start] if squares[s] // 6 == 1 - side]
    return found


def random_move(squares: list[int], side: int, draw: random.Random) -> tuple[int, int] | None:
    """From where to where; None if the side cannot move."""
    starts = [square for square, piece in enumerate(squares) if piece // 6 == side]
    while starts:
        start = starts.pop(int(draw.random() * len(starts)))
        found = targets(squares, start)
        if found:
            return start, found[int(draw.random() * len(found))]
    return None


def play(seed: int) -> np.ndarray:
    """One game, the same for the same seed.

    Returns:
        (boards, 8, 8, 12) uint8, one plane for each kind of piece of each side: 1 where one stands.
    """
    draw = random.Random(seed)
    time_is_up = draw.randint(FEWEST, MOST)
    squares = START.copy()
    board = np.zeros((64, 12), np.uint8)
    for square, piece in enumerate(squares):
        board[square, piece] = piece != EMPTY
    boards = [board]
    side = 0
    while len(boards) < time_is_up:
        move = random_move(squares, side, draw)
        if move is None:
            break
        start, target = move
        piece, taken = squares[start], squares[target]
        if piece % 6 == PAWN and target // 8 in (0, 7):
            piece += QUEEN - PAWN
        squares[start], squares[target] = EMPTY, piece
        board = board.copy()
        board[start] = board[target] = 0
        board[target, piece] = 1
        boards.append(board)
        if taken != EMPTY and taken % 6 == KING:
            break
        side = 1 - side
    return np.stack(boards).reshape(-1, 8, 8, 12)


# ---- three ways to play many ---------------------------------------------------------------------


@contextlib.contextmanager
def in_one_process(workers: int) -> Iterator[Play]:
    yield lambda seeds: list(map(play, seeds))


@contextlib.contextmanager
def with_multiprocessing(workers: int) -> Iterator[Play]:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield functools.partial(pool.map, play)


@contextlib.contextmanager
def with_stook(workers: int) -> Iterator[Play]:
    with stook.Pool(workers) as pool:
        yield functools.partial(pool.map, play)


WAYS: dict[str, Callable[[int], AbstractContextManager[Play]]] = {
    "one process": in_one_process,
    "multiprocessing.Pool": with_multiprocessing,
    "stook.Pool": with_stook,
}


@dataclass
class Tally:
    """What all games came to; equal if the games were."""

    games: int = 0
    boards: int = 0
    taken_kings: int = 0
    check: int = 0

    def add(self, game: np.ndarray) -> None:
        last = game[-1]
        self.games += 1
        self.boards += len(game)
        self.taken_kings += 2 - int(np.count_nonzero(last[..., KING::6]))
        self.check = zlib.crc32(last, self.check)


def play_all(way: str, args: argparse.Namespace) -> tuple[Tally, float]:
    """Plays the games in one way. Returns what they came to, and the seconds that it took."""
    tally = Tally()
    bar = tqdm(total=args.games, desc=f"{way:20}", unit="game", disable=None)
    with WAYS[way](args.workers) as played, bar:
        played(range(10 * args.workers))  # not timed: until the workers are there
        began = time.perf_counter()
        for first in range(0, args.games, GENERATION):
            end = min(first + GENERATION, args.games)
            for game in played(range(args.seed + first, args.seed + end)):
                tally.add(game)
            bar.update(end - first)
        return tally, time.perf_counter() - began


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--games", type=at_least_one, default=100_000)
    parser.add_argument("--workers", type=at_least_one, default=max(2, os.cpu_count() or 2))
    parser.add_argument("--seed", type=int, default=0, help="of the first game")
    args = parser.parse_args()
    tqdm.monitor_interval = 0  # no thread beside the pool that forks
    results = {way: play_all(way, args) for way in WAYS}
    tally, alone = results["one process"]
    for way, (found, _) in results.items():
        if found != tally:
            sys.exit(f"self_play: {way} played other games: {found} instead of {tally}")
    print(
        f"{tally.games:,} games, {tally.boards:,} boards ({tally.boards * 768 / 1e6:,.0f} MB), "
        f"{tally.taken_kings:,} kings taken; {args.workers} workers"
    )
    print(f"{'':22}{'seconds':>10}{'games/s':>12}{'x one process':>16}")
    for way, (_, took) in results.items():
        print(f"{way:22}{took:10.2f}{tally.games / took:12,.0f}{took / alone:16.2f}")


# Stook needs no guard; it is here so that a test can import the game.
if __name__ == "__main__":
    main()
