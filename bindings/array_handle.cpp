#include "bindings/array_handle.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "bindings/array_layout.h"
#include "bindings/errors.h"
#include "bindings/segment_object.h"
#include "bindings/shared_memory_array.h"
#include "shm/error.h"

namespace stook::bindings {
namespace {

bool contiguous_strides(const std::vector<npy_intp>& shape, PyArray_Descr* dtype,
                        std::vector<npy_intp>& strides) {
  std::uint64_t bytes = 0;
  if (!count_bytes(shape, dtype, bytes)) return false;
  strides.resize(shape.size());
  npy_intp step = PyDataType_ELSIZE(dtype);
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = step;
    if (bytes != 0) step *= shape[i];
  }
  return true;
}

// True if contiguous_strides() gives these very strides, also those of dimensions of length 1.
bool has_standard_strides(PyArrayObject* array) {
  npy_intp step = PyArray_ITEMSIZE(array);
  for (int i = PyArray_NDIM(array); i-- > 0;) {
    if (PyArray_STRIDE(array, i) != step) return false;
    step *= PyArray_DIM(array, i);
  }
  return step != 0;
}

// stook.shared_memory_array, which defines the metadata. Borrowed; nullptr with an error set.
PyObject* python_side() {
  static PyObject* module = nullptr;  // NOLINT: kept for ever
  if (module == nullptr) module = PyImport_ImportModule("stook.shared_memory_array");
  return module;
}

OwnedRef tuple_of(int count, const npy_intp* values) {
  OwnedRef tuple(PyTuple_New(count));
  for (int i = 0; tuple && i < count; ++i) {
    PyObject* value = PyLong_FromSsize_t(values[i]);
    if (value == nullptr) return OwnedRef();
    PyTuple_SET_ITEM(tuple.get(), i, value);
  }
  return tuple;
}

// Strides. False with an error set.
bool convert_lengths(PyObject* given, std::vector<npy_intp>& lengths) {
  const OwnedRef items(PySequence_Tuple(given));
  if (!items) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.get()); ++i) {
    const Py_ssize_t length =
        PyNumber_AsSsize_t(PyTuple_GET_ITEM(items.get(), i), PyExc_ValueError);
    if (length == -1 && PyErr_Occurred() != nullptr) return false;
    lengths.push_back(length);
  }
  return true;
}

// An attribute, or None where the object has none of that name. Empty with an error set.
OwnedRef optional_attribute(PyObject* object, const char* name) {
  OwnedRef value(PyObject_GetAttrString(object, name));
  if (!value && PyErr_ExceptionMatches(PyExc_AttributeError)) {
    PyErr_Clear();
    Py_INCREF(Py_None);
    value.reset(Py_None);
  }
  return value;
}

}  // namespace

bool check_dtype(PyArray_Descr* dtype) {
  if (is_plain_dtype(dtype)) return true;
  PyErr_Format(PyExc_ValueError,
               "SharedMemoryArray: items of dtype %R refer to memory of this process, which means "
               "nothing in another; use a dtype of plain bytes",
               dtype);
  return false;
}

bool convert_shape(PyObject* given, std::vector<npy_intp>& shape) {
  OwnedRef items;
  if (PyIndex_Check(given) && !PySequence_Check(given)) {
    items.reset(PyTuple_Pack(1, given));
  } else {
    items.reset(PySequence_Tuple(given));
  }
  if (!items) {
    PyErr_Format(PyExc_TypeError,
                 "SharedMemoryArray: shape must be an int or an iterable of ints, got %R", given);
    return false;
  }
  const Py_ssize_t dimensions = PyTuple_GET_SIZE(items.get());
  if (dimensions > NPY_MAXDIMS) {
    PyErr_Format(PyExc_ValueError,
                 "SharedMemoryArray: shape has %zd dimensions; at most %d are possible", dimensions,
                 NPY_MAXDIMS);
    return false;
  }
  for (Py_ssize_t i = 0; i < dimensions; ++i) {
    const Py_ssize_t length =
        PyNumber_AsSsize_t(PyTuple_GET_ITEM(items.get(), i), PyExc_ValueError);
    if (length == -1 && PyErr_Occurred() != nullptr) {
      if (!PyErr_ExceptionMatches(PyExc_TypeError)) return false;
      PyErr_Format(PyExc_TypeError, "SharedMemoryArray: shape must hold ints, got %R", given);
      return false;
    }
    shape.push_back(length);
  }
  return true;
}

bool count_bytes(const std::vector<npy_intp>& shape, PyArray_Descr* dtype, std::uint64_t& bytes) {
  for (const npy_intp length : shape) {
    if (length < 0) {
      PyErr_Format(PyExc_ValueError, "SharedMemoryArray: shape has the negative length %zd",
                   static_cast<Py_ssize_t>(length));
      return false;
    }
  }
  bytes = static_cast<std::uint64_t>(PyDataType_ELSIZE(dtype));
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) bytes = 0;
  for (const npy_intp length : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(length), &bytes) ||
        bytes > static_cast<std::uint64_t>(NPY_MAX_INTP)) {
      PyErr_SetString(PyExc_ValueError,
                      "SharedMemoryArray: the array would be larger than an address can be");
      return false;
    }
  }
  return true;
}

PyObject* get_metadata(PyObject* self, void*) {
  PyArrayObject* array = as_array(self);
  note_name_is_known(array);
  const shm::Segment* segment = segment_of(array);
  PyObject* module = segment != nullptr ? python_side() : nullptr;
  if (module == nullptr) return nullptr;
  const OwnedRef type(PyObject_GetAttrString(module, "SharedMemoryArrayMetadata"));
  const OwnedRef shape = tuple_of(PyArray_NDIM(array), PyArray_DIMS(array));
  const OwnedRef strides = tuple_of(PyArray_NDIM(array), PyArray_STRIDES(array));
  if (!type || !shape || !strides) return nullptr;
  const auto offset = PyArray_BYTES(array) - reinterpret_cast<char*>(segment->data());
  return PyObject_CallFunction(type.get(), "sOOOn", segment->name().c_str(), shape.get(),
                               PyArray_DESCR(array), strides.get(),
                               static_cast<Py_ssize_t>(offset));
}

PyObject* reduce_array(PyObject* self, PyObject*) {
  PyArrayObject* array = as_array(self);
  note_name_is_known(array);
  const shm::Segment* segment = segment_of(array);
  PyObject* module = segment != nullptr ? python_side() : nullptr;
  if (module == nullptr) return nullptr;
  static PyObject* open = nullptr;  // NOLINT: kept for ever
  if (open == nullptr) open = PyObject_GetAttrString(module, "_attach_array");
  // Flat, and short where it can be: a handle is pickled for every array that is sent.
  PyArray_Descr* dtype = PyArray_DESCR(array);
  PyObject* metadata = PyDataType_METADATA(dtype);
  const bool is_number =
      PyTypeNum_ISNUMBER(dtype->type_num) && (metadata == nullptr || metadata == Py_None);
  const OwnedRef text(is_number ? PyObject_GetAttrString(reinterpret_cast<PyObject*>(dtype), "str")
                                : Py_NewRef(reinterpret_cast<PyObject*>(dtype)));
  const OwnedRef shape = tuple_of(PyArray_NDIM(array), PyArray_DIMS(array));
  const OwnedRef strides = has_standard_strides(array)
                               ? OwnedRef(Py_NewRef(Py_None))
                               : tuple_of(PyArray_NDIM(array), PyArray_STRIDES(array));
  if (open == nullptr || !text || !shape || !strides) return nullptr;
  const auto offset = PyArray_BYTES(array) - reinterpret_cast<char*>(segment->data());
  return Py_BuildValue("(O(sOOOn))", open, segment->name().c_str(), text.get(), shape.get(),
                       strides.get(), static_cast<Py_ssize_t>(offset));
}

PyObject* attach_array(const char* name, PyArray_Descr* dtype, int dimensions,
                       const npy_intp* shape, const npy_intp* strides, std::uint64_t offset) {
  OwnedRef owner(reinterpret_cast<PyObject*>(dtype));
  if (!check_dtype(dtype)) return nullptr;
  try {
    const OwnedRef base(attach_segment_object(name));
    if (!base) return nullptr;
    const shm::Segment* segment = segment_in(base.get());
    Span span;
    const bool positive =
        std::all_of(shape, shape + dimensions, [](npy_intp length) { return length >= 0; });
    if (!positive || !array_span(dimensions, shape, strides, PyDataType_ELSIZE(dtype), span) ||
        offset > segment->size() || static_cast<std::uint64_t>(-span.lowest) > offset ||
        span.bytes > segment->size() - (offset - static_cast<std::uint64_t>(-span.lowest))) {
      PyErr_Format(PyExc_ValueError,
                   "SharedMemoryArray: the handle describes an array that does not lie within the "
                   "%llu bytes of the segment '%s': it is damaged, or another segment's",
                   static_cast<unsigned long long>(segment->size()), name);
      return nullptr;
    }
    return make_array(base.get(), reinterpret_cast<PyArray_Descr*>(owner.release()), dimensions,
                      shape, strides, offset);
  } catch (const shm::Error& error) {
    set_python_error(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

namespace {

// As a handle describes it; `given_strides` and `given_offset` may be None.
PyObject* attach_described(PyObject* name, PyObject* given_shape, PyObject* given_dtype,
                           PyObject* given_strides, PyObject* given_offset) {
  Py_ssize_t length = 0;
  const char* text = PyUnicode_AsUTF8AndSize(name, &length);
  PyArray_Descr* dtype = nullptr;
  if (text == nullptr) return nullptr;
  if (std::strlen(text) != static_cast<std::size_t>(length)) {
    PyErr_Format(PyExc_ValueError, "SharedMemoryArray: %R is no name of a segment", name);
    return nullptr;
  }
  if (PyArray_DescrConverter(given_dtype, &dtype) == 0) return nullptr;
  OwnedRef owner(reinterpret_cast<PyObject*>(dtype));
  try {
    std::vector<npy_intp> shape;
    std::vector<npy_intp> strides;
    if (!convert_shape(given_shape, shape)) return nullptr;
    std::uint64_t offset = 0;
    if (given_offset != Py_None) {
      offset = PyLong_AsUnsignedLongLong(given_offset);
      if (PyErr_Occurred() != nullptr) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) return nullptr;
        PyErr_Format(PyExc_ValueError, "SharedMemoryArray: the handle's offset is %R",
                     given_offset);
        return nullptr;
      }
    }
    if (given_strides != Py_None) {
      if (!convert_lengths(given_strides, strides)) return nullptr;
      if (strides.size() != shape.size()) {
        PyErr_Format(
            PyExc_ValueError, "SharedMemoryArray: the handle has %zd lengths and %zd strides",
            static_cast<Py_ssize_t>(shape.size()), static_cast<Py_ssize_t>(strides.size()));
        return nullptr;
      }
    } else if (!contiguous_strides(shape, dtype, strides)) {
      return nullptr;
    }
    return attach_array(text, reinterpret_cast<PyArray_Descr*>(owner.release()),
                        static_cast<int>(shape.size()), shape.data(), strides.data(), offset);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

}  // namespace

PyObject* array_from_metadata(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"metadata", nullptr};
  PyObject* metadata = nullptr;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "O:from_metadata", const_cast<char**>(names),
                                  &metadata) == 0) {
    return nullptr;
  }
  const OwnedRef name = optional_attribute(metadata, "name");
  const OwnedRef given_shape = optional_attribute(metadata, "shape");
  const OwnedRef given_dtype = optional_attribute(metadata, "dtype");
  const OwnedRef given_strides = optional_attribute(metadata, "strides");
  const OwnedRef given_offset = optional_attribute(metadata, "offset");
  if (!name || !given_shape || !given_dtype || !given_strides || !given_offset) return nullptr;
  if (!PyUnicode_Check(name.get()) || given_shape.get() == Py_None ||
      given_dtype.get() == Py_None) {
    PyErr_Format(PyExc_TypeError,
                 "SharedMemoryArray.from_metadata() takes a SharedMemoryArrayMetadata (what "
                 "`array.metadata` gives), got %R",
                 metadata);
    return nullptr;
  }
  return attach_described(name.get(), given_shape.get(), given_dtype.get(), given_strides.get(),
                          given_offset.get());
}

PyObject* attach_pickled(PyObject*, PyObject* arguments) {
  PyObject* name = nullptr;
  PyObject* dtype = nullptr;
  PyObject* shape = nullptr;
  PyObject* strides = nullptr;
  PyObject* offset = nullptr;
  if (PyArg_ParseTuple(arguments, "UOOOO:_attach_array", &name, &dtype, &shape, &strides,
                       &offset) == 0) {
    return nullptr;
  }
  return attach_described(name, shape, dtype, strides, offset);
}

}  // namespace stook::bindings
