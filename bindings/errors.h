// From shm::Error to Python exceptions: the one table.
#pragma once

#include "bindings/python_api.h"
#include "shm/error.h"

namespace stook::bindings {

// Sets the Python error. Requires GIL.
void set_python_error(const shm::Error& error);

// Sets the Python error for the std::exception that is being handled: to be called in its catch
// block, by functions that Python calls as C, out of which nothing may be thrown. Requires GIL.
void set_caught_error();

// Sets an exception of stook.errors by name. Requires GIL.
void set_stook_error(const char* name, const char* message);

// The exception that is set, normalized and with its traceback, which is cleared; or nothing.
// Requires GIL.
OwnedRef take_exception();

// Sets an exception object as the Python error. Requires GIL.
void raise_exception(PyObject* exception);

// As set_python_error, for functions bound with pybind11.
void register_errors(py::module_& module);

}  // namespace stook::bindings
