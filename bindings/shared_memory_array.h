// stook.SharedMemoryArray: an ndarray over a named segment, which crosses processes as its handle.
#pragma once

#include <cstdint>

#include "bindings/python_api.h"
#include "shm/segment.h"

namespace stook::bindings {

// True for arrays of exactly this type; views of them included. Requires GIL.
bool is_shared_memory_array(PyObject* object);

// New array over a segment that it takes over, also if this fails (nullptr with an error set). What
// it describes lies within the segment. Steals `dtype`. Requires GIL.
PyObject* make_array(shm::Segment::Pointer segment, PyArray_Descr* dtype, int dimensions,
                     const npy_intp* shape, const npy_intp* strides, std::uint64_t offset);

}  // namespace stook::bindings
