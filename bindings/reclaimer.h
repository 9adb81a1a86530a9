// SharedMemoryArray.enable_async_del, and what Python asks of the reclaim threads besides.
#pragma once

#include "bindings/python_api.h"

namespace stook::bindings {

// (num_threads=1, max_outstanding_requests=50) -> None. Requires GIL.
PyObject* enable_async_del(PyObject*, PyObject* arguments, PyObject* keywords);

}  // namespace stook::bindings
