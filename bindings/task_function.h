// A function as a pool's workers get it: a number, and a definition in the arguments' arena that a
// worker loads when it first meets the number.
#pragma once

#include <cstdint>
#include <memory>

#include "bindings/worker_pool.h"
#include "workers/protocol.h"

namespace stook::bindings {

class TaskFunction {
 public:
  // `definition` is what the workers' load_function takes. Throws shm::Error if the arena has no
  // room. Requires GIL, as everything here.
  TaskFunction(std::shared_ptr<WorkerPool> pool, std::uint64_t number, const py::bytes& definition);
  // Gives the definition's memory back. Tasks hold their function, so none is under way.
  ~TaskFunction();
  TaskFunction(const TaskFunction&) = delete;
  TaskFunction& operator=(const TaskFunction&) = delete;

  std::uint64_t number() const noexcept { return number_; }
  std::uint64_t offset() const noexcept { return block_.offset; }
  const WorkerPool* pool() const noexcept { return pool_.get(); }

 private:
  std::shared_ptr<WorkerPool> pool_;
  std::uint64_t number_;
  workers::BlockRef block_{};
};

}  // namespace stook::bindings
