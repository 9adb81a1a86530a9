// Manager: where the memory of its workers is.
#include "workers/manager_memory.h"

#include <sys/stat.h>

#include <algorithm>

#include "workers/manager.h"

namespace stook::workers {

std::vector<WorkerMemory> Manager::memory() const {
  std::vector<WorkerMemory> memory(workers_.size());
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const WorkerRecord& worker = workers_[index];
    WorkerMemory& figures = memory[index];
    // First what the living one holds: a release between the two looks then counts as none of both.
    const std::uint64_t held = worker.arena != nullptr ? worker.arena->held_bytes() : 0;
    const std::uint64_t all = ledger_->held_bytes(index);
    // Without a predecessor, any difference is a release that one of the two has not counted yet.
    if (worker.arena == nullptr || worker.incarnation != 0) {
      figures.retired = all - std::min(all, held);
    }
    if (!worker.alive) continue;
    const WorkerCell& cell = channel_->control().cell(index);
    figures.mapped = cell.mapped_bytes.load(std::memory_order_relaxed);
    figures.live = cell.live_bytes.load(std::memory_order_relaxed);
    figures.idle = cell.idle_bytes.load(std::memory_order_relaxed);
    struct stat status{};
    if (::fstat(worker.arena_fd.get(), &status) == 0) {
      figures.touched = static_cast<std::uint64_t>(status.st_blocks) * 512;
    }
  }
  return memory;
}

}  // namespace stook::workers
