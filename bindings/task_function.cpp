#include "bindings/task_function.h"

#include <cstring>
#include <string>
#include <utility>

#include "shm/error.h"

namespace stook::bindings {

TaskFunction::TaskFunction(std::shared_ptr<WorkerPool> pool, std::uint64_t number,
                           const py::bytes& definition)
    : pool_(std::move(pool)), number_(number) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(definition.ptr(), &data, &size) != 0) throw py::error_already_set();
  const auto bytes = static_cast<std::uint64_t>(size);
  const auto destination = pool_->allocate(bytes + sizeof bytes);
  if (!destination) {
    throw shm::Error(shm::ErrorCode::kNoSharedMemory, "a function whose pickle has " +
                                                          std::to_string(bytes) +
                                                          " bytes does not fit into shared memory");
  }
  block_ = destination->ref;
  std::memcpy(destination->data, &bytes, sizeof bytes);
  std::memcpy(destination->data + sizeof bytes, data, bytes);
}

TaskFunction::~TaskFunction() {
  if (block_.bytes != 0 && !pool_->manager.in_forked_child()) pool_->discard(block_);
}

}  // namespace stook::bindings
