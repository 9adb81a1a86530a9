#include "workers/worker.h"

#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "shm/error.h"
#include "shm/eventfd.h"

namespace stook::workers {

namespace {

// Blocks a worker may have handed over before it pauses; ids beyond are for what user code holds.
constexpr std::uint64_t kMaxHandedBlocks = shm::kMaxBlocks / 8 * 7;

std::uint64_t size_of(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) shm::throw_system_error("fstat of shared memory");
  return static_cast<std::uint64_t>(status.st_size);
}

}  // namespace

shm::ArenaLayout arena_layout(const ControlHeader& control) {
  return {control.result_capacity, sizeof(ResultSlot), control.arena_bytes};
}

Worker::Worker(WorkerBirth birth, std::chrono::milliseconds idle_pause)
    : birth_(std::move(birth)),
      idle_pause_(idle_pause),
      bell_watch_(::epoll_create1(EPOLL_CLOEXEC)),
      control_memory_(birth_.control.get(), size_of(birth_.control.get()),
                      shm::Access::kReadWrite) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  if (!bell_watch_.is_open() ||
      ::epoll_ctl(bell_watch_.get(), EPOLL_CTL_ADD, birth_.own_bell.get(), &event) != 0) {
    shm::throw_system_error("epoll for a worker's doorbell");
  }
  const auto& header = *reinterpret_cast<const ControlHeader*>(control_memory_.data());
  if (header.magic != kControlMagic || birth_.index >= header.worker_count) {
    throw shm::Error(shm::ErrorCode::kBroken, "the control memory is not this version's");
  }
  control_ = Control(control_memory_.data(), {header.worker_count, header.job_capacity});
  birth_.worker_count = header.worker_count;
  items_are_told_ = header.items_are_told != 0;
  has_timeout_ = header.element_timeout != 0;
  arguments_ = shm::Mapping(birth_.arguments.get(), header.arguments_bytes, shm::Access::kReadOnly);
  arena_ = std::make_unique<WorkerArena>(std::move(birth_.arena), arena_layout(header));
  auto* slots =
      reinterpret_cast<ResultSlot*>(arena_->memory().data() + shm::ArenaLayout::kSlotsOffset);
  results_.emplace(shm::arena_header(arena_->memory()).results, slots, header.result_capacity);
  // The earlier incarnation's count goes on: the parent has set it right (manager.cpp).
  handed_bytes_ = control_.cell(birth_.index).handed_bytes.load(std::memory_order_relaxed);
}

void Worker::run(JobRunner& runner) {
  for (;;) {
    Job job{};
    take_payload(wait_for_job(runner), job);
    job_ = job.number;
    begin_item(0);
    runner.run(job, *this);
    if (has_timeout_) control_.cell(birth_.index).item_begun.store(0, std::memory_order_relaxed);
  }
}

void Worker::tell_item(std::uint64_t item) noexcept {
  WorkerCell& cell = control_.cell(birth_.index);
  // The time first, which tells one item from another: whoever is killed for the item before, and
  // between the two stores, is then seen to have come on. Release holds the compiler to it; what a
  // killed process has stored, the parent sees once the kernel told it of the death.
  if (has_timeout_) cell.item_begun.store(monotonic_nanoseconds(), std::memory_order_relaxed);
  cell.progress.store(progress_word(job_, std::min(item + 1, kMostItems)),
                      std::memory_order_release);
}

std::optional<std::uint64_t> Worker::claim(Lack& lack) {
  lack = Lack::kJob;
  ControlHeader& header = control_.header();
  return claim_lowest(header.jobs, control_.jobs(), control_.job_capacity(), birth_.index,
                      [&](std::uint64_t job) {
                        if (control_.outstanding_bytes() < header.memory_limit &&
                            arena_->live_blocks() < kMaxHandedBlocks) {
                          return true;
                        }
                        // Short of memory, but the consumer waits for this one: it never waits for
                        // memory.
                        if (job == header.delivered.load(std::memory_order_relaxed)) return true;
                        lack = Lack::kMemory;
                        return false;
                      });
}

std::uint64_t Worker::wait_for_job(JobRunner& runner) {
  Lack lack{};
  if (const auto job = claim(lack)) return *job;
  ControlHeader& header = control_.header();
  WorkerCell& cell = control_.cell(birth_.index);
  // A parent that waits for several elements at once would wait for what this worker will not do.
  if (shm::take_sleeper(header.parent,
                        [](std::uint64_t reason) { return (reason & kExact) == 0; })) {
    shm::ring_eventfd(birth_.parent_bell.get());
  }
  runner.before_sleep();
  publish_memory();
  int pause = static_cast<int>(idle_pause_.count());
  std::optional<std::uint64_t> job;
  while (!job) {
    if (lack == Lack::kMemory) {
      // A release ends this sleep; so does a delivery (below), for it may make the job the next one
      // to deliver, which never waits for memory.
      cell.sleep.reason.store(kSleepsForMemory, std::memory_order_relaxed);
      header.memory_wanted.exchange(1, std::memory_order_release);
      shm::announce_sleep(cell.sleep, kSleepsForMemory, header.job_wanted);
    } else {
      shm::announce_sleep(cell.sleep, kSleepsForJob, header.job_wanted);
    }
    job = claim(lack);
    if (!job) {
      if (profile_ != nullptr) profile_->begin_wait(what_is_lacking(lack));
      sleep_until_rung(pause);
      if (profile_ != nullptr) profile_->end_wait();
      job = claim(lack);
    }
    shm::wake_up(cell.sleep);
  }
  runner.after_sleep();
  return *job;
}

void Worker::set_profile(ProfileCell& cell, std::uint64_t window) noexcept {
  profile_ = &cell;
  profile_window_ = window;
  cell.begin_worker();
}

ProfileWait Worker::what_is_lacking(Lack lack) const noexcept {
  if (lack == Lack::kMemory) return ProfileWait::kMemory;
  const ControlHeader& header = control_.header();
  const std::uint64_t delivered = header.delivered.load(std::memory_order_relaxed);
  const std::uint64_t produced = header.jobs.produced.load(std::memory_order_relaxed);
  // Where jobs come from Python, the one in place of an element is dealt at the next element.
  if (produced - delivered + 1 < profile_window_) return ProfileWait::kJob;
  const bool parent_sleeps = header.parent.reason.load(std::memory_order_relaxed) != 0;
  return parent_sleeps ? ProfileWait::kOrder : ProfileWait::kConsumer;
}

void Worker::sleep_until_rung(int& pause) {
  // The sleep stays announced throughout, so whoever has a job rings, and a ring is not lost while
  // memory is given back: it is the next thing that the watch tells.
  epoll_event event{};
  for (;;) {
    // The one place where a worker waits. EINTR: Python's signal flags are looked at by the job.
    if (::epoll_wait(bell_watch_.get(), &event, 1, pause) != 0) return;
    while (arena_->give_back_idle()) {
      if (::epoll_wait(bell_watch_.get(), &event, 1, 0) != 0) return;
    }
    publish_memory();
    // The parent returns blocks without a ring, so they have to be looked for; where nobody holds
    // one, nothing will come.
    pause = arena_->live_blocks() != 0 ? static_cast<int>(idle_pause_.count()) : -1;
  }
}

void Worker::publish_memory() {
  const shm::BlockStats stats = arena_->stats();
  WorkerCell& cell = control_.cell(birth_.index);
  cell.mapped_bytes.store(stats.mapped_bytes, std::memory_order_relaxed);
  cell.live_bytes.store(stats.live_bytes, std::memory_order_relaxed);
  cell.idle_bytes.store(stats.idle_bytes, std::memory_order_relaxed);
}

void Worker::take_payload(std::uint64_t number, Job& job) {
  const JobSlot& slot = control_.job(number);
  job.number = number;
  job.epoch = slot.epoch;
  job.position = slot.position;
  job.kind = slot.kind;
  const std::uint64_t bytes = slot.payload_bytes;
  const std::uint64_t refs = slot.block_count * sizeof(BlockRef);
  const std::byte* payload = nullptr;
  if (slot.external_offset != 0) {
    payload = arguments_.data() + slot.external_offset;
  } else {
    payload_.assign(slot.payload, slot.payload + std::min(bytes, kJobInlineBytes));
    payload = payload_.data();
  }
  job.blocks = {reinterpret_cast<const BlockRef*>(payload), refs / sizeof(BlockRef)};
  job.payload = {payload + refs, bytes - refs};
  if (slot.losses_count != 0) {
    job.losses = {reinterpret_cast<const Loss*>(arguments_.data() + slot.losses_offset),
                  slot.losses_count};
  }
  // SYNC(jobs.taken): released here, acquired in Manager::slot_is_free, so that the parent may
  // reuse the slot of a job that was given up while this worker runs it.
  control_.cell(birth_.index).taken_job.store(number + 1, std::memory_order_release);
}

bool Worker::publish(const ResultDraft& draft) {
  const std::uint64_t ref_count = draft.moved_blocks.size() + draft.made_blocks.size();
  const std::uint64_t refs = ref_count * sizeof(BlockRef);
  const std::uint64_t envelope = refs + draft.payload.size();
  ResultSlot* slot = results_->prepare();
  // The ring holds more slots than there can be jobs under way.
  if (slot == nullptr) throw shm::Error(shm::ErrorCode::kBroken, "the result ring is full");

  BlockRef envelope_block{};
  std::byte* bytes = slot->bytes;
  if (envelope > kResultInlineBytes) {
    const auto allocation = arena_->allocate(envelope);
    if (!allocation) return false;
    bytes = allocation->data;
    envelope_block = {allocation->block.offset, envelope, allocation->block.id, 0};
    std::memcpy(slot->bytes, &envelope_block, sizeof envelope_block);
  }
  slot->job = draft.job;
  slot->payload_bytes = draft.payload.size();
  slot->kind = draft.kind;
  slot->block_count = static_cast<std::uint32_t>(ref_count);
  slot->external = envelope > kResultInlineBytes ? 1 : 0;
  slot->array_bytes = draft.array_bytes;
  slot->moved = draft.moved;
  slot->copied = draft.copied;
  slot->segments = draft.segments;
  slot->failed = draft.failed;
  slot->consumed = draft.consumed;
  std::uint64_t handed = envelope_block.bytes;
  for (const BlockRef& block : draft.moved_blocks) {
    std::memcpy(bytes, &block, sizeof block);
    bytes += sizeof block;
    handed += block.bytes;
  }
  for (const BlockRef& block : draft.made_blocks) {
    std::memcpy(bytes, &block, sizeof block);
    bytes += sizeof block;
    handed += block.bytes;
  }
  if (!draft.payload.empty()) std::memcpy(bytes, draft.payload.data(), draft.payload.size());
  slot->handed_bytes = handed;

  // Before the commit, so that the parent cannot return a block which is not yet known as handed
  // over. A kill in between costs nothing: the whole arena goes with the worker.
  if (handed != 0) {
    arena_->hand_over(draft.moved_blocks);
    arena_->hand_over(draft.made_blocks);
    if (slot->external != 0) arena_->hand_over({&envelope_block, 1});
    handed_bytes_ += handed;
    control_.cell(birth_.index).handed_bytes.store(handed_bytes_, std::memory_order_relaxed);
  }
  publish_memory();  // whoever has the element sees figures that include it
  results_->publish();
  wake_parent_for(draft.job);
  if (!draft.made_blocks.empty()) arena_->release_own(draft.made_blocks);
  if (slot->external != 0) arena_->release_own({&envelope_block, 1});
  return true;
}

void Worker::wake_parent_for(std::uint64_t job) {
  if (shm::take_sleeper(control_.header().parent,
                        [job](std::uint64_t reason) { return parent_wants(reason, job); })) {
    shm::ring_eventfd(birth_.parent_bell.get());
  }
}

}  // namespace stook::workers
