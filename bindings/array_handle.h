// What a SharedMemoryArray says of itself in a handle, and what is believed of one.
//
// A handle may come from a file or a stranger: everything in it is checked before an array is made.
// All functions require the GIL, and set a Python error where they return false or nullptr.
#pragma once

#include <cstdint>
#include <vector>

#include "bindings/python_api.h"

namespace stook::bindings {

// False if items of this dtype mean nothing in another process.
bool check_dtype(PyArray_Descr* dtype);

// An int, or anything with ints in it.
bool convert_shape(PyObject* given, std::vector<npy_intp>& shape);

// Bytes of a C-contiguous array. False for negative lengths, and beyond the address space.
bool count_bytes(const std::vector<npy_intp>& shape, PyArray_Descr* dtype, std::uint64_t& bytes);

// Attaches the segment `name` and makes an array over it. Steals `dtype`. What does not lie within
// the segment is a ValueError.
PyObject* attach_array(const char* name, PyArray_Descr* dtype, int dimensions,
                       const npy_intp* shape, const npy_intp* strides, std::uint64_t offset);

// Members of the type: `metadata`, `__reduce__`, `from_metadata`.
PyObject* get_metadata(PyObject* array, void*);
PyObject* reduce_array(PyObject* array, PyObject*);
PyObject* array_from_metadata(PyObject*, PyObject* arguments, PyObject* keywords);
// What a pickled array calls: (name, dtype, shape, strides or None, offset).
PyObject* attach_pickled(PyObject*, PyObject* arguments);

}  // namespace stook::bindings
