// NumPy's allocator in a worker: arrays that user code makes during a job are born in the arena.
//
// NEP 49: https://numpy.org/neps/nep-0049-allocation.html. The handler is installed once, in the
// worker's main thread, and looks at a flag that is up only during a job's call, so that neither
// imports nor initializers nor the data set fill the arena. A thread of user code that works beside
// the jobs may have a flag of its own. It frees from any thread, at any time.
#pragma once

#include <cstdint>

#include "bindings/python_api.h"
#include "workers/worker_arena.h"

namespace stook::bindings {

// Requires GIL. Once in a process; `arena` must live as long as the process. Arrays smaller than
// `min_shared_bytes` stay with the handler that was installed before, which keeps NumPy's small
// cache. Throws py::error_already_set.
void install_numpy_allocator(workers::WorkerArena& arena, std::uint64_t min_shared_bytes);

// Up only while a job's user code runs.
void set_numpy_allocator_active(bool active);

// From now on, arrays that the calling thread makes are born in the arena also between jobs, if the
// handler is that of its context. Nothing in a process that is no worker.
void keep_numpy_allocator_active();

// True if the data of `array` came from our handler. Requires GIL.
bool has_our_handler(PyArrayObject* array);

}  // namespace stook::bindings
