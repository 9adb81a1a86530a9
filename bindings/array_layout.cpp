#include "bindings/array_layout.h"

#include <cstdlib>

namespace stook::bindings {
namespace {

// First of the type numbers that are neither NumPy's own nor old-style user types (StringDType).
constexpr int kFirstNewStyleType = 2048;

// The dimensions longer than 1, smallest distance between items first.
struct Steps {
  npy_intp distances[NPY_MAXDIMS];
  npy_intp lengths[NPY_MAXDIMS];
  int count = 0;
};

void sort_steps(PyArrayObject* array, Steps& steps) {
  for (int i = 0; i < PyArray_NDIM(array); ++i) {
    const npy_intp length = PyArray_DIM(array, i);
    if (length <= 1) continue;
    const npy_intp distance = std::abs(PyArray_STRIDE(array, i));
    int at = steps.count++;
    for (; at > 0 && steps.distances[at - 1] > distance; --at) {
      steps.distances[at] = steps.distances[at - 1];
      steps.lengths[at] = steps.lengths[at - 1];
    }
    steps.distances[at] = distance;
    steps.lengths[at] = length;
  }
}

}  // namespace

NPY_ORDER order_of_copy(PyArrayObject* array) {
  if (PyArray_IS_C_CONTIGUOUS(array)) return NPY_CORDER;
  if (PyArray_IS_F_CONTIGUOUS(array)) return NPY_FORTRANORDER;
  for (int i = 0; i < PyArray_NDIM(array); ++i) {
    if (PyArray_STRIDE(array, i) < 0 && PyArray_DIM(array, i) > 1) return NPY_CORDER;
  }
  Steps steps;
  sort_steps(array, steps);
  npy_intp spanned = PyArray_ITEMSIZE(array);
  for (int i = 0; i < steps.count; ++i) {
    if (steps.distances[i] != spanned) return NPY_CORDER;
    spanned *= steps.lengths[i];
  }
  return NPY_KEEPORDER;
}

bool is_plain_dtype(PyArray_Descr* dtype) {
  // NumPy makes 'S1' of 'S0' wherever it can.
  if (PyDataType_ELSIZE(dtype) == 0 && dtype->type_num != NPY_VOID) return false;
  // NPY_NEEDS_PYAPI is no hindrance: every structured dtype has it, and it is about casts.
  return !PyDataType_REFCHK(dtype) && dtype->type_num != NPY_OBJECT &&
         dtype->type_num < kFirstNewStyleType && !PyDataType_FLAGCHK(dtype, NPY_LIST_PICKLE);
}

bool array_span(int dimensions, const npy_intp* shape, const npy_intp* strides,
                std::int64_t item_bytes, Span& span) {
  std::int64_t lowest = 0;
  std::int64_t highest = item_bytes;
  for (int i = 0; i < dimensions; ++i) {
    if (shape[i] < 0) return false;
    if (shape[i] == 0) {
      span = {0, 0};
      return true;
    }
    std::int64_t reach = 0;
    if (__builtin_mul_overflow(static_cast<std::int64_t>(shape[i] - 1),
                               static_cast<std::int64_t>(strides[i]), &reach)) {
      return false;
    }
    std::int64_t& end = reach < 0 ? lowest : highest;
    if (__builtin_add_overflow(end, reach, &end)) return false;
  }
  std::int64_t bytes = 0;
  if (__builtin_sub_overflow(highest, lowest, &bytes)) return false;
  span = {lowest, static_cast<std::uint64_t>(bytes)};
  return true;
}

bool may_overlap(PyArrayObject* array) {
  Steps steps;
  sort_steps(array, steps);
  // Each dimension must step over everything that the smaller ones span.
  npy_intp spanned = PyArray_ITEMSIZE(array);
  for (int i = 0; i < steps.count; ++i) {
    if (steps.distances[i] < spanned) return true;
    spanned += steps.distances[i] * (steps.lengths[i] - 1);
  }
  return false;
}

void collect_names(PyArray_Descr* dtype, std::vector<PyObject*>& names) {
  while (PyDataType_SUBARRAY(dtype) != nullptr) dtype = PyDataType_SUBARRAY(dtype)->base;
  PyObject* own = PyDataType_NAMES(dtype);
  if (own == nullptr) return;
  names.push_back(own);
  PyObject* fields = PyDataType_FIELDS(dtype);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(own); ++i) {
    PyObject* field = PyDict_GetItemWithError(fields, PyTuple_GET_ITEM(own, i));
    if (field == nullptr || !PyTuple_Check(field) || PyTuple_GET_SIZE(field) == 0) continue;
    PyObject* field_dtype = PyTuple_GET_ITEM(field, 0);
    if (PyArray_DescrCheck(field_dtype)) {
      collect_names(reinterpret_cast<PyArray_Descr*>(field_dtype), names);
    }
  }
}

}  // namespace stook::bindings
