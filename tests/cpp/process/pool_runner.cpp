#include "tests/cpp/process/pool_runner.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "shm/ring.h"

namespace stook {

using workers::BlockRef;

namespace {

class Runner : public workers::JobRunner {
 public:
  Runner(Blackboard& blackboard, int gate) : blackboard_(blackboard), gate_(gate) {}

  void before_sleep() override {}
  void after_sleep() override {}

  void run(const workers::Job& job, workers::Worker& worker) override {
    Order order;
    std::memcpy(&order, job.payload.data(), sizeof order);
    if (job.payload.size() != sizeof order + order.filler) ++blackboard_.wrong;
    ++blackboard_.started;
    switch (order.act) {
      case Act::kMake:
      case Act::kMakeCopied:
        return make(job, worker, order);
      case Act::kMakeEnvelope:
        return make_envelope(job, worker, order);
      case Act::kRaise:
        return raise_error(job, worker);
      case Act::kSkip:
        return skip(job, worker);
      case Act::kDie:
        ::kill(::getpid(), SIGKILL);
        break;
      case Act::kDieWithArray:
        die_with_array(job, worker, order);
        break;
      case Act::kDieHavingCounted:
        if (worker.incarnation() != 0) return make(job, worker, order);
        count_what_is_not_published(worker);
        ::kill(::getpid(), SIGKILL);
        break;
      case Act::kDieOnce:
        if (worker.incarnation() == 0) die_with_array(job, worker, order);
        return make(job, worker, order);
      case Act::kDieAfterPublish:
        make(job, worker, order);
        ::kill(::getpid(), SIGKILL);
        break;
      case Act::kExit:
        ::_exit(0);
      case Act::kStick:
        stick();
      case Act::kStickOnce:
        if (worker.incarnation() == 0) stick();
        return make(job, worker, order);
      case Act::kStickAfterPublish:
        make(job, worker, order);
        stick();
      case Act::kItems:
        return run_items(job, worker, order);
      case Act::kWaitAtGate:
        wait_at_gate(job, order);
        return make(job, worker, order);
      case Act::kLeaveChild:
        leave_child();
        return make(job, worker, order);
      case Act::kLieAboutOffset:
      case Act::kLieAboutId:
      case Act::kLieAboutSize:
      case Act::kLieAboutOverflow:
      case Act::kLieAboutSecond:
      case Act::kLieAboutBlocks:
        return lie(job, worker, order.act);
    }
  }

 private:
  static std::optional<workers::WorkerArena::Allocation> array_of(const workers::Job& job,
                                                                  workers::Worker& worker,
                                                                  const Order& order,
                                                                  ElementHead& head) {
    for (std::uint64_t i = 0; i < order.spin; ++i)
      std::atomic_signal_fence(std::memory_order_seq_cst);
    head = {job.epoch, job.position, order.bytes, 0, ::getpid(), 1};
    const auto block = worker.arena().allocate(order.bytes);
    if (block) head.sum = write_array(block->data, order.bytes, job.epoch, job.position);
    return block;
  }

  void make(const workers::Job& job, workers::Worker& worker, const Order& order) {
    ElementHead head{};
    const auto block = array_of(job, worker, order, head);
    workers::ResultDraft draft;
    draft.job = job.number;
    if (!block) return publish_error(draft, worker, "no room for the array");
    const BlockRef ref{block->block.offset, block->block.capacity, block->block.id, 0};
    draft.payload = std::as_bytes(std::span(&head, 1));
    draft.array_bytes = order.bytes;
    if (order.act == Act::kMakeCopied) {
      draft.made_blocks = {&ref, 1};
      draft.copied = 1;
    } else {
      draft.moved_blocks = {&ref, 1};
      draft.moved = 1;
    }
    if (!worker.publish(draft)) return publish_error(draft, worker, "no room for the envelope");
    if (order.act != Act::kMakeCopied) worker.arena().free(block->data);
  }

  static void make_envelope(const workers::Job& job, workers::Worker& worker, const Order& order) {
    ElementHead head{job.epoch, job.position, order.bytes, 0, ::getpid(), 0};
    std::vector<std::byte> envelope(sizeof head + order.bytes);
    head.sum = write_array(envelope.data() + sizeof head, order.bytes, job.epoch, job.position);
    std::memcpy(envelope.data(), &head, sizeof head);
    workers::ResultDraft draft;
    draft.job = job.number;
    draft.payload = envelope;
    if (!worker.publish(draft)) publish_error(draft, worker, "no room for the envelope");
  }

  static void publish_error(const workers::ResultDraft& draft, workers::Worker& worker,
                            const std::string& text) {
    workers::ResultDraft error;
    error.job = draft.job;
    error.kind = workers::ResultKind::kError;
    error.payload = std::as_bytes(std::span(text));
    worker.publish(error);
  }

  static void skip(const workers::Job& job, workers::Worker& worker) {
    workers::ResultDraft draft;
    draft.job = job.number;
    draft.kind = workers::ResultKind::kSkipped;
    draft.failed = static_cast<std::uint32_t>(job.position);
    draft.consumed = static_cast<std::uint32_t>(job.position + 1);
    worker.publish(draft);
  }

  static void raise_error(const workers::Job& job, workers::Worker& worker) {
    workers::ResultDraft draft;
    draft.job = job.number;
    publish_error(draft, worker, "error of job " + std::to_string(job.position));
  }

  static void die_with_array(const workers::Job& job, workers::Worker& worker, const Order& order) {
    ElementHead head{};
    (void)array_of(job, worker, order, head);
    ::kill(::getpid(), SIGKILL);
  }

  // As a kill between the count of a block and its publication leaves it.
  static void count_what_is_not_published(workers::Worker& worker) {
    control_memory().cell(worker.index()).handed_bytes.fetch_add(4096);
  }

  void wait_at_gate(const workers::Job& job, const Order& order) {
    ++blackboard_.at_gate;
    std::uint64_t one = 0;
    while (::read(gate_, &one, sizeof one) < 0 && errno == EINTR) {
    }
    for (std::uint64_t i = sizeof order; i < job.payload.size(); ++i) {
      if (job.payload[i] != filler_of(job.epoch)) {
        ++blackboard_.wrong;
        break;
      }
    }
    ++blackboard_.past_gate;
  }

  [[noreturn]] void stick() {
    blackboard_.stuck_worker = ::getpid();
    ++blackboard_.stuck;
    for (;;) ::pause();
  }

  // Eight items; those that were lost before are left out. The result says which were done.
  void run_items(const workers::Job& job, workers::Worker& worker, const Order& order) {
    ElementHead head{job.epoch, job.position, 0, job.losses.size(), ::getpid(), 0};
    for (std::uint32_t item = 0; item < 8; ++item) {
      const auto has = [item](std::uint64_t set) { return (set >> item & 1) != 0; };
      const bool was_lost = std::any_of(job.losses.begin(), job.losses.end(),
                                        [item](const auto& loss) { return loss.item == item; });
      if (was_lost && !has(order.bytes >> 16)) continue;
      worker.begin_item(item);
      for (std::uint64_t i = 0; i < order.spin; ++i)
        std::atomic_signal_fence(std::memory_order_seq_cst);
      if (has(order.bytes)) ::kill(::getpid(), SIGKILL);
      if (has(order.bytes >> 8)) stick();
      head.bytes |= std::uint64_t{1} << item;
    }
    std::vector<std::byte> payload(sizeof head + job.losses.size_bytes());
    std::memcpy(payload.data(), &head, sizeof head);
    if (!job.losses.empty()) {
      std::memcpy(payload.data() + sizeof head, job.losses.data(), job.losses.size_bytes());
    }
    workers::ResultDraft draft;
    draft.job = job.number;
    draft.payload = payload;
    worker.publish(draft);
  }

  void leave_child() {
    const pid_t child = ::fork();
    if (child == 0) {
      for (;;) ::pause();
    }
    blackboard_.child = child;
  }

  // Writes the slot by hand; the only result that this worker ever publishes.
  void lie(const workers::Job& job, workers::Worker& worker, Act act) {
    const shm::Mapping& memory = worker.arena().memory();
    const std::uint64_t capacity = 2;  // a lone first result lies in slot 0 whatever the capacity
    shm::RingWriter<workers::ResultSlot> ring(
        shm::arena_header(memory).results,
        reinterpret_cast<workers::ResultSlot*>(memory.data() + shm::ArenaLayout::kSlotsOffset),
        capacity);
    workers::ResultSlot* slot = ring.prepare();
    const auto block = worker.arena().allocate(4096);
    BlockRef ref{block->block.offset, block->block.capacity, block->block.id, 0};
    *slot = {};
    slot->job = job.number;
    slot->block_count = 1;
    if (act == Act::kLieAboutOffset) ref.offset = memory.size();
    if (act == Act::kLieAboutId) ref.id = shm::kMaxBlocks;
    if (act == Act::kLieAboutSize) slot->payload_bytes = workers::kResultInlineBytes;
    if (act == Act::kLieAboutOverflow) slot->payload_bytes = ~std::uint64_t{0} - 8;
    if (act == Act::kLieAboutBlocks) {
      // References and payload add up to the envelope's size only because the sum wraps round.
      slot->external = 1;
      slot->block_count = 100;
      slot->payload_bytes = 48 - 100 * sizeof(BlockRef);
      ref.bytes = 48;
    }
    std::memcpy(slot->bytes, &ref, sizeof ref);
    if (act == Act::kLieAboutSecond) {
      slot->block_count = 2;
      ref.id = shm::kMaxBlocks;
      std::memcpy(slot->bytes + sizeof ref, &ref, sizeof ref);
    }
    ring.publish();
    ++blackboard_.lies;
    for (;;) ::pause();
  }

  Blackboard& blackboard_;
  int gate_;
};

}  // namespace

std::byte filler_of(std::uint64_t epoch) { return static_cast<std::byte>(0x77 + epoch); }

std::unique_ptr<workers::JobRunner> make_runner(Blackboard& blackboard, int gate) {
  return std::make_unique<Runner>(blackboard, gate);
}

}  // namespace stook
