// The type is written in C because of what it must not cost: a Python subclass of ndarray makes
// every view and every ufunc call Python code.
//
// Computing and copying must give plain arrays, or they would pretend to lie in a segment. NumPy
// makes the result of `copy`, `take`, `astype`, ... with the type of its operand, and then calls
// that type's __array_finalize__, which may be a C function in a capsule. Ours looks whether the
// new array leads to a segment, and turns it into a plain ndarray if not: the layouts are the same.
// So no method has to be overridden, and none can be forgotten. Results of ufuncs pass through
// __array_wrap__ instead.
#include "bindings/shared_memory_array.h"

#include <new>
#include <utility>
#include <vector>

#include "bindings/array_handle.h"
#include "bindings/errors.h"
#include "bindings/reclaimer.h"
#include "bindings/register.h"
#include "bindings/segment_object.h"
#include "shm/error.h"

namespace stook::bindings {
namespace {

extern PyTypeObject array_type;

// NumPy calls this for every new array of the type (PyArray_FinalizeFunc).
int finalize(PyArrayObject* array, PyObject*) {
  // Static types without fields of their own: nothing else tells the two apart.
  if (!leads_to_segment(array)) Py_SET_TYPE(reinterpret_cast<PyObject*>(array), &PyArray_Type);
  return 0;
}

// NumPy asks the type; asked of an array, as NumPy's own Python code does after it has made a view,
// the attribute is ndarray's function.
PyObject* finalize_capsule = nullptr;
PyObject* get_finalize(PyObject*, void*) {
  Py_INCREF(finalize_capsule);
  return finalize_capsule;
}
PyGetSetDef meta_getset[] = {
    {"__array_finalize__", get_finalize, nullptr, "For NumPy: a C function in a capsule.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyTypeObject meta_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook._core.SharedMemoryArrayType";
  type.tp_flags = Py_TPFLAGS_DEFAULT;
  type.tp_getset = meta_getset;
  return type;
}();

PyObject* array_new(PyTypeObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"shape", "dtype", nullptr};
  PyObject* given_shape = nullptr;
  PyArray_Descr* given_dtype = nullptr;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O&:SharedMemoryArray",
                                  const_cast<char**>(names), &given_shape, PyArray_DescrConverter,
                                  &given_dtype) == 0) {
    Py_XDECREF(given_dtype);
    return nullptr;
  }
  if (given_dtype == nullptr) given_dtype = PyArray_DescrFromType(NPY_DOUBLE);
  OwnedRef dtype(reinterpret_cast<PyObject*>(given_dtype));
  try {
    std::vector<npy_intp> shape;
    std::uint64_t bytes = 0;
    if (!convert_shape(given_shape, shape)) return nullptr;
    // What has no length of its own ("S", "U", "V") gets items of one character, as in np.empty.
    if (PyDataType_ELSIZE(given_dtype) == 0 && PyDataType_NAMES(given_dtype) == nullptr &&
        PyDataType_SUBARRAY(given_dtype) == nullptr &&
        PyTypeNum_ISFLEXIBLE(given_dtype->type_num)) {
      PyArray_Descr* sized = PyArray_DescrNew(given_dtype);
      if (sized == nullptr) return nullptr;
      PyDataType_SET_ELSIZE(sized, given_dtype->type_num == NPY_UNICODE ? 4 : 1);
      dtype.reset(reinterpret_cast<PyObject*>(sized));
      given_dtype = sized;
    }
    if (!check_dtype(given_dtype) || !count_bytes(shape, given_dtype, bytes)) return nullptr;
    // A dtype with a shape of its own adds dimensions, as in np.empty.
    shm::Segment::Pointer segment;
    {
      const WithoutGil without_gil;  // reserving 100 MB takes milliseconds
      segment = shm::Segment::create(bytes, true);
    }
    const OwnedRef base(make_segment_object(std::move(segment)));
    if (!base) return nullptr;
    return make_array(base.get(), reinterpret_cast<PyArray_Descr*>(dtype.release()),
                      static_cast<int>(shape.size()), shape.data(), nullptr, 0);
  } catch (const shm::Error& error) {
    set_python_error(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

// The result of a ufunc or of another function that computes: plain, and a scalar where NumPy would
// give one.
PyObject* array_wrap(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count < 1 || count > 3 || !PyArray_Check(arguments[0])) {
    PyErr_SetString(PyExc_TypeError, "__array_wrap__(array, context=None, return_scalar=False)");
    return nullptr;
  }
  PyObject* array = arguments[0];
  if (PyArray_CheckExact(array) && leads_to_segment(as_array(array))) {
    // Not computed: some functions make views so (squeeze).
    return PyArray_View(as_array(array), nullptr, &array_type);
  }
  Py_INCREF(array);
  if (!PyArray_CheckExact(array) || PyArray_NDIM(as_array(array)) != 0) return array;
  // NumPy 1 does not say; there a new array without dimensions always stands for a scalar.
  const int scalar = count == 3 ? PyObject_IsTrue(arguments[2]) : 1;
  if (scalar < 0) {
    Py_DECREF(array);
    return nullptr;
  }
  return scalar != 0 ? PyArray_Return(as_array(array)) : array;
}

// A masked array asks the array that it is made over what it is at bottom, and what that says is
// made anew when it is unpickled. Its pickle holds the items, so a plain array is right.
PyObject* get_baseclass(PyObject*, void*) {
  Py_INCREF(&PyArray_Type);
  return reinterpret_cast<PyObject*>(&PyArray_Type);
}

PyObject* array_unlink_on_del(PyObject* self, PyObject*) {
  shm::Segment* segment = segment_of(as_array(self));
  if (segment == nullptr) return nullptr;
  try {
    segment->unlink_on_release();
  } catch (const shm::Error& error) {
    set_python_error(error);
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* array_keep_on_del(PyObject* self, PyObject*) {
  shm::Segment* segment = segment_of(as_array(self));
  if (segment == nullptr) return nullptr;
  segment->keep_on_release();
  Py_RETURN_NONE;
}

PyMethodDef array_methods[] = {
    {"unlink_on_del", array_unlink_on_del, METH_NOARGS,
     R"(unlink_on_del($self, /)
--

Removes the segment's name when the last array over it in this process is gone, or the process ends.

Without it the segment stays until somebody calls `metadata.close_and_unlink_shm()`. Arrays that
other processes have attached stay valid.

Raises:
  OSError: The process cannot be registered as the one that cleans up.)"},
    {"__array_wrap__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(array_wrap)),
     METH_FASTCALL, "For NumPy: results of computing are plain arrays."},
    {"__reduce__", reduce_array, METH_NOARGS, "Pickles the handle."},
    {"__reduce_ex__", reduce_array, METH_O, "Pickles the handle."},
    {"_keep_on_del", array_keep_on_del, METH_NOARGS, "Takes unlink_on_del() back."},
    {"from_metadata",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(array_from_metadata)),
     METH_VARARGS | METH_KEYWORDS | METH_STATIC,
     R"(from_metadata(metadata)
--

Attaches the array that a handle describes.

Args:
  metadata: A `SharedMemoryArrayMetadata`, from this process or another of the same user.

Returns:
  SharedMemoryArray: the very array or view whose `metadata` it was, over the same memory.

Raises:
  FileNotFoundError: The segment is gone: it was unlinked, or whoever owned it was killed.
  PermissionError: It is another user's.
  ValueError: The handle does not describe an array within the segment.
  OSError: The system refuses descriptors or mappings.)"},
    {"enable_async_del",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(enable_async_del)),
     METH_VARARGS | METH_KEYWORDS | METH_STATIC,
     R"(enable_async_del(num_threads=1, max_outstanding_requests=50)
--

Has memory given back by threads of this process, instead of by whoever drops the last array.

For named segments, and for what loaders keep of worker processes that are gone. May be called
again, to change the numbers.

Args:
  num_threads: Threads; 0 ends them, once they have done what was asked of them.
  max_outstanding_requests: What may wait for the threads or be with them. Beyond that, whoever
    drops an array gives its memory back himself.

Raises:
  TypeError, ValueError: A number is none, negative, or `max_outstanding_requests` is 0.
  OSError: The system refuses threads; then nothing has changed.)"},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef array_getset[] = {
    {"metadata", get_metadata, nullptr,
     "SharedMemoryArrayMetadata: the handle of this very array (or view), small and picklable.",
     nullptr},
    {"_baseclass", get_baseclass, nullptr, "For numpy.ma: what its arrays are pickled as.",
     nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyTypeObject array_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook.SharedMemoryArray";
  type.tp_flags = Py_TPFLAGS_DEFAULT;  // not to be derived from: see finalize
  type.tp_new = array_new;
  type.tp_methods = array_methods;
  type.tp_getset = array_getset;
  return type;
}();

}  // namespace

PyObject* make_array(PyObject* segment_object, PyArray_Descr* dtype, int dimensions,
                     const npy_intp* shape, const npy_intp* strides, std::uint64_t offset) {
  // Plain at first, since it has no base yet, which finalize would look for.
  OwnedRef array(PyArray_NewFromDescr(&PyArray_Type, dtype, dimensions, shape, strides,
                                      segment_in(segment_object)->data() + offset,
                                      NPY_ARRAY_WRITEABLE, nullptr));
  if (!array) return nullptr;
  Py_INCREF(segment_object);
  if (PyArray_SetBaseObject(as_array(array.get()), segment_object) != 0) return nullptr;
  Py_SET_TYPE(array.get(), &array_type);
  return array.release();
}

bool is_shared_memory_array(PyObject* object) { return Py_IS_TYPE(object, &array_type); }

namespace {
PyMethodDef functions[] = {
    {"_attach_array", attach_pickled, METH_VARARGS,
     "(name, dtype, shape, strides or None, offset) -> array; what a pickled one calls."},
    {nullptr, nullptr, 0, nullptr},
};
}  // namespace

void register_shared_memory_array(py::module_& module) {
  if (PyModule_AddFunctions(module.ptr(), functions) != 0) throw py::error_already_set();
  finalize_capsule = PyCapsule_New(reinterpret_cast<void*>(finalize), nullptr, nullptr);
  if (finalize_capsule == nullptr) throw py::error_already_set();
  meta_type.tp_base = &PyType_Type;
  meta_type.tp_basicsize = PyType_Type.tp_basicsize;
  meta_type.tp_itemsize = PyType_Type.tp_itemsize;
  if (PyType_Ready(&meta_type) < 0) throw py::error_already_set();
  Py_SET_TYPE(reinterpret_cast<PyObject*>(&array_type), &meta_type);
  array_type.tp_base = &PyArray_Type;
  array_type.tp_basicsize = PyArray_Type.tp_basicsize;
  array_type.tp_doc = R"(SharedMemoryArray(shape, dtype=float)
--

A NumPy array in a named segment of shared memory, which crosses processes as its handle.

Pickling one, or a view of one, sends where it lies and not what it holds: through a queue, a pipe,
an executor's arguments and results, or a file that another program of the same user reads. Whoever
unpickles it sees the same memory. Computing with it and copying it give plain arrays; views of it
are SharedMemoryArrays and keep the memory alive.

The segment stays, also beyond the process's normal end, until somebody unlinks it: the process
that called `unlink_on_del()`, or whoever calls `metadata.close_and_unlink_shm()`. Segments of
processes that were killed are removed at the next start of a program that uses Stook.

Behaves as the class of the same name in `grain.multiprocessing`; docs/shared-memory-arrays.md says
where it differs.

Args:
  shape: An int, or an iterable of ints. Lengths may be 0.
  dtype: Anything that NumPy takes for a dtype without references to Python objects.

Returns:
  An array of zeros, C-contiguous and writable.

Raises:
  TypeError, ValueError: `shape` or `dtype` is none, or `dtype` holds Python objects.
  SharedMemoryExhausted: Shared memory cannot hold it; nothing was taken.
  OSError: The system refuses descriptors or mappings.

Example:
  >>> import pickle
  >>> import stook
  >>> array = stook.SharedMemoryArray((2, 3), dtype="int32")
  >>> array.unlink_on_del()
  >>> array[1] = 7
  >>> pickle.loads(pickle.dumps(array[:, 1:])).tolist()  # here or in another process
  [[0, 0], [7, 7]]
  >>> type(array + 1).__name__
  'ndarray'
)";
  if (PyType_Ready(&array_type) < 0) throw py::error_already_set();
  Py_INCREF(&array_type);
  module.add_object("SharedMemoryArrayType", reinterpret_cast<PyObject*>(&meta_type));
  module.add_object("SharedMemoryArray", reinterpret_cast<PyObject*>(&array_type));
}

}  // namespace stook::bindings
