#include "bindings/errors.h"

#include <exception>
#include <new>
#include <stdexcept>

#include "bindings/register.h"

namespace stook::bindings {

void set_stook_error(const char* name, const char* message) {
  const OwnedRef module(PyImport_ImportModule("stook.errors"));
  if (!module) return;
  const OwnedRef type(PyObject_GetAttrString(module.get(), name));
  if (type) PyErr_SetString(type.get(), message);
}

void set_python_error(const shm::Error& error) {
  switch (error.code()) {
    case shm::ErrorCode::kSystem: {
      const OwnedRef arguments(Py_BuildValue("(is)", error.system_errno(), error.what()));
      if (arguments) PyErr_SetObject(PyExc_OSError, arguments.get());
      return;
    }
    case shm::ErrorCode::kNoSharedMemory:
      return set_stook_error("SharedMemoryExhausted", error.what());
    case shm::ErrorCode::kInvalidArgument:
      return PyErr_SetString(PyExc_ValueError, error.what());
    case shm::ErrorCode::kBroken:
      return set_stook_error("PoolBroken", error.what());
    case shm::ErrorCode::kForked:
      return set_stook_error("StookError", error.what());
  }
}

void set_caught_error() {
  try {
    throw;
  } catch (const shm::Error& error) {
    set_python_error(error);
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::length_error&) {
    PyErr_NoMemory();  // more than could ever be had
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_SystemError, error.what());
  }
}

OwnedRef take_exception() {
#if PY_VERSION_HEX >= 0x030C0000
  return OwnedRef(PyErr_GetRaisedException());
#else
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (value != nullptr && traceback != nullptr) PyException_SetTraceback(value, traceback);
  Py_XDECREF(type);
  Py_XDECREF(traceback);
  return OwnedRef(value);
#endif
}

void raise_exception(PyObject* exception) {
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception)), exception);
}

void register_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const shm::Error& error) {
      set_python_error(error);
    }
  });
}

}  // namespace stook::bindings
