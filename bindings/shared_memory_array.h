// stook.SharedMemoryArray: an ndarray over a named segment, which crosses processes as its handle.
#pragma once

#include <cstdint>

#include "bindings/python_api.h"

namespace stook::bindings {

// True for arrays of exactly this type; views of them included. Requires GIL.
bool is_shared_memory_array(PyObject* object);

// New array over a segment object, or nullptr with an error set. What it describes lies within the
// segment. Steals `dtype`. Requires GIL.
PyObject* make_array(PyObject* segment_object, PyArray_Descr* dtype, int dimensions,
                     const npy_intp* shape, const npy_intp* strides, std::uint64_t offset);

}  // namespace stook::bindings
