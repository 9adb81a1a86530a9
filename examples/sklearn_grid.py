"""scikit-learn's GridSearchCV and cross_val_score on Stook's workers: the numbers stay the same.

    pip install scikit-learn
    python examples/sklearn_grid.py

joblib runs them, and scikit-learn needs to know nothing: after ``stook.joblib.register()`` there is
one backend more to choose, "stook", beside joblib's own, "loky".
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

import stook.joblib

try:
    from joblib import parallel_config
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.svm import SVC
except ImportError:
    sys.exit("sklearn_grid: scikit-learn is not installed: pip install scikit-learn")

GRID = {"svc__C": [0.5, 2, 8], "svc__gamma": [0.005, 0.02]}
Numbers = dict[str, np.ndarray]


def scaled(pixels: np.ndarray) -> np.ndarray:
    """0 to 16 becomes -1 to 1. A function of this script: workers get it, too."""
    return pixels / 8 - 1


def search(images: np.ndarray, digits: np.ndarray, folds: int) -> Numbers:
    """Scores of each setting in each fold, and those of another model."""
    support = make_pipeline(FunctionTransformer(scaled), SVC())
    grid = GridSearchCV(support, GRID, cv=folds).fit(images, digits)
    linear = make_pipeline(FunctionTransformer(scaled), LogisticRegression(max_iter=1000))
    numbers = {f"fold {fold}": grid.cv_results_[f"split{fold}_test_score"] for fold in range(folds)}
    numbers["C"], numbers["gamma"] = (grid.cv_results_[f"param_{name}"] for name in GRID)
    numbers["mean"] = grid.cv_results_["mean_test_score"]
    numbers["rank"] = grid.cv_results_["rank_test_score"]
    numbers["linear"] = cross_val_score(linear, images, digits, cv=folds)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=1797, help="of the 1797 that there are")
    parser.add_argument("--folds", type=int, default=5)
    args = parser.parse_args()

    images, digits = load_digits(return_X_y=True)
    images, digits = images[: args.images], digits[: args.images]
    stook.joblib.register()
    found: dict[str, Numbers] = {}
    seconds = {}
    for backend in ("loky", "stook"):
        with parallel_config(backend=backend, n_jobs=args.workers):
            began = time.perf_counter()
            found[backend] = search(images, digits, args.folds)
            seconds[backend] = time.perf_counter() - began

    for name, expected in found["loky"].items():
        if not np.array_equal(expected, found["stook"][name]):
            sys.exit(f"sklearn_grid: {name} is {found['stook'][name]} on stook, not {expected}")
    print(f"{len(images)} images, {args.folds} folds, {args.workers} workers")
    numbers = found["stook"]
    columns = (numbers[name] for name in ("C", "gamma", "mean", "rank"))
    for c, gamma, mean, rank in zip(*columns, strict=True):
        print(f"C {c:<4} gamma {gamma:<6} right {mean:6.1%}  rank {rank}")
    print(f"{'linear model':20}right {numbers['linear'].mean():6.1%}")
    print(f"\n{'backend':12}{'seconds':>10}   the same numbers, start included")
    for backend, took in seconds.items():
        print(f"{backend:12}{took:10.2f}")


main()
