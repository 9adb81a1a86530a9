// The steps of encoding that run Python code: what a walk found that it cannot write is pickled,
// and then walked again.
#include "bindings/array_layout.h"
#include "bindings/encoder.h"
#include "bindings/shared_memory_array.h"

namespace stook::bindings {

bool Encoder::prepare_dtypes() {
  for (OwnedRef& wanted : wanted_dtypes_) {
    auto* dtype = reinterpret_cast<PyArray_Descr*>(wanted.get());
    if (find_pickled(dtype) != nullptr) continue;
    PickledDtype made;
    names_.clear();
    collect_names(dtype, names_);
    for (PyObject* names : names_) {
      Py_INCREF(names);
      made.names.emplace_back(names);
    }
    const OwnedRef bytes(PyObject_CallOneArg(pickle_dtype_, wanted.get()));
    if (!bytes || !PyBytes_Check(bytes.get())) return false;
    made.bytes.assign(PyBytes_AS_STRING(bytes.get()),
                      static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.get())));
    made.dtype = std::move(wanted);
    dtypes_.insert_or_assign(dtype, std::move(made));
  }
  return true;
}

// Everything that the walk cannot write goes into one pickle, so that what these objects share
// stays shared. What they might share with the rest of the element shows as a second reference
// somewhere in the rest: then the whole element goes into one pickle.
bool Encoder::prepare_pickle(PyObject* root, bool whole) {
  OwnedRef others(PyList_New(0));
  if (!others) return false;
  bool has_shared = whole;
  if (!whole && !collect_others(root, others.get(), has_shared, 0)) return false;
  if (has_shared) {
    if (PyList_SetSlice(others.get(), 0, PY_SSIZE_T_MAX, nullptr) != 0) return false;
    if (PyList_Append(others.get(), root) != 0) return false;
    whole_ = true;
  }
  return pickle(others.get());
}

bool Encoder::collect_others(PyObject* object, PyObject* others, bool& has_shared, int depth) {
  PyTypeObject* type = Py_TYPE(object);
  if (object == Py_None || type == &PyUnicode_Type || type == &PyFloat_Type ||
      type == &PyBool_Type || type == &PyBytes_Type || type == &PyComplex_Type) {
    return true;
  }
  const bool is_container = type == &PyDict_Type || type == &PyTuple_Type || type == &PyList_Type;
  if (is_container && depth < kMaxDepth) {
    if (!is_uniquely_referenced(object)) {
      has_shared = true;
      return true;
    }
    if (type == &PyDict_Type) {
      Py_ssize_t position = 0;
      PyObject* key = nullptr;
      PyObject* value = nullptr;
      while (!has_shared && PyDict_Next(object, &position, &key, &value) != 0) {
        if (!collect_others(key, others, has_shared, depth + 1)) return false;
        if (!collect_others(value, others, has_shared, depth + 1)) return false;
      }
      return true;
    }
    for (Py_ssize_t i = 0; !has_shared && i < Py_SIZE(object); ++i) {
      PyObject* item =
          type == &PyTuple_Type ? PyTuple_GET_ITEM(object, i) : PyList_GET_ITEM(object, i);
      if (!collect_others(item, others, has_shared, depth + 1)) return false;
    }
    return true;
  }
  if (PyArray_CheckExact(object) && is_plain_dtype(PyArray_DESCR(as_array(object)))) {
    if (!is_uniquely_referenced(object)) has_shared = true;
    return true;
  }
  if (is_shared_memory_array(object)) {
    if (!is_uniquely_referenced(object)) has_shared = true;
    return true;
  }
  if (type == &PyLong_Type) {
    int overflow = 0;
    PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow == 0) return true;
  }
  const auto index = static_cast<std::uint32_t>(PyList_GET_SIZE(others));
  if (!others_.try_emplace(object, index).second) return true;
  return PyList_Append(others, object) == 0;
}

bool Encoder::pickle(PyObject* list) {
  if (whole_) others_.clear();
  // The list keeps the objects alive, so that the addresses in `others_` stay theirs.
  Py_INCREF(list);
  others_list_.reset(list);
  OwnedRef result(PyObject_CallFunction(pickle_objects_, "OK", list,
                                        static_cast<unsigned long long>(min_shared_bytes_)));
  if (!result) return false;
  PyObject* data = nullptr;
  PyObject* buffers = nullptr;
  if (!PyArg_ParseTuple(result.get(), "SO!", &data, &PyList_Type, &buffers)) return false;
  Py_INCREF(data);
  pickle_bytes_.reset(data);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(buffers); ++i) {
    Py_buffer view;
    if (PyObject_GetBuffer(PyList_GET_ITEM(buffers, i), &view, PyBUF_ANY_CONTIGUOUS) != 0) {
      return false;
    }
    pickle_buffers_.push_back(view);
  }
  return true;
}

void Encoder::write_pickle_section() {
  writer_.put(static_cast<std::uint8_t>(pickle_bytes_ ? 1 : 0));
  if (!pickle_bytes_) return;
  writer_.put(static_cast<std::uint32_t>(pickle_buffers_.size()));
  for (const Py_buffer& buffer : pickle_buffers_) {
    const std::size_t at = writer_.skip(sizeof(std::uint32_t) + sizeof(std::uint64_t));
    const auto bytes = static_cast<std::uint64_t>(buffer.len);
    writer_.put(bytes);
    copies_.push_back({at, OwnedRef(), buffer.buf, bytes});
    array_bytes_ += bytes;
    ++copied_;
  }
  const auto size = static_cast<std::uint64_t>(PyBytes_GET_SIZE(pickle_bytes_.get()));
  writer_.put(size);
  writer_.put_bytes(PyBytes_AS_STRING(pickle_bytes_.get()), size);
}

}  // namespace stook::bindings
