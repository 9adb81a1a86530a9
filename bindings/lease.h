// The parent's hold on a block, as a Python object: the base of every array over the block.
//
// NumPy collapses chains of bases onto it, and views, DLPack exports and torch tensors hold it, so
// the block goes back exactly when nobody can see it any more. Nothing polls reference counts.
#pragma once

#include <cstdint>

#include "bindings/python_api.h"
#include "shm/leased_arena.h"

namespace stook::bindings {

// New reference to a lease of a block that `arena` holds; owns that hold from here on, also if this
// fails (nullptr, with a Python error set). Requires GIL.
PyObject* make_lease(shm::LeasedArena* arena, shm::BlockId id, std::uint64_t offset,
                     std::uint64_t bytes);

bool is_lease(PyObject* object);

// Requires GIL. Throws py::error_already_set.
void register_lease(py::module_& module);

}  // namespace stook::bindings
