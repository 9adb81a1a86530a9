// Python's and NumPy's C API as the files of this room use them.
#pragma once

// "y#" takes Py_ssize_t.
#define PY_SSIZE_T_CLEAN
#include <pybind11/pybind11.h>

#include <numpy/arrayobject.h>
#include <numpy/arrayscalars.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <utility>

namespace stook::bindings {

namespace py = pybind11;

// True if `object` has one reference, the one that the caller (or the container it is in) holds, so
// that nobody else can see it change hands. Requires GIL.
inline bool is_uniquely_referenced(PyObject* object) {
#if PY_VERSION_HEX >= 0x030E0000
  return PyUnstable_Object_IsUniquelyReferenced(object) != 0;
#else
  return Py_REFCNT(object) == 1;
#endif
}

// A static type with nothing said yet, to be filled in and then given to PyType_Ready().
inline PyTypeObject empty_type() {
  PyTypeObject type{};
  PyVarObject head = {PyObject_HEAD_INIT(nullptr) 0};
  type.ob_base = head;
  return type;
}

inline PyArrayObject* as_array(PyObject* object) {
  return reinterpret_cast<PyArrayObject*>(object);
}

// Drops the reference it owns. Requires GIL.
class OwnedRef {
 public:
  OwnedRef() = default;
  explicit OwnedRef(PyObject* object) : object_(object) {}
  OwnedRef(OwnedRef&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  OwnedRef& operator=(OwnedRef&& other) noexcept {
    if (this != &other) reset(std::exchange(other.object_, nullptr));
    return *this;
  }
  OwnedRef(const OwnedRef&) = delete;
  OwnedRef& operator=(const OwnedRef&) = delete;
  ~OwnedRef() { Py_XDECREF(object_); }

  PyObject* get() const noexcept { return object_; }
  explicit operator bool() const noexcept { return object_ != nullptr; }
  PyObject* release() noexcept { return std::exchange(object_, nullptr); }
  void reset(PyObject* object = nullptr) noexcept {
    PyObject* old = std::exchange(object_, object);
    Py_XDECREF(old);
  }

 private:
  PyObject* object_ = nullptr;
};

// Takes the GIL back. While the interpreter ends, Python (before 3.14) answers a daemon thread by
// ending it, through an unwinding that must not pass through our destructors: they would run
// without the GIL, and those that are noexcept would end the program. Such a thread stays here
// instead, holding nothing; `before_staying` lets go of what it has.
template <class BeforeStaying>
void restore_thread(PyThreadState* state, BeforeStaying&& before_staying) {
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    before_staying();
    for (;;) ::pause();  // the end of the process ends it
  }
}

// Without the GIL for as long as this lives. Nothing may be locked when it ends.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    restore_thread(state_, [] {});
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// Locks a mutex from a thread that holds the GIL. Nobody waits for the mutex with the GIL in hand,
// so whoever holds the mutex may wait for the GIL.
class LockWithGil {
 public:
  explicit LockWithGil(std::mutex& mutex) : mutex_(mutex) {
    if (mutex_.try_lock()) return;
    PyThreadState* state = PyEval_SaveThread();
    mutex_.lock();
    restore_thread(state, [this] { mutex_.unlock(); });
  }
  ~LockWithGil() { mutex_.unlock(); }
  LockWithGil(const LockWithGil&) = delete;
  LockWithGil& operator=(const LockWithGil&) = delete;

 private:
  std::mutex& mutex_;
};

}  // namespace stook::bindings
