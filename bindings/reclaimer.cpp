#include "bindings/reclaimer.h"

#include <chrono>
#include <string>

#include "bindings/errors.h"
#include "bindings/register.h"
#include "shm/error.h"
#include "shm/reclaimer.h"
#include "shm/segment.h"

namespace stook::bindings {
namespace {

// One of the two numbers. False with an error set.
bool convert_count(PyObject* given, const char* name, long lowest, long most,
                   std::uint32_t& count) {
  if (given == nullptr) return true;  // the default
  const long value = PyBool_Check(given) ? -1 : PyLong_AsLong(given);
  if (value >= lowest && value <= most) {
    count = static_cast<std::uint32_t>(value);
    return true;
  }
  const bool is_number = PyErr_Occurred() == nullptr || !PyErr_ExceptionMatches(PyExc_TypeError);
  PyErr_Clear();
  PyErr_Format(is_number && !PyBool_Check(given) ? PyExc_ValueError : PyExc_TypeError,
               "enable_async_del: %s must be an int from %ld to %ld, got %R", name, lowest, most,
               given);
  return false;
}

py::dict stats() {
  const shm::ReclaimerStats now = shm::reclaimer_stats();
  py::dict result;
  result["threads"] = now.threads;
  result["max_outstanding_requests"] = now.max_outstanding;
  result["outstanding"] = now.outstanding;
  result["done_by_threads"] = now.done_by_threads;
  result["done_by_callers"] = now.done_by_callers;
  result["failures"] = now.failures;
  return result;
}

}  // namespace

PyObject* enable_async_del(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"num_threads", "max_outstanding_requests", nullptr};
  PyObject* given_threads = nullptr;
  PyObject* given_requests = nullptr;
  std::uint32_t threads = 1;
  std::uint32_t requests = 50;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "|OO:enable_async_del",
                                  const_cast<char**>(names), &given_threads,
                                  &given_requests) == 0 ||
      !convert_count(given_threads, names[0], 0, shm::kMostReclaimThreads, threads) ||
      !convert_count(given_requests, names[1], 1, shm::kMostOutstanding, requests)) {
    return nullptr;
  }
  try {
    const WithoutGil without_gil;  // threads that end are waited for
    shm::configure_reclaimer(threads, requests);
  } catch (const shm::Error& error) {
    set_python_error(error);
    return nullptr;
  }
  Py_RETURN_NONE;
}

void register_reclaimer(py::module_& module) {
  module.def(
      "unlink_segment", [](const std::string& name) { return shm::unlink_segment(name); },
      py::arg("name"), "Removes a segment's name. False if there was none.");
  module.def("reclaimer_stats", &stats);
  module.def(
      "flush_reclaimer",
      [](double seconds) {
        const WithoutGil without_gil;
        return shm::flush_reclaimer(std::chrono::milliseconds(static_cast<long>(seconds * 1e3)));
      },
      py::arg("seconds"), "Waits until nothing is outstanding. True if so.");
  module.def(
      "finish_reclaimer",
      [](double seconds) {
        const WithoutGil without_gil;
        shm::finish_reclaimer(std::chrono::milliseconds(static_cast<long>(seconds * 1e3)));
      },
      py::arg("seconds"), "At the process's end: waits at most so long for what is outstanding.");
  module.def("leave_segments", &shm::leave_segments,
             "At the process's end: unlinks what it is to unlink, and keeps the rest.");
  // Again, behind everything that Python does at the end: what was registered with atexit before
  // stook was imported runs after stook's own function, and may make segments. No Python in it.
  Py_AtExit([] { shm::leave_segments(); });
  module.def("sweep_leftover_segments", &shm::sweep_leftover_segments,
             "Removes what killed processes of this user left. Returns how many segments.");
}

}  // namespace stook::bindings
