#include "bindings/segment_object.h"

#include <new>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "bindings/errors.h"
#include "bindings/register.h"
#include "shm/error.h"
#include "shm/segment_owner.h"

namespace stook::bindings {
namespace {

struct SegmentObject {
  PyObject_HEAD shm::Segment* segment;
};

SegmentObject* as_segment_object(PyObject* object) {
  return reinterpret_cast<SegmentObject*>(object);
}

// By name, what this process has mapped. Borrowed: an object takes itself out. Guarded by the GIL.
// Names of ours are given once, so a name that is still there leads to what is mapped.
std::unordered_map<std::string_view, SegmentObject*>& mapped() {
  static auto* objects = new std::unordered_map<std::string_view, SegmentObject*>();
  return *objects;
}

// What note_name_is_known() adds to, in the thread that a ToldNames is in.
thread_local std::vector<OwnedRef>* told = nullptr;

// The last of the chain, or nullptr if that is no segment.
PyObject* end_of_chain(PyArrayObject* array) {
  PyObject* base = PyArray_BASE(array);
  while (base != nullptr && PyArray_Check(base)) base = PyArray_BASE(as_array(base));
  return base != nullptr && is_segment(base) ? base : nullptr;
}

void segment_dealloc(PyObject* self) {
  const SegmentObject* object = as_segment_object(self);
  const auto entry = mapped().find(object->segment->name());
  if (entry != mapped().end() && entry->second == object) mapped().erase(entry);
  shm::Segment::release(object->segment);
  PyObject_Free(self);
}

// Writable, as a Lease's is.
int segment_get_buffer(PyObject* self, Py_buffer* view, int flags) {
  const shm::Segment* segment = as_segment_object(self)->segment;
  return PyBuffer_FillInfo(view, self, segment->data(), static_cast<Py_ssize_t>(segment->size()), 0,
                           flags);
}

PyObject* segment_repr(PyObject* self) {
  shm::Segment* segment = as_segment_object(self)->segment;
  segment->tell_name();
  return PyUnicode_FromFormat("<stook segment %s of %llu bytes>", segment->name().c_str(),
                              static_cast<unsigned long long>(segment->size()));
}

PyBufferProcs segment_buffer = {segment_get_buffer, nullptr};

PyTypeObject segment_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook._core.Segment";
  type.tp_doc = "A mapping of a named segment, held for as long as an array over it lives.";
  type.tp_basicsize = sizeof(SegmentObject);
  type.tp_dealloc = segment_dealloc;
  type.tp_repr = segment_repr;
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  type.tp_as_buffer = &segment_buffer;
  return type;
}();

}  // namespace

PyObject* make_segment_object(shm::Segment::Pointer segment) {
  auto* object = PyObject_New(SegmentObject, &segment_type);
  if (object == nullptr) return nullptr;
  object->segment = segment.release();
  if (!shm::segment_token(object->segment->name()).empty()) {
    try {
      mapped().try_emplace(object->segment->name(), object);
    } catch (const std::bad_alloc&) {
      // A handle that comes to this process gets a mapping of its own.
    }
  }
  return reinterpret_cast<PyObject*>(object);
}

PyObject* attach_segment_object(const char* name) {
  // As a file it has no leading '/', which shm_open wants; what is left is checked below.
  const auto entry = mapped().find(name[0] == '/' ? name + 1 : name);
  if (entry != mapped().end() && shm::segment_exists(entry->second->segment->name())) {
    Py_INCREF(entry->second);
    return reinterpret_cast<PyObject*>(entry->second);
  }
  try {
    shm::Segment::Pointer segment;
    {
      const WithoutGil without_gil;  // a sweep may have to be waited for
      segment = shm::Segment::attach(name);
    }
    return make_segment_object(std::move(segment));
  } catch (const shm::Error& error) {
    set_python_error(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

void note_name_is_known(PyArrayObject* array) {
  PyObject* segment = end_of_chain(array);
  if (segment == nullptr) return;
  segment_in(segment)->tell_name();
  if (told == nullptr) return;
  Py_INCREF(segment);
  told->emplace_back(segment);
}

ToldNames::ToldNames(std::vector<OwnedRef>& segment_objects)
    : outer_(std::exchange(told, &segment_objects)) {}

ToldNames::~ToldNames() { told = outer_; }

shm::Segment* segment_in(PyObject* object) { return as_segment_object(object)->segment; }

bool is_segment(PyObject* object) { return Py_IS_TYPE(object, &segment_type); }

bool leads_to_segment(PyArrayObject* array) { return end_of_chain(array) != nullptr; }

shm::Segment* segment_of(PyArrayObject* array) {
  if (PyObject* segment = end_of_chain(array)) return segment_in(segment);
  PyErr_SetString(PyExc_ValueError, "this array lies in no segment");
  return nullptr;
}

void register_segment_object(py::module_&) {
  if (PyType_Ready(&segment_type) < 0) throw py::error_already_set();
}

}  // namespace stook::bindings
