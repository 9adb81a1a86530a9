// Manager: life of the processes, and jobs out. Results in: manager_results.cpp; deaths of workers:
// manager_deaths.cpp; waiting and waking: manager_wait.cpp.
#include "workers/manager.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "shm/error.h"
#include "shm/eventfd.h"
#include "shm/fork_guard.h"
#include "shm/memory_limit.h"
#include "workers/process.h"
#include "workers/worker.h"

namespace stook::workers {

namespace {

// As much as the machine has: only touched pages cost. Less where limits count the reservation.
std::uint64_t choose_arena_bytes(std::uint32_t worker_count) {
  std::uint64_t bytes = shm::machine_memory();
  const std::uint64_t address_space = shm::address_space_left();
  if (address_space != UINT64_MAX) bytes = std::min(bytes, address_space / 4 / worker_count);
  bytes = std::min(bytes, shm::file_size_limit());
  bytes = bytes / shm::kPageBytes * shm::kPageBytes;
  return std::max(bytes, std::uint64_t{4} << 20);
}

}  // namespace

Manager::Manager(const ManagerOptions& options, shm::FileDescriptor socket, pid_t server)
    : options_(options),
      window_(std::uint64_t{options.worker_count} * (options.per_worker_buffer_size + 1ULL)),
      generation_(shm::fork_generation()),
      socket_(std::move(socket)),
      server_(server),
      server_pidfd_(open_pidfd(server)),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      oom_kills_(shm::oom_kill_count()) {
  if (options.worker_count == 0 || options.worker_count > kMaxWorkers) {
    throw shm::Error(shm::ErrorCode::kInvalidArgument, "num_workers must be 1 to " +
                                                           std::to_string(kMaxWorkers) + ", not " +
                                                           std::to_string(options.worker_count));
  }
  if (options.any_order &&
      (options.report_losses || options.element_timeout != std::chrono::nanoseconds{0})) {
    throw shm::Error(shm::ErrorCode::kInvalidArgument,
                     "jobs without an order have no time-out, and no losses to be told of");
  }
  if (!epoll_.is_open()) shm::throw_system_error("epoll_create1");

  // Twice the window: a job that was given up keeps its slot until its worker took the payload.
  const std::uint64_t capacity = std::bit_ceil(2 * window_);
  const ControlLayout layout{options.worker_count, capacity};
  const std::uint64_t arena_bytes = choose_arena_bytes(options.worker_count + 1);
  arena_layout_ = {capacity, sizeof(ResultSlot), arena_bytes};
  arena_layout_.total_bytes =
      std::max(arena_bytes, arena_layout_.first_block_offset() + (std::uint64_t{1} << 20));
  channel_ = std::make_shared<Channel>(
      shm::create_shared_memory("stook-control", layout.total_bytes()), layout);
  ControlHeader& header = channel_->control().header();
  header.magic = kControlMagic;
  header.worker_count = options.worker_count;
  header.element_timeout = static_cast<std::uint64_t>(options.element_timeout.count());
  header.items_are_told = options.report_losses || header.element_timeout != 0 ? 1 : 0;
  header.job_capacity = capacity;
  header.result_capacity = capacity;
  header.memory_limit = options.memory_limit;
  header.arena_bytes = arena_layout_.total_bytes;
  header.arguments_bytes = arena_layout_.total_bytes;
  jobs_.resize(capacity);
  workers_.resize(options.worker_count);
  has_job_.resize(options.worker_count);
  ledger_ = std::make_shared<LeaseLedger>(options.worker_count);
  for (std::uint32_t worker = 0; worker < options.worker_count; ++worker) {
    workers_[worker].releases = std::make_shared<WorkerReleases>(worker, channel_, ledger_);
  }

  const shm::FileDescriptor arguments =
      shm::create_shared_memory("stook-arguments", header.arguments_bytes);
  arguments_ = shm::Mapping(arguments.get(), header.arguments_bytes, shm::Access::kReadWrite);
  // Page 0 stays unused: offset 0 says that a job has no external payload.
  argument_blocks_ = std::make_unique<shm::BlockAllocator>(
      arguments_, shm::kPageBytes, header.arguments_bytes, &shm::memory_left);

  bell_ = shm::create_eventfd(shm::EventWait::kNonBlocking);
  epoll_event event{};
  // Edge-triggered: every ring is an event, and the counter never needs to be read.
  event.events = EPOLLIN | EPOLLET;
  event.data.u32 = kBellEvent;
  bool watched = ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, bell_.get(), &event) == 0;
  event.events = EPOLLIN;
  event.data.u32 = kServerEvent;
  watched = watched && ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, socket_.get(), &event) == 0;
  if (header.element_timeout != 0) {
    timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    event.events = EPOLLIN | EPOLLET;
    event.data.u32 = kTimerEvent;
    watched = watched && timer_.is_open() &&
              ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, timer_.get(), &event) == 0;
  }
  if (!watched) shm::throw_system_error("epoll_ctl");

  const int common[] = {channel_->control_fd(), arguments.get(), bell_.get()};
  if (!send_message(socket_.get(), {MessageType::kStart, 0, 0, 0, 0, 0}, common)) {
    fail_broken("the fork server ended before it started");
  }
  try {
    while (!options_.start_on_demand && add_worker()) {
    }
  } catch (...) {
    // Else an arena would keep the channel, and with it the descriptors of every doorbell.
    for (WorkerRecord& worker : workers_) {
      if (worker.arena != nullptr) worker.arena->drop_reference();
    }
    throw;
  }
}

Manager::~Manager() { close(); }

bool Manager::in_forked_child() const noexcept { return generation_ != shm::fork_generation(); }

std::uint64_t Manager::arena_bytes() const { return arena_layout_.total_bytes; }

void Manager::spawn(std::uint32_t index) {
  WorkerRecord& worker = workers_[index];
  worker.arena_fd = shm::create_shared_memory("stook-arena", arena_layout_.total_bytes);
  worker.arena = shm::LeasedArena::open(worker.arena_fd.get(), arena_layout_, worker.releases);
  const auto* slots = reinterpret_cast<const ResultSlot*>(worker.arena->memory().data() +
                                                          shm::ArenaLayout::kSlotsOffset);
  worker.results.emplace(worker.arena->header().results, slots, arena_layout_.slot_count);
  worker.has_published = false;
  worker.alive = true;
  worker.pid = 0;
  ++unannounced_;
  const int fds[] = {worker.arena_fd.get(), channel_->bell(index)};
  const Message request{MessageType::kSpawn, index, worker.incarnation, 0, 0, 0};
  if (!send_message(socket_.get(), request, fds) && broken_.empty()) {
    broken_ = "the fork server is gone";
  }
}

bool Manager::add_worker() {
  const auto next = std::find_if(workers_.begin(), workers_.end(), [](const WorkerRecord& worker) {
    return !worker.alive && worker.incarnation == 0 && worker.arena == nullptr && !worker.ended;
  });
  if (next == workers_.end()) return false;
  spawn(static_cast<std::uint32_t>(next - workers_.begin()));
  return true;
}

// ------------------------------------------------------------------ jobs out

bool Manager::slot_is_free(std::uint64_t job) {
  const std::uint64_t capacity = jobs_.size();
  if (job < capacity) return true;
  const std::uint64_t earlier = job - capacity;
  const auto stale = stale_.find(earlier);
  if (stale == stale_.end()) return true;
  // Given up while a worker runs it: the slot is free once the worker has copied the payload. If
  // the worker took another job since, this one's result is there. SYNC(jobs.taken): released in
  // Worker::take_payload, acquired here.
  const std::uint32_t worker = stale->second.worker;
  const WorkerCell& cell = channel_->control().cell(worker);
  if (cell.taken_job.load(std::memory_order_acquire) == earlier + 1) return true;
  drain(worker);
  return stale_.find(earlier) == stale_.end();
}

bool Manager::can_produce() {
  if (!broken_.empty() || startup_error_) return false;
  if (options_.any_order) return in_flight_ < window_;
  return produced_ - delivered_ < window_ && slot_is_free(produced_);
}

std::uint64_t Manager::produce(const JobOrder& order) {
  if (order.worker && (options_.any_order || *order.worker >= options_.worker_count)) {
    throw shm::Error(shm::ErrorCode::kInvalidArgument,
                     options_.any_order
                         ? "a job of a pool without an order cannot be bound to a worker"
                         : "a job is bound to worker " + std::to_string(*order.worker) +
                               ", and there are " + std::to_string(options_.worker_count) +
                               " workers");
  }
  // A number whose slot an older job still has is left out. Claimers pass over it: the slot's word
  // is not that of an unclaimed job of this number.
  while (options_.any_order && is_occupied(record(produced_))) ++produced_;
  const std::uint64_t number = produced_;
  JobSlot& slot = channel_->control().job(number);
  JobRecord& job = record(number);
  job.number = number;
  job.state = JobState::kUnderWay;
  job.epoch = order.epoch;
  job.position = order.position;
  job.claimants = order.worker ? bound_to(*order.worker) : kUnclaimed;
  job.deaths.clear();
  job.losses.clear();
  job.arguments.assign(order.blocks.begin(), order.blocks.end());

  slot.epoch = order.epoch;
  slot.position = order.position;
  slot.kind = order.kind;
  slot.block_count = static_cast<std::uint32_t>(order.blocks.size());
  const std::uint64_t refs = order.blocks.size_bytes();
  slot.payload_bytes = refs + order.payload.size();
  std::byte* bytes = slot.payload;
  slot.external_offset = 0;
  slot.losses_count = 0;
  if (slot.payload_bytes > kJobInlineBytes) {
    const auto block = allocate_arguments(slot.payload_bytes);
    if (!block) {
      free_arguments(job.arguments);
      job.state = JobState::kFree;
      throw shm::Error(shm::ErrorCode::kNoSharedMemory,
                       "a job's arguments of " + std::to_string(slot.payload_bytes) +
                           " bytes do not fit into shared memory of " +
                           std::to_string(arguments_.size()) + " bytes");
    }
    job.arguments.push_back(block->ref);
    slot.external_offset = block->ref.offset;
    bytes = block->data;
  }
  if (refs != 0) std::memcpy(bytes, order.blocks.data(), refs);
  if (!order.payload.empty()) {
    std::memcpy(bytes + refs, order.payload.data(), order.payload.size());
  }
  ++produced_;
  ++in_flight_;
  if (order.worker) ++bound_;
  produce_job(channel_->control().header().jobs, slot, number, job.claimants);
  ring_for_jobs(false);
  return number;
}

bool Manager::cancel(std::uint64_t number) {
  JobRecord& job = record(number);
  if (job.number != number || job.state != JobState::kUnderWay ||
      !cancel_job(channel_->control().job(number), number)) {
    return false;
  }
  free_arguments(job.arguments);
  job.arguments.clear();
  job.state = JobState::kDelivered;
  --in_flight_;
  advance_delivered();
  return true;
}

bool Manager::is_claimed(std::uint64_t number) const {
  const JobRecord& job = jobs_[number & (jobs_.size() - 1)];
  if (job.number != number || job.state != JobState::kUnderWay) return false;
  const std::uint64_t claim = channel_->control().job(number).claim.load(std::memory_order_relaxed);
  return claim_job(claim) == number && !is_unclaimed(claim);
}

std::optional<Manager::ArgumentBlock> Manager::allocate_arguments(std::uint64_t bytes) {
  const auto block = argument_blocks_->allocate(bytes);
  if (!block) return std::nullopt;
  return ArgumentBlock{arguments_.data() + block->offset, {block->offset, bytes, block->id, 0}};
}

void Manager::free_arguments(std::span<const BlockRef> blocks) {
  for (const BlockRef& block : blocks) argument_blocks_->owner_releases(block.id);
}

void Manager::fail_broken(const std::string& what) {
  broken_ = what;
  throw shm::Error(shm::ErrorCode::kBroken, what);
}

// ------------------------------------------------------------------ the end

void Manager::close() noexcept {
  if (!socket_.is_open()) return;
  if (in_forked_child()) {
    // The processes are the parent's business, and leases keep their arenas mapped: give back only
    // this process's copies of the descriptors.
    socket_.reset();
    server_pidfd_.reset();
    epoll_.reset();
    timer_.reset();
    for (WorkerRecord& worker : workers_) {
      worker.pidfd.reset();
      worker.arena_fd.reset();
    }
    return;
  }
  bool has_workers = false;
  // One whose birth was not told yet may have published already.
  for (const WorkerRecord& worker : workers_)
    has_workers |= worker.pid != 0 || worker.has_published;
  // Not close(): children that user code forked may hold copies of the descriptor.
  ::shutdown(socket_.get(), SHUT_RDWR);
  // A server that has forked nothing yet is still importing: nothing is lost by not waiting for it.
  if (server_pidfd_.is_open() && (!has_workers || !wait_for_end(server_pidfd_.get(), 5000))) {
    kill_by_pidfd(server_pidfd_.get(), SIGKILL);
  }
  // What an import in it has started, too. Until it is reaped the group's number is its own; user
  // code that waits for every child may have reaped it.
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(server_), &info, WEXITED | WNOHANG | WNOWAIT) == 0) {
    ::kill(-server_, SIGKILL);
  }
  while (::waitpid(server_, nullptr, 0) < 0 && errno == EINTR) {
  }
  for (WorkerRecord& worker : workers_) {
    // Normally ended and reaped by the server; by PR_SET_PDEATHSIG if that was killed.
    if (worker.pidfd.is_open()) {
      kill_by_pidfd(worker.pidfd.get(), SIGKILL);
      wait_for_end(worker.pidfd.get(), 5000);
      worker.pidfd.reset();
    }
    worker.alive = false;
  }
  for (JobRecord& job : jobs_) {
    if (job.state == JobState::kReady) release_ready(job);
    job.state = JobState::kDelivered;
  }
  ready_.clear();
  delivered_ = produced_;
  in_flight_ = 0;
  bound_ = 0;
  for (WorkerRecord& worker : workers_) {
    worker.results.reset();
    worker.arena_fd.reset();
    if (worker.arena == nullptr) continue;
    worker.arena->retire();
    worker.arena->drop_reference();
    worker.arena = nullptr;
  }
  channel_->close();
  argument_blocks_.reset();
  arguments_ = shm::Mapping();
  socket_.reset();
  server_pidfd_.reset();
  epoll_.reset();
  timer_.reset();
  bell_.reset();
}

ManagerStats Manager::stats() const { return {restarts_, channel_->control().outstanding_bytes()}; }

std::uint32_t Manager::workers_alive() const {
  return static_cast<std::uint32_t>(std::count_if(
      workers_.begin(), workers_.end(), [](const WorkerRecord& worker) { return worker.alive; }));
}

std::vector<pid_t> Manager::worker_pids() const {
  std::vector<pid_t> pids;
  for (const WorkerRecord& worker : workers_) {
    if (worker.alive && worker.pid != 0) pids.push_back(worker.pid);
  }
  return pids;
}

}  // namespace stook::workers
