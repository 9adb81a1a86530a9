#include "bindings/lease.h"

#include "bindings/register.h"
#include "bindings/segment_object.h"

namespace stook::bindings {
namespace {

struct LeaseObject {
  PyObject_HEAD shm::LeasedArena* arena;
  shm::BlockId id;
  void* data;
  Py_ssize_t bytes;
};

// Leases come and go with every array: a few are kept. Guarded by the GIL.
constexpr int kMaxSpare = 64;
LeaseObject* spare[kMaxSpare];
int spare_count = 0;

void lease_dealloc(PyObject* self) {
  auto* lease = reinterpret_cast<LeaseObject*>(self);
  lease->arena->release(lease->id);
  if (spare_count < kMaxSpare) {
    spare[spare_count++] = lease;
  } else {
    PyObject_Free(self);
  }
}

// Writable: a read-only buffer would make `setflags(write=True)` fail later on arrays over it.
int lease_get_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto* lease = reinterpret_cast<LeaseObject*>(self);
  return PyBuffer_FillInfo(view, self, lease->data, lease->bytes, 0, flags);
}

PyObject* lease_repr(PyObject* self) {
  const auto* lease = reinterpret_cast<LeaseObject*>(self);
  return PyUnicode_FromFormat("<stook lease of %zd bytes in shared memory>", lease->bytes);
}

PyBufferProcs lease_buffer = {lease_get_buffer, nullptr};

PyTypeObject lease_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook._core.Lease";
  type.tp_doc = "A block of shared memory, held for as long as an array over it lives.";
  type.tp_basicsize = sizeof(LeaseObject);
  type.tp_dealloc = lease_dealloc;
  type.tp_repr = lease_repr;
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  type.tp_as_buffer = &lease_buffer;
  return type;
}();

// An array in shared memory, or a view of one, in a few steps down the chain of bases.
bool is_shared(const py::object& object) {
  PyObject* base = object.ptr();
  while (base != nullptr) {
    if (is_lease(base) || is_segment(base)) return true;
    if (PyArray_Check(base)) {
      base = PyArray_BASE(as_array(base));
    } else if (PyMemoryView_Check(base)) {
      base = PyMemoryView_GET_BASE(base);
    } else {
      return false;
    }
  }
  return false;
}

}  // namespace

PyObject* make_lease(shm::LeasedArena* arena, shm::BlockId id, std::uint64_t offset,
                     std::uint64_t bytes) {
  LeaseObject* lease = nullptr;
  if (spare_count > 0) {
    lease = spare[--spare_count];
    PyObject_Init(reinterpret_cast<PyObject*>(lease), &lease_type);
  } else {
    lease = PyObject_New(LeaseObject, &lease_type);
    if (lease == nullptr) {
      arena->release(id);
      return nullptr;
    }
  }
  lease->arena = arena;
  lease->id = id;
  lease->data = arena->memory().data() + offset;
  lease->bytes = static_cast<Py_ssize_t>(bytes);
  return reinterpret_cast<PyObject*>(lease);
}

bool is_lease(PyObject* object) { return Py_IS_TYPE(object, &lease_type); }

void register_lease(py::module_& module) {
  if (PyType_Ready(&lease_type) < 0) throw py::error_already_set();
  module.def("is_shared", &is_shared, py::arg("array"), py::pos_only(),
             R"(Tells whether an array lies in shared memory.

Args:
  array: A NumPy array or a view of one; anything else is not shared.

Returns:
  True for arrays that a loader delivered without copying them out of shared memory, for
  `SharedMemoryArray`s, and for views of either.

Example:
  >>> import numpy as np
  >>> is_shared(np.zeros(3))
  False
)");
}

}  // namespace stook::bindings
