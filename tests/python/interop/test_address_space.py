"""A limit on the address space (`ulimit -v`), with large libraries loaded."""

from __future__ import annotations

import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, each_start_method, require

from conftest import RunPython

require("torch", "cv2")

LIMIT = 4 << 30


@each_start_method
@pytest.mark.parametrize("workers", [2, 4])
def test_a_loader_under_a_limit(run_python: RunPython, start_method: str, workers: int) -> None:
    code = """
        import resource, sys, threading, warnings

        limit, workers, start_method = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        import cv2, numpy as np, torch, stook

        warnings.filterwarnings("ignore", "start_method='fork'")
        picture = np.arange(900 * 800 * 3).reshape(900, 800, 3).astype(np.uint8)

        def element(index):
            assert resource.getrlimit(resource.RLIMIT_AS) == (limit, limit)
            tensor = torch.full((400, 400), float(index)) @ torch.ones(400, 400)
            return {"image": cv2.resize(picture, (600, 500)), "tensor": tensor}

        want = cv2.resize(picture, (600, 500))
        options = stook.MultiprocessingOptions(num_workers=workers, start_method=start_method)
        with stook.DataLoader(range(40), element, options=options) as loader:
            for index, got in enumerate(loader):
                assert np.array_equal(got["image"], want)
                assert (got["tensor"] == 400 * index).all()
            stats = loader.stats()
        # The caller has room left for its own threads.
        threads = [threading.Thread(target=int) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(stats.elements, stats.moved, stats.copied, stats.restarts)
    """
    arguments = (str(LIMIT), str(workers), start_method)
    done = run_python(code, *arguments, deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "40 40 40 0\n"
