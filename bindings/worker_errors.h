// What a worker calls of Python, and how it tells of errors. Requires the GIL throughout.
#pragma once

#include <cstdint>
#include <string>

#include "bindings/python_api.h"
#include "workers/worker.h"

namespace stook::bindings {

// Python functions that a worker needs (stook/_worker.py), borrowed from the call of serve().
struct WorkerFunctions {
  PyObject* set_up;            // (index, count, incarnation) -> task
  PyObject* encode_error;      // (exception) -> bytes
  PyObject* exhausted_error;   // (requested bytes, arena bytes) -> exception
  PyObject* pickle_objects;    // (list, min bytes) -> (bytes, [buffer])
  PyObject* pickle_dtype;      // (dtype) -> bytes
  PyObject* unpickle_objects;  // (bytes, [buffer]) -> list
  PyObject* unpickle_dtype;    // (bytes) -> dtype
  PyObject* load_function;     // (bytes) -> function
  PyObject* undecodable;       // (exception) -> exception: arguments that cannot be unpickled
  PyObject* run_finalizers;    // ()
  PyObject* retire;            // (): never returns
  PyObject* end_forked_child;  // (exception or None): never returns
  PyObject* report_type;       // stook._element_errors.Report
  PyObject* skip;              // stook.SKIP
};

// The error payload for the exception that is set, which is cleared.
std::string encode_exception(const WorkerFunctions& functions);

// What a task said of its element besides the element, or of what it raised.
struct Remarks {
  std::uint32_t failed = 0;    // as in workers::ResultSlot
  std::uint32_t consumed = 0;  // the same
};

// Publishes an error as the outcome of a job, if need be a shorter one.
void publish_error(workers::Worker& worker, std::uint64_t job, workers::ResultKind kind,
                   std::string payload, const Remarks& remarks = {});

}  // namespace stook::bindings
