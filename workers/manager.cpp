// Manager: life of the processes, jobs out, results in. Waiting and waking: manager_wait.cpp.
#include "workers/manager.h"

#include <sys/epoll.h>
#include <sys/socket.h>
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

// A result of a worker that could not be set up belongs to no job.
constexpr std::uint64_t kNoJob = ~std::uint64_t{0};

// As much as the machine has: only touched pages cost. Less where limits count the reservation.
std::uint64_t choose_arena_bytes(std::uint32_t worker_count) {
  std::uint64_t bytes = shm::machine_memory();
  const std::uint64_t address_space = shm::address_space_left();
  if (address_space != UINT64_MAX) bytes = std::min(bytes, address_space / 4 / worker_count);
  bytes = std::min(bytes, shm::file_size_limit());
  bytes = bytes / shm::kPageBytes * shm::kPageBytes;
  return std::max(bytes, std::uint64_t{4} << 20);
}

std::span<const BlockRef> block_refs(const std::byte* bytes, std::uint32_t count) {
  return {reinterpret_cast<const BlockRef*>(bytes), count};
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
    throw shm::Error(shm::ErrorCode::kInvalidArgument,
                     "num_workers must be 1 to 65534, not " + std::to_string(options.worker_count));
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
  header.job_capacity = capacity;
  header.result_capacity = capacity;
  header.memory_limit = options.memory_limit;
  header.arena_bytes = arena_layout_.total_bytes;
  header.arguments_bytes = arena_layout_.total_bytes;
  jobs_.resize(capacity);
  workers_.resize(options.worker_count);

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
  if (!watched) shm::throw_system_error("epoll_ctl");

  const int common[] = {channel_->control_fd(), arguments.get(), bell_.get()};
  if (!send_message(socket_.get(), {MessageType::kStart, 0, 0, 0, 0, 0}, common)) {
    fail_broken("the fork server ended before it started");
  }
  for (std::uint32_t worker = 0; worker < options_.worker_count; ++worker) spawn(worker);
}

Manager::~Manager() { close(); }

bool Manager::in_forked_child() const noexcept { return generation_ != shm::fork_generation(); }

std::uint64_t Manager::arena_bytes() const { return arena_layout_.total_bytes; }

void Manager::spawn(std::uint32_t index) {
  WorkerRecord& worker = workers_[index];
  const shm::FileDescriptor fd =
      shm::create_shared_memory("stook-arena", arena_layout_.total_bytes);
  worker.arena = shm::LeasedArena::open(fd.get(), arena_layout_, channel_);
  const auto* slots = reinterpret_cast<const ResultSlot*>(worker.arena->memory().data() +
                                                          shm::ArenaLayout::kSlotsOffset);
  worker.results.emplace(worker.arena->header().results, slots, arena_layout_.slot_count);
  worker.has_published = false;
  worker.alive = true;
  worker.pid = 0;
  const int fds[] = {fd.get(), channel_->bell(index)};
  const Message request{MessageType::kSpawn, index, worker.incarnation, 0, 0, 0};
  if (!send_message(socket_.get(), request, fds) && broken_.empty()) {
    broken_ = "the fork server is gone";
  }
}

// ------------------------------------------------------------------ jobs out

bool Manager::slot_is_free(std::uint64_t job) {
  const std::uint64_t capacity = jobs_.size();
  if (job < capacity) return true;
  const std::uint64_t earlier = job - capacity;
  const auto stale = stale_.find(earlier);
  if (stale == stale_.end()) return true;
  // Given up while a worker runs it: the slot is free once the worker has copied the payload.
  // SYNC(jobs.taken): released in Worker::take_payload, acquired here.
  const WorkerCell& cell = channel_->control().cell(stale->second.worker);
  return cell.taken_job.load(std::memory_order_acquire) >= earlier + 1;
}

bool Manager::can_produce() {
  return broken_.empty() && !startup_error_ && produced_ - delivered_ < window_ &&
         slot_is_free(produced_);
}

void Manager::produce(const JobOrder& order) {
  const std::uint64_t number = produced_;
  JobSlot& slot = channel_->control().job(number);
  JobRecord& job = record(number);
  job.number = number;
  job.state = JobState::kUnderWay;
  job.epoch = order.epoch;
  job.position = order.position;
  job.attempts = 0;
  job.arguments.assign(order.blocks.begin(), order.blocks.end());

  slot.epoch = order.epoch;
  slot.position = order.position;
  slot.kind = order.kind;
  slot.block_count = static_cast<std::uint32_t>(order.blocks.size());
  const std::uint64_t refs = order.blocks.size_bytes();
  slot.payload_bytes = refs + order.payload.size();
  std::byte* bytes = slot.payload;
  slot.external_offset = 0;
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
  produce_job(channel_->control().header().jobs, slot, number);
  ring_for_jobs(false);
}

std::optional<Manager::ArgumentBlock> Manager::allocate_arguments(std::uint64_t bytes) {
  const auto block = argument_blocks_->allocate(bytes);
  if (!block) return std::nullopt;
  return ArgumentBlock{arguments_.data() + block->offset, {block->offset, bytes, block->id, 0}};
}

void Manager::free_arguments(std::span<const BlockRef> blocks) {
  for (const BlockRef& block : blocks) argument_blocks_->owner_releases(block.id);
}

// ------------------------------------------------------------------ results in

Manager::State Manager::poll(bool ordered) {
  ordered_ = ordered;
  if (awaited_is_ready(ordered) || startup_error_) return State::kReady;
  if (produced_ == delivered_) {
    if (!broken_.empty()) fail_broken(broken_);
    return State::kIdle;
  }
  if (!broken_.empty()) fail_broken(broken_);
  return State::kPending;
}

bool Manager::awaited_is_ready(bool ordered) {
  if (ordered) {
    if (delivered_ == produced_) return false;
    JobRecord& next = record(delivered_);
    if (next.state == JobState::kReady) return true;
    const std::uint64_t claimer =
        claim_claimer(channel_->control().job(delivered_).claim.load(std::memory_order_relaxed));
    if (claimer == kUnclaimed || claimer > workers_.size()) return false;
    drain(static_cast<std::uint32_t>(claimer - 1));
    return next.state == JobState::kReady;
  }
  if (!ready_.empty()) return true;
  for (std::uint32_t worker = 0; worker < workers_.size(); ++worker) drain(worker);
  return !ready_.empty();
}

void Manager::drain(std::uint32_t index) {
  WorkerRecord& worker = workers_[index];
  if (!worker.results) return;
  while (const ResultSlot* slot = worker.results->front()) {
    receive(index, *slot);
    worker.results->pop();
  }
}

void Manager::receive(std::uint32_t index, const ResultSlot& shared) {
  WorkerRecord& worker = workers_[index];
  worker.has_published = true;
  startup_deaths_ = 0;
  // What is checked below must not change afterwards: read from the copy alone.
  constexpr std::size_t kHead = offsetof(ResultSlot, bytes);
  const std::uint64_t job = shared.job;
  JobRecord& job_record = record(job);
  const bool wanted = job != kNoJob && job < produced_ && job_record.number == job &&
                      job_record.state == JobState::kUnderWay;
  ResultSlot scratch;
  ResultSlot& slot = wanted ? job_record.slot : scratch;
  std::memcpy(&slot, &shared, kHead);
  const std::uint64_t refs = slot.block_count * std::uint64_t{sizeof(BlockRef)};
  const std::uint64_t inline_bytes =
      slot.external != 0 ? sizeof(BlockRef) : refs + slot.payload_bytes;
  if (slot.job != job || inline_bytes > kResultInlineBytes) {
    fail_broken("a worker published a malformed result");
  }
  std::memcpy(slot.bytes, shared.bytes, inline_bytes);
  worker.received_bytes += slot.handed_bytes;

  std::vector<BlockRef> scratch_blocks;
  std::vector<std::byte> scratch_payload;
  std::vector<BlockRef>& blocks = wanted ? job_record.blocks : scratch_blocks;
  std::vector<std::byte>& external = wanted ? job_record.external_payload : scratch_payload;
  if (!lease_blocks(worker, slot, blocks, external)) {
    fail_broken("a worker published a block that it cannot have");
  }
  const std::span<const std::byte> payload =
      slot.external != 0 ? std::span<const std::byte>(external)
                         : std::span<const std::byte>(slot.bytes + refs, slot.payload_bytes);

  if (slot.kind == ResultKind::kStartupError) {
    startup_payload_.assign(payload.begin(), payload.end());
    for (const BlockRef& block : blocks) worker.arena->release(block.id);
    startup_error_.emplace();
    startup_error_->kind = OutcomeKind::kStartupError;
    startup_error_->worker = index;
    startup_error_->payload = startup_payload_;
    return;
  }
  if (!wanted) {  // of a pass that was given up
    for (const BlockRef& block : blocks) worker.arena->release(block.id);
    const auto stale = stale_.find(job);
    if (stale != stale_.end()) {
      free_arguments(stale->second.arguments);
      stale_.erase(stale);
    }
    return;
  }
  Outcome outcome;
  outcome.kind = slot.kind == ResultKind::kError ? OutcomeKind::kError : OutcomeKind::kElement;
  outcome.worker = index;
  outcome.arena = worker.arena;
  outcome.blocks = blocks;
  outcome.payload = payload;
  outcome.array_bytes = slot.array_bytes;
  for (const BlockRef& block : blocks) ready_bytes_ += block.bytes;
  outcome.moved = slot.moved;
  outcome.copied = slot.copied;
  finish(job_record, outcome);
}

bool Manager::lease_blocks(WorkerRecord& worker, const ResultSlot& slot,
                           std::vector<BlockRef>& blocks, std::vector<std::byte>& external) {
  blocks.clear();
  const std::byte* refs = slot.bytes;
  BlockRef envelope{};
  if (slot.external != 0) {
    std::memcpy(&envelope, slot.bytes, sizeof envelope);
    const std::uint64_t expected =
        slot.block_count * std::uint64_t{sizeof(BlockRef)} + slot.payload_bytes;
    if (envelope.bytes != expected ||
        !worker.arena->lease(envelope.id, envelope.offset, envelope.bytes)) {
      return false;
    }
    leased_bytes_ += envelope.bytes;
    const std::byte* begin = worker.arena->memory().data() + envelope.offset;
    external.assign(begin, begin + envelope.bytes);
    worker.arena->release(envelope.id);
    refs = external.data();
  }
  for (const BlockRef& shared : block_refs(refs, slot.block_count)) {
    BlockRef block;
    std::memcpy(&block, &shared, sizeof block);
    if (!worker.arena->lease(block.id, block.offset, block.bytes)) return false;
    leased_bytes_ += block.bytes;
    blocks.push_back(block);
  }
  if (slot.external != 0) {
    external.erase(external.begin(), external.begin() + static_cast<std::ptrdiff_t>(
                                                            slot.block_count * sizeof(BlockRef)));
  }
  return true;
}

void Manager::finish(JobRecord& job, Outcome outcome) {
  outcome.epoch = job.epoch;
  outcome.position = job.position;
  job.outcome = outcome;
  job.state = JobState::kReady;
  if (!ordered_) ready_.push_back(job.number);
}

Outcome Manager::take(bool ordered) {
  const bool has_element =
      ordered ? delivered_ < produced_ && record(delivered_).state == JobState::kReady
              : !ready_.empty();
  if (!has_element) return *startup_error_;
  const std::uint64_t number = ordered ? delivered_ : ready_.front();
  if (!ordered) ready_.pop_front();
  JobRecord& job = record(number);
  job.state = JobState::kDelivered;
  for (const BlockRef& block : job.outcome.blocks) ready_bytes_ -= block.bytes;
  free_arguments(job.arguments);
  job.arguments.clear();
  ++taken_since_wake_;
  advance_delivered();
  return job.outcome;
}

void Manager::advance_delivered() {
  while (delivered_ < produced_ && record(delivered_).state == JobState::kDelivered) ++delivered_;
  channel_->control().header().delivered.store(delivered_, std::memory_order_relaxed);
}

bool Manager::should_copy_out(const Outcome& outcome) const {
  const ControlHeader& header = channel_->control().header();
  const std::uint64_t released = header.released_bytes.load(std::memory_order_relaxed);
  // Half of the limit for what the user keeps, so that half is left for what is under way: were it
  // all kept, the workers would run one at a time.
  const std::uint64_t kept = leased_bytes_ - std::min(leased_bytes_, released + ready_bytes_);
  if (kept > header.memory_limit / 2) return true;
  return outcome.arena != nullptr && outcome.arena->held_blocks() > shm::kMaxBlocks / 2;
}

void Manager::release_ready(JobRecord& job) {
  for (const BlockRef& block : job.outcome.blocks) {
    ready_bytes_ -= block.bytes;
    job.outcome.arena->release(block.id);
  }
  job.outcome = {};
}

void Manager::abandon() {
  for (std::uint64_t number = delivered_; number < produced_; ++number) {
    JobRecord& job = record(number);
    if (job.state == JobState::kUnderWay) {
      JobSlot& slot = channel_->control().job(number);
      if (!cancel_job(slot, number)) {
        const std::uint64_t claimer = claim_claimer(slot.claim.load(std::memory_order_relaxed));
        stale_[number] = {static_cast<std::uint32_t>(claimer - 1), std::move(job.arguments)};
        job.arguments.clear();
      }
    } else if (job.state == JobState::kReady) {
      release_ready(job);
    }
    free_arguments(job.arguments);
    job.arguments.clear();
    job.state = JobState::kDelivered;
  }
  ready_.clear();
  advance_delivered();
}

// ------------------------------------------------------------------ deaths

void Manager::handle_messages() {
  Received received{};
  for (;;) {
    ReceiveState state = ReceiveState::kClosed;
    try {
      state = receive_message(socket_.get(), received, false);
    } catch (const shm::Error& error) {
      broken_ = error.what();
      return;
    }
    if (state == ReceiveState::kNothing) return;
    if (state == ReceiveState::kClosed) {
      if (broken_.empty()) broken_ = "the fork server (pid " + std::to_string(server_) + ") ended";
      return;
    }
    const Message& message = received.message;
    if (message.worker >= workers_.size()) continue;
    WorkerRecord& worker = workers_[message.worker];
    if (message.incarnation != worker.incarnation) continue;
    switch (message.type) {
      case MessageType::kSpawned:
        worker.pid = message.pid;
        if (!received.fds.empty()) worker.pidfd = std::move(received.fds.front());
        break;
      case MessageType::kExited:
        on_exit(message.worker, message.status);
        break;
      case MessageType::kFailed:
        broken_ = std::string("a worker could not be started: ") + std::strerror(message.status);
        return;
      default:
        break;
    }
  }
}

void Manager::on_exit(std::uint32_t index, int status) {
  WorkerRecord& worker = workers_[index];
  // The kernel says it is dead: everything it published is there.
  drain(index);
  worker.alive = false;
  worker.pidfd.reset();
  worker.results.reset();
  worker.arena->retire();
  worker.arena->drop_reference();
  worker.arena = nullptr;
  WorkerCell& cell = channel_->control().cell(index);
  cell.handed_bytes.store(worker.received_bytes, std::memory_order_relaxed);
  cell.sleep.reason.store(shm::kAwake, std::memory_order_relaxed);
  for (auto stale = stale_.begin(); stale != stale_.end();) {
    if (stale->second.worker != index) {
      ++stale;
      continue;
    }
    free_arguments(stale->second.arguments);
    stale = stale_.erase(stale);
  }
  if (startup_error_) return;

  bool lost = false;
  for (std::uint64_t number = delivered_; number < produced_; ++number) {
    if (record(number).state != JobState::kUnderWay) continue;
    const std::uint64_t claim =
        channel_->control().job(number).claim.load(std::memory_order_acquire);
    if (claim == claim_word(number, claimer_of(index))) {
      lost = true;
      lose_job(number, index, status);
    }
  }
  // A worker that dies again and again before it runs anything would be replaced for ever.
  if (!lost && !worker.has_published && ++startup_deaths_ > options_.max_restarts) {
    broken_ = "workers end before they run anything (the last one, pid " +
              std::to_string(worker.pid) + ", with wait status " + std::to_string(status) + ")";
    return;
  }
  ++worker.incarnation;
  ++restarts_;
  spawn(index);
  // The dead one may have swallowed a ring that was meant for the others, too.
  ring_for_jobs(true);
}

void Manager::lose_job(std::uint64_t number, std::uint32_t index, int status) {
  JobRecord& job = record(number);
  ++job.attempts;
  if (options_.restart_workers && job.attempts <= options_.max_restarts) {
    unclaim_job(channel_->control().header().jobs, channel_->control().job(number), number);
    return;
  }
  Outcome outcome;
  outcome.kind = OutcomeKind::kWorkerDied;
  outcome.worker = index;
  outcome.pid = workers_[index].pid;
  outcome.status = status;
  outcome.attempts = job.attempts;
  outcome.out_of_memory =
      WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && shm::oom_kill_count() != oom_kills_;
  finish(job, outcome);
}

void Manager::fail_broken(const std::string& what) {
  broken_ = what;
  throw shm::Error(shm::ErrorCode::kBroken, what);
}

// ------------------------------------------------------------------ the end

void Manager::close() noexcept {
  if (!socket_.is_open()) return;
  if (in_forked_child()) {
    // The processes are the parent's business; leases keep their arenas mapped.
    socket_.release();
    return;
  }
  bool has_workers = false;
  for (const WorkerRecord& worker : workers_) has_workers |= worker.pid != 0;
  // Not close(): children that user code forked may hold copies of the descriptor.
  ::shutdown(socket_.get(), SHUT_RDWR);
  // A server that has forked nothing yet is still importing: nothing is lost by not waiting for it.
  if (server_pidfd_.is_open() && (!has_workers || !wait_for_end(server_pidfd_.get(), 5000))) {
    kill_by_pidfd(server_pidfd_.get(), SIGKILL);
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
  for (std::uint64_t number = delivered_; number < produced_; ++number) {
    if (record(number).state == JobState::kReady) release_ready(record(number));
    record(number).state = JobState::kDelivered;
  }
  ready_.clear();
  delivered_ = produced_;
  for (WorkerRecord& worker : workers_) {
    worker.results.reset();
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
  bell_.reset();
}

ManagerStats Manager::stats() const { return {restarts_, channel_->control().outstanding_bytes()}; }

std::vector<pid_t> Manager::worker_pids() const {
  std::vector<pid_t> pids;
  for (const WorkerRecord& worker : workers_) {
    if (worker.alive && worker.pid != 0) pids.push_back(worker.pid);
  }
  return pids;
}

}  // namespace stook::workers
