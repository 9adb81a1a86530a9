#include "bindings/worker_errors.h"

#include <cstddef>
#include <span>
#include <utility>

#include "bindings/errors.h"

namespace stook::bindings {

std::string encode_exception(const WorkerFunctions& functions) {
  const OwnedRef exception = take_exception();
  if (!exception) return "Tan error without an exception";
  const OwnedRef encoded(PyObject_CallOneArg(functions.encode_error, exception.get()));
  if (encoded && PyBytes_Check(encoded.get())) {
    return {PyBytes_AS_STRING(encoded.get()),
            static_cast<std::size_t>(PyBytes_GET_SIZE(encoded.get()))};
  }
  PyErr_Clear();
  return std::string("T") + Py_TYPE(exception.get())->tp_name +
         " (its text could not be made: encoding it raised an exception itself)";
}

void publish_error(workers::Worker& worker, std::uint64_t job, workers::ResultKind kind,
                   std::string payload, const Remarks& remarks) {
  workers::ResultDraft draft;
  draft.job = job;
  draft.kind = kind;
  draft.failed = remarks.failed;
  draft.consumed = remarks.consumed;
  draft.payload = std::as_bytes(std::span(payload));
  if (worker.publish(draft)) return;
  // Not even the arena has room for it: what fits a slot.
  payload = "Tan error whose text of " + std::to_string(payload.size()) +
            " bytes does not fit into shared memory";
  draft.payload = std::as_bytes(std::span(payload));
  worker.publish(draft);
}

}  // namespace stook::bindings
