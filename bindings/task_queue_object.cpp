// The Python type around a TaskQueue: written by hand, since a task may take less time than a call
// through pybind11, and since what it holds has to be known to Python's collector.
#include <memory>
#include <new>
#include <utility>

#include <pybind11/stl.h>

#include "bindings/errors.h"
#include "bindings/register.h"
#include "bindings/task_function.h"
#include "bindings/task_queue.h"
#include "shm/error.h"

namespace stook::bindings {

namespace {

struct Object {
  PyObject_HEAD TaskQueue* queue;
};

TaskQueue& queue_of(PyObject* self) { return *reinterpret_cast<Object*>(self)->queue; }

bool check_process(PyObject* self) {
  if (!queue_of(self).pool().manager.in_forked_child()) return true;
  set_stook_error("StookError",
                  "this pool belongs to the process that made it, and this is a forked child of "
                  "it; make a pool here");
  return false;
}

// What a method does, with C++ exceptions made Python's.
template <class Body>
PyObject* guarded(Body&& body) {
  try {
    return body();
  } catch (const shm::Error& error) {
    set_python_error(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* submit(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 5) {
    PyErr_SetString(PyExc_TypeError, "submit(function, payload, sink, kind, background)");
    return nullptr;
  }
  if (!check_process(self)) return nullptr;
  return guarded([&]() -> PyObject* {
    if (!py::isinstance<TaskFunction>(arguments[0]) ||
        py::handle(arguments[0]).cast<TaskFunction*>()->pool() != &queue_of(self).pool()) {
      PyErr_SetString(PyExc_TypeError, "function must be a TaskFunction of this pool");
      return nullptr;
    }
    const unsigned long kind = PyLong_AsUnsignedLong(arguments[3]);
    if (kind == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) return nullptr;
    const int background = PyObject_IsTrue(arguments[4]);
    if (background < 0) return nullptr;
    if (!queue_of(self).pool().is_open()) {
      set_stook_error("PoolBroken", "this pool is closed");
      return nullptr;
    }
    const std::uint64_t number =
        queue_of(self).submit(arguments[0], arguments[1], arguments[2],
                              static_cast<std::uint32_t>(kind), background != 0);
    return number == 0 ? nullptr : PyLong_FromUnsignedLongLong(number);
  });
}

PyObject* with_number(PyObject* self, PyObject* number, bool (TaskQueue::*method)(std::uint64_t)) {
  if (!check_process(self)) return nullptr;
  const unsigned long long value = PyLong_AsUnsignedLongLong(number);
  if (value == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr) return nullptr;
  return guarded([&]() -> PyObject* {
    const bool truth = (queue_of(self).*method)(value);
    return PyErr_Occurred() != nullptr ? nullptr : PyBool_FromLong(truth ? 1 : 0);
  });
}

PyObject* cancel(PyObject* self, PyObject* number) {
  return with_number(self, number, &TaskQueue::cancel);
}

PyObject* is_running(PyObject* self, PyObject* number) {
  return with_number(self, number, &TaskQueue::is_running);
}

PyObject* pump(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "pump(done, seconds)");
    return nullptr;
  }
  if (!check_process(self)) return nullptr;
  const double most = arguments[1] == Py_None ? -1.0 : PyFloat_AsDouble(arguments[1]);
  if (most == -1.0 && PyErr_Occurred() != nullptr) return nullptr;
  return guarded([&] { return queue_of(self).pump(arguments[0], most); });
}

PyObject* arm(PyObject* self, PyObject*) {
  if (!check_process(self)) return nullptr;
  return guarded([&] { return PyBool_FromLong(queue_of(self).arm() ? 1 : 0); });
}

PyObject* retire_workers(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !py::isinstance<TaskFunction>(arguments[0])) {
    PyErr_SetString(PyExc_TypeError, "retire_workers(function, sink)");
    return nullptr;
  }
  if (!check_process(self)) return nullptr;
  return guarded([&]() -> PyObject* {
    queue_of(self).retire_workers(arguments[0], arguments[1]);
    if (PyErr_Occurred() != nullptr) return nullptr;
    Py_RETURN_NONE;
  });
}

PyObject* fail_all(PyObject* self, PyObject* error) {
  return guarded([&]() -> PyObject* {
    queue_of(self).fail_all(error);
    if (PyErr_Occurred() != nullptr) return nullptr;
    Py_RETURN_NONE;
  });
}

PyObject* close(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    queue_of(self).close();
    Py_RETURN_NONE;
  });
}

PyObject* wake(PyObject* self, PyObject*) {
  // In a forked child nobody waits.
  if (!queue_of(self).pool().manager.in_forked_child()) queue_of(self).wake();
  Py_RETURN_NONE;
}

PyObject* pass_on(PyObject* self, PyObject*) {
  if (!check_process(self)) return nullptr;
  queue_of(self).pass_on();
  Py_RETURN_NONE;
}

PyObject* fileno(PyObject* self, PyObject*) {
  if (!check_process(self)) return nullptr;
  return PyLong_FromLong(queue_of(self).pool().manager.descriptor());
}

PyObject* get_outstanding(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(queue_of(self).outstanding());
}

PyObject* get_in_background(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(queue_of(self).outstanding_in_background());
}

PyObject* get_is_pumped(PyObject* self, void*) {
  return PyBool_FromLong(queue_of(self).is_pumped() ? 1 : 0);
}

PyObject* get_is_pumped_by_main(PyObject* self, void*) {
  return PyBool_FromLong(queue_of(self).is_pumped_by_main() ? 1 : 0);
}

PyObject* get_broken(PyObject* self, void*) {
  PyObject* error = queue_of(self).broken();
  return Py_NewRef(error == nullptr ? Py_None : error);
}

PyObject* new_object(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"pool", "waiting", "notify", "on_deaths", nullptr};
  PyObject* pool = nullptr;
  PyObject* waiting = nullptr;
  PyObject* notify = nullptr;
  PyObject* on_deaths = nullptr;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "OO!OO", const_cast<char**>(names), &pool,
                                  &PyList_Type, &waiting, &notify, &on_deaths) == 0) {
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    auto queue = std::make_unique<TaskQueue>(py::handle(pool).cast<std::shared_ptr<WorkerPool>>(),
                                             waiting, notify, on_deaths);
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<Object*>(self)->queue = queue.release();
    return self;
  });
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  const TaskQueue* queue = reinterpret_cast<Object*>(self)->queue;
  return queue == nullptr ? 0 : queue->traverse(visit, arg);
}

int clear(PyObject* self) {
  TaskQueue* queue = reinterpret_cast<Object*>(self)->queue;
  if (queue != nullptr) queue->drop_all();
  return 0;
}

void dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  TaskQueue* queue = std::exchange(reinterpret_cast<Object*>(self)->queue, nullptr);
  if (queue != nullptr) {
    queue->drop_all();
    queue->close();
    delete queue;
  }
  Py_TYPE(self)->tp_free(self);
}

PyMethodDef methods[] = {
    {"submit", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(submit)), METH_FASTCALL,
     "submit(function, payload, sink, kind, background) -> number. Never waits."},
    {"cancel", cancel, METH_O, "True if the task was not begun, and now never will be."},
    {"is_running", is_running, METH_O, "True if a worker has the task."},
    {"pump", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(pump)), METH_FASTCALL,
     "pump(done, seconds): delivers until done() is true; None if another thread is at it."},
    {"wake", wake, METH_NOARGS, "Has who sleeps in pump() look at his done() again."},
    {"pass_on", pass_on, METH_NOARGS,
     "Lets others pump in the main thread's place, which is in a signal handler."},
    {"arm", arm, METH_NOARGS, "True if nothing is there, and what comes makes fileno() readable."},
    {"retire_workers", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(retire_workers)),
     METH_FASTCALL,
     "retire_workers(function, sink): each ends, in good order, once what was submitted is done."},
    {"fail_all", fail_all, METH_O, "Calls every sink with an error."},
    {"close", close, METH_NOARGS, "Ends every process."},
    {"fileno", fileno, METH_NOARGS, "What to watch after arm()."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef properties[] = {
    {"outstanding", get_outstanding, nullptr, "Tasks of which something is still to come.",
     nullptr},
    {"outstanding_in_background", get_in_background, nullptr,
     "Those that were submitted with background=True.", nullptr},
    {"is_pumped", get_is_pumped, nullptr, "True while a thread is in pump().", nullptr},
    {"is_pumped_by_main", get_is_pumped_by_main, nullptr, "True while the main thread is.",
     nullptr},
    {"broken", get_broken, nullptr, "Why the pool cannot go on, or None.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyTypeObject queue_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook._core.TaskQueue";
  type.tp_doc = "TaskQueue(pool, waiting, notify, on_deaths): tasks given to a pool one by one.";
  type.tp_basicsize = sizeof(Object);
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
  type.tp_new = new_object;
  type.tp_dealloc = dealloc;
  type.tp_traverse = traverse;
  type.tp_clear = clear;
  type.tp_methods = methods;
  type.tp_getset = properties;
  return type;
}();

}  // namespace

void register_task_queue(py::module_& module) {
  py::class_<TaskFunction>(module, "TaskFunction",
                           "A function whose definition lies where a pool's workers find it.")
      .def(py::init<std::shared_ptr<WorkerPool>, std::uint64_t, const py::bytes&>(),
           py::arg("pool"), py::arg("number"), py::arg("definition"));
  if (PyType_Ready(&queue_type) < 0) throw py::error_already_set();
  module.add_object("TaskQueue", reinterpret_cast<PyObject*>(&queue_type));
}

}  // namespace stook::bindings
