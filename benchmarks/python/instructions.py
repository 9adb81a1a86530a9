"""Instructions per element with and without `enable_profiling`, as callgrind counts them.

    apt-get install valgrind gcc; python benchmarks/python/instructions.py

One worker and this process, from the 100th element to the 290th. A count does not depend on what
else the machine does. Valgrind 3.19 knows neither pidfd_open nor epoll_pwait2: a library that is
loaded before puts older calls in their place, which the path of an element does not notice. What
the vDSO's clock takes is not in it, for under valgrind that is a system call.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FIRST, LAST = 100, 290
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <valgrind/callgrind.h>
static int pids[65536];
long syscall(long number, ...) {
  static long (*real)(long, ...);
  long x[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; ++i) x[i] = va_arg(list, long);
  va_end(list);
  if (!real) real = dlsym(RTLD_NEXT, "syscall");
  if (number == SYS_epoll_pwait2) {
    const struct timespec* t = (const struct timespec*)x[3];
    long ms = t ? t->tv_sec * 1000 + t->tv_nsec / 1000000 : -1;
    return real(SYS_epoll_pwait, x[0], x[1], x[2], ms, x[4], x[5]);
  }
  if (number == SYS_pidfd_open) {
    int fd = eventfd(0, EFD_CLOEXEC);
    pids[fd] = (int)x[0];
    return fd;
  }
  if (number == SYS_pidfd_send_signal) return kill(pids[x[0]], (int)x[1]);
  return real(number, x[0], x[1], x[2], x[3], x[4], x[5]);
}
void dump(void) { CALLGRIND_DUMP_STATS; }
"""


def measure_here(work: str, profiles: bool, shim: str) -> None:
    """In a process under valgrind."""
    import numpy as np

    import stook

    dump = ctypes.CDLL(shim).dump

    def photo(index: int) -> Any:
        image = np.full((480, 640, 3), index & 255, np.uint8)
        for _ in range(3):
            image = (image * np.float32(0.5)).astype(np.uint8)
        return image[::2, ::2][:224, :224].copy()

    works: dict[str, Any] = {
        "int": lambda index: index,
        "150 KB": lambda index: np.full((224, 224, 3), index & 255, np.uint8),
        "photo": photo,
    }
    make = works[work]

    def load(index: int) -> Any:
        if index in (FIRST, LAST):
            dump()
        return make(index)

    options = stook.MultiprocessingOptions(1, 4, profiles, start_method="fork")
    loader = stook.DataLoader(range(LAST + 10), load, options=options)
    for count, _ in enumerate(loader):
        if count in (FIRST, LAST):
            dump()
        if count == LAST:
            break
    pool = loader._pool._core
    print(os.getpid(), *pool.worker_pids, flush=True)
    for pid in (*pool.worker_pids, pool.server_pid):
        os.kill(pid, signal.SIGKILL)
    os._exit(0)  # what ends them as usual is not there


def instructions(folder: Path, pid: str) -> float:
    """Per element, from the second dump of a process."""
    (total,) = [
        line.split()[1]
        for line in (folder / f"out.{pid}.2").read_text().splitlines()
        if line.startswith("totals:")
    ]
    return int(total) / (LAST - FIRST)


def count(work: str, profiles: bool, folder: Path, shim: Path) -> tuple[float, float]:
    """Instructions of this process and of the worker."""
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "-q", f"--callgrind-out-file={folder}/out.%p"),
            *(sys.executable, __file__, work, str(int(profiles)), str(shim)),
        ],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=600,
        check=True,
    )
    here, worker = done.stdout.split()
    return instructions(folder, here), instructions(folder, worker)


def main() -> None:
    if len(sys.argv) > 1:
        measure_here(sys.argv[1], sys.argv[2] == "1", sys.argv[3])
    for program in ("valgrind", "gcc"):
        if shutil.which(program) is None:
            sys.exit(f"instructions: {program} is not installed: apt-get install valgrind gcc")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shim.c").write_text(SHIM)
        shim = folder / "shim.so"
        subprocess.run(
            ["gcc", "-O1", "-shared", "-fPIC", folder / "shim.c", "-o", shim, "-ldl"], check=True
        )
        print(f"{'element':10}{'profiles':>10}{'this process':>15}{'worker':>15}{'more':>10}")
        for work in ("int", "150 KB", "photo"):
            before = 0.0
            for profiles in (False, True):
                here, worker = count(work, profiles, folder, shim)
                both = here + worker
                more = f"{100 * (both / before - 1):+.2f} %" if before else ""
                print(
                    f"{work:10}{'on' if profiles else 'off':>10}{here:15,.0f}{worker:15,.0f}"
                    f"{more:>10}",
                    flush=True,
                )
                before = both


if __name__ == "__main__":
    main()
