// An iterator that notes how long whoever asks it waits for what another one gives. Requires GIL.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "bindings/profile.h"
#include "bindings/register.h"
#include "shm/fork_guard.h"

namespace stook::bindings {
namespace {

struct TimedIterator {
  PyObject_HEAD;
  PyObject* timed;
  PyObject* at_end;   // called without arguments when there is no more
  PyObject* profile;  // holds the cell
  workers::ProfileCell* cell;
  std::uint64_t generation;  // a forked child writes nothing
  std::uint32_t stage;
};

TimedIterator* as_timed(PyObject* object) { return reinterpret_cast<TimedIterator*>(object); }

// True with StopIteration set, or with nothing set, as tp_iternext says that it has ended.
bool has_ended() {
  return PyErr_Occurred() == nullptr || PyErr_ExceptionMatches(PyExc_StopIteration) != 0;
}

PyObject* timed_next(PyObject* object) {
  TimedIterator* self = as_timed(object);
  if (self->timed == nullptr) {
    PyErr_SetString(PyExc_TypeError, "TimedIterator: __init__() was not called");
    return nullptr;
  }
  // Both may be replaced, by another thread, while this one waits.
  Py_INCREF(self->timed);
  const OwnedRef timed(self->timed);
  Py_INCREF(self->profile);
  const OwnedRef profile(self->profile);
  workers::ProfileCell* cell = self->cell;
  const std::uint64_t begin = workers::monotonic_nanoseconds();
  OwnedRef made(Py_TYPE(timed.get())->tp_iternext(timed.get()));
  if (made || !has_ended()) {
    if (self->generation == shm::fork_generation()) {
      cell->add_stage(self->stage, 1, begin, workers::monotonic_nanoseconds(), 0, 0, 0);
    }
    return made.release();
  }
  PyErr_Clear();
  const OwnedRef told(PyObject_CallNoArgs(self->at_end));
  return nullptr;  // the end, or what was raised there
}

int timed_init(PyObject* object, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"timed", "profile", "cell", "stage", "at_end", nullptr};
  PyObject* timed = nullptr;
  PyObject* profile = nullptr;
  PyObject* at_end = nullptr;
  unsigned long long cell = 0;
  unsigned int stage = 0;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "OOKIO", const_cast<char**>(names), &timed,
                                  &profile, &cell, &stage, &at_end) == 0) {
    return -1;
  }
  if (PyIter_Check(timed) == 0) {
    PyErr_SetString(PyExc_TypeError, "TimedIterator: not an iterator");
    return -1;
  }
  workers::ProfileCell* found = profile_cell(profile, cell);
  if (found == nullptr) return -1;
  TimedIterator* self = as_timed(object);
  Py_INCREF(timed);
  Py_INCREF(profile);
  Py_INCREF(at_end);
  self->cell = found;
  self->generation = shm::fork_generation();
  self->stage = stage;
  const OwnedRef old_timed(std::exchange(self->timed, timed));
  const OwnedRef old_profile(std::exchange(self->profile, profile));
  const OwnedRef old_at_end(std::exchange(self->at_end, at_end));
  return 0;
}

int timed_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(as_timed(object)->timed);
  Py_VISIT(as_timed(object)->at_end);
  return 0;
}

int timed_clear(PyObject* object) {
  Py_CLEAR(as_timed(object)->timed);
  return 0;
}

void timed_dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  Py_CLEAR(as_timed(object)->timed);
  Py_CLEAR(as_timed(object)->at_end);
  Py_CLEAR(as_timed(object)->profile);
  Py_TYPE(object)->tp_free(object);
}

PyTypeObject timed_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook._core.TimedIterator";
  type.tp_doc =
      "TimedIterator(timed, profile, cell, stage, at_end): gives what `timed` gives, and counts "
      "the time in a stage of a cell; calls `at_end` when it ends.";
  type.tp_basicsize = sizeof(TimedIterator);
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  type.tp_new = PyType_GenericNew;
  type.tp_init = timed_init;
  type.tp_dealloc = timed_dealloc;
  type.tp_traverse = timed_traverse;
  type.tp_clear = timed_clear;
  type.tp_iter = PyObject_SelfIter;
  type.tp_iternext = timed_next;
  return type;
}();

}  // namespace

void register_timed_iterator(py::module_& module) {
  if (PyType_Ready(&timed_type) < 0) throw py::error_already_set();
  module.add_object("TimedIterator", reinterpret_cast<PyObject*>(&timed_type));
}

}  // namespace stook::bindings
