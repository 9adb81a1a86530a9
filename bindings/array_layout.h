// Where the items of an array lie, and what their dtype says of them.
//
// Nothing here runs Python code. Requires GIL.
#pragma once

#include <cstdint>
#include <vector>

#include "bindings/python_api.h"

namespace stook::bindings {

// How many bytes an array spans, first byte to last, and where the first lies relative to its data
// pointer. False if that overflows.
struct Span {
  std::int64_t lowest = 0;  // at most 0
  std::uint64_t bytes = 0;
};
bool array_span(int dimensions, const npy_intp* shape, const npy_intp* strides,
                std::int64_t item_bytes, Span& span);

// True if items of the array may lie at the same place: they would be written through each other.
bool may_overlap(PyArrayObject* array);

// How a copy of the array lies: as the array does if that leaves no gaps, else in C order. So
// pickling does it.
NPY_ORDER order_of_copy(PyArrayObject* array);

// True if arrays of this dtype can be moved and copied as plain bytes.
bool is_plain_dtype(PyArray_Descr* dtype);

// Appends the tuples of field names within a dtype, its own first; borrowed. They are what can be
// exchanged in a dtype that exists: `array.dtype.names = ...`.
void collect_names(PyArray_Descr* dtype, std::vector<PyObject*>& names);

}  // namespace stook::bindings
