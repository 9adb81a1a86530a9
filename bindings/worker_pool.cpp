#include "bindings/worker_pool.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>

#include "bindings/register.h"
#include "shm/memory_limit.h"
#include "workers/process.h"

namespace stook::bindings {

namespace {

py::object attribute(const py::object& object, const char* name) { return object.attr(name); }

py::tuple totals(const WorkerPool& pool) {
  const workers::ManagerStats stats = pool.manager.stats();
  return py::make_tuple(pool.elements, pool.bytes, pool.moved, pool.copied, stats.restarts,
                        pool.errors, stats.outstanding_bytes);
}

// Per worker: mapped, touched, live, idle and retired bytes.
py::list memory(WorkerPool& pool) {
  std::vector<workers::WorkerMemory> workers;
  {
    const WorkerPool::LockAwake lock(pool);
    workers = pool.manager.memory();
  }
  py::list figures;
  for (const workers::WorkerMemory& worker : workers) {
    figures.append(
        py::make_tuple(worker.mapped, worker.touched, worker.live, worker.idle, worker.retired));
  }
  return figures;
}

// A time-out in seconds: at least one nanosecond, at most some thirty years.
std::chrono::nanoseconds nanoseconds_of(double seconds) {
  return std::chrono::nanoseconds(
      std::max<std::int64_t>(1, static_cast<std::int64_t>(std::clamp(seconds, 0.0, 1e9) * 1e9)));
}

py::list held_bytes(const workers::LeaseLedger& ledger) {
  py::list bytes;
  for (std::uint32_t worker = 0; worker < ledger.worker_count(); ++worker) {
    bytes.append(ledger.held_bytes(worker));
  }
  return bytes;
}

}  // namespace

WorkerPool::WorkerPool(const workers::ManagerOptions& options, int socket, int server,
                       std::uint64_t min_shared_bytes, py::object parent_functions)
    : starts_on_demand(options.start_on_demand),
      manager(options, shm::FileDescriptor(socket), server),
      functions(std::move(parent_functions)),
      // The functions are kept by `functions`, which outlives both.
      encoder(*this, min_shared_bytes, attribute(functions, "pickle_objects").ptr(),
              attribute(functions, "pickle_dtype").ptr()),
      decoder(attribute(functions, "unpickle_objects").ptr(),
              attribute(functions, "unpickle_dtype").ptr()) {}

std::unique_ptr<Encoder> WorkerPool::make_encoder() {
  return std::make_unique<Encoder>(*this, encoder.min_shared_bytes(),
                                   attribute(functions, "pickle_objects").ptr(),
                                   attribute(functions, "pickle_dtype").ptr());
}

std::optional<BlockSource::Destination> WorkerPool::allocate(std::uint64_t size) {
  const LockWithGil lock(mutex);
  if (!manager.is_open()) return std::nullopt;
  const auto block = manager.allocate_arguments(size);
  if (!block) return std::nullopt;
  return Destination{block->data, block->ref};
}

void WorkerPool::discard(const workers::BlockRef& block) {
  const LockWithGil lock(mutex);
  if (manager.is_open()) manager.free_arguments({&block, 1});
}

void register_worker_pool(py::module_& module) {
  py::class_<workers::LeaseLedger, std::shared_ptr<workers::LeaseLedger>>(
      module, "LeaseLedger", "What of each worker's memory is still leased; outlives the pool.")
      .def("held_bytes", &held_bytes);
  py::class_<WorkerPool, std::shared_ptr<WorkerPool>>(
      module, "WorkerPool", "The worker processes of one loader; takes over socket and server.")
      .def(py::init([](int socket, int server, std::uint32_t num_workers,
                       std::uint32_t per_worker_buffer_size, std::uint64_t memory_limit,
                       std::uint64_t min_shared_bytes, bool restart_workers,
                       std::uint32_t max_restarts, bool any_order, bool start_on_demand,
                       bool report_losses, std::optional<double> element_timeout,
                       py::object functions) {
             workers::ManagerOptions options;
             options.worker_count = num_workers;
             options.per_worker_buffer_size = per_worker_buffer_size;
             options.memory_limit = memory_limit;
             options.restart_workers = restart_workers;
             options.max_restarts = max_restarts;
             options.any_order = any_order;
             options.start_on_demand = start_on_demand;
             options.report_losses = report_losses;
             if (element_timeout) options.element_timeout = nanoseconds_of(*element_timeout);
             return std::make_shared<WorkerPool>(options, socket, server, min_shared_bytes,
                                                 std::move(functions));
           }),
           py::kw_only(), py::arg("socket"), py::arg("server"), py::arg("num_workers"),
           py::arg("per_worker_buffer_size"), py::arg("memory_limit"), py::arg("min_shared_bytes"),
           py::arg("restart_workers"), py::arg("max_restarts"), py::arg("any_order"),
           py::arg("start_on_demand"), py::arg("report_losses") = false,
           py::arg("element_timeout") = py::none(), py::arg("functions"))
      .def("close", [](WorkerPool& pool) { pool.close(); })
      .def(
          "watch", [](WorkerPool& pool, int fd) { pool.manager.watch_side_channel(fd); },
          py::arg("fd"))
      .def("totals", &totals)
      .def("memory", &memory)
      .def_property_readonly("ledger", [](const WorkerPool& pool) { return pool.manager.ledger(); })
      .def_property_readonly("is_open", &WorkerPool::is_open)
      .def_property_readonly("server_pid",
                             [](const WorkerPool& pool) { return pool.manager.server_pid(); })
      .def_property_readonly("workers_alive",
                             [](WorkerPool& pool) {
                               const WorkerPool::LockAwake lock(pool);
                               return pool.manager.workers_alive();
                             })
      .def_property_readonly("worker_pids", [](WorkerPool& pool) {
        const WorkerPool::LockAwake lock(pool);
        return py::cast(pool.manager.worker_pids());
      });
  module.def("memory_left", &shm::memory_left,
             "Bytes that this process's memory cgroup, or the machine, has left.");
}

}  // namespace stook::bindings
