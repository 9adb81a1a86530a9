// What a task and the manager know of the items of a job: which one it is at, and which have cost a
// worker.
#pragma once

#include "bindings/python_api.h"
#include "workers/worker.h"

namespace stook::bindings {

// Has _core.begin_item() of this process tell `worker`, which is never destroyed.
void tell_items_to(workers::Worker& worker);

// A tuple of (item, worker, process id, wait status, attempts, timed out, out of memory). An error
// is set if there is none. Requires GIL.
OwnedRef losses_of(const workers::Job& job);

}  // namespace stook::bindings
