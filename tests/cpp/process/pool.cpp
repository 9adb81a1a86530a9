#include "tests/cpp/process/pool.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <new>
#include <stdexcept>
#include <utility>

#include "shm/ring.h"
#include "workers/fork_server.h"

namespace stook {

using workers::BlockRef;
using workers::Manager;
using workers::OutcomeKind;

namespace {

constexpr unsigned kSecondsUntilHung = 110;

std::uint64_t mixed(std::uint64_t epoch, std::uint64_t position, std::uint64_t i) {
  return (epoch * 1000003 + position * 8191 + i) * 0x9e3779b97f4a7c15ULL;
}

std::byte filler_of(std::uint64_t epoch) { return static_cast<std::byte>(0x77 + epoch); }

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

std::string stook_mappings() {
  std::ifstream maps("/proc/self/maps");
  std::string found;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:stook") != std::string::npos) found += line + "\n";
  }
  return found;
}

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
        for (;;) ::pause();
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
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("memfd:stook-control") == std::string::npos) continue;
      auto* base = reinterpret_cast<std::byte*>(std::stoull(line, nullptr, 16));
      const auto& header = *reinterpret_cast<workers::ControlHeader*>(base);
      const workers::Control control(base, {header.worker_count, header.job_capacity});
      control.cell(worker.index()).handed_bytes.fetch_add(4096);
    }
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

class Host : public workers::ForkHost {
 public:
  Host(Blackboard& blackboard, int gate, const PoolOptions& options)
      : blackboard_(blackboard), gate_(gate), options_(options) {}

  void before_fork() override {}
  void after_fork_in_server() override {}
  void on_interrupt() override { ++blackboard_.interrupts; }

  [[noreturn]] void run_worker(workers::WorkerBirth birth) override {
    if (options_.startup == Startup::kExit) ::_exit(17);
    try {
      workers::Worker worker(std::move(birth), options_.idle_pause);
      if (options_.startup == Startup::kError) {
        const std::string text = "the data set is not there";
        workers::ResultDraft draft;
        draft.job = ~std::uint64_t{0};
        draft.kind = workers::ResultKind::kStartupError;
        draft.payload = std::as_bytes(std::span(text));
        worker.publish(draft);
        ::_exit(1);
      }
      Runner runner(blackboard_, gate_);
      worker.run(runner);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "in a worker: %s\n", error.what());
    }
    ::_exit(99);
  }

 private:
  Blackboard& blackboard_;
  int gate_;
  const PoolOptions& options_;
};

}  // namespace

// ------------------------------------------------------------------ arrays

std::uint64_t write_array(std::byte* data, std::uint64_t bytes, std::uint64_t epoch,
                          std::uint64_t position) {
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < bytes / 8; ++i) {
    const std::uint64_t word = mixed(epoch, position, i);
    std::memcpy(data + 8 * i, &word, sizeof word);
    sum += word;
  }
  return sum;
}

std::uint64_t expected_sum(std::uint64_t bytes, std::uint64_t epoch, std::uint64_t position) {
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < bytes / 8; ++i) sum += mixed(epoch, position, i);
  return sum;
}

std::uint64_t sum_of(const std::byte* data, std::uint64_t bytes) {
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < bytes / 8; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + 8 * i, sizeof word);
    sum += word;
  }
  return sum;
}

// ------------------------------------------------------------------ elements

Element::Element(const workers::Outcome& outcome) : outcome_(outcome) {
  const auto* text = reinterpret_cast<const char*>(outcome.payload.data());
  payload_.assign(text, text + outcome.payload.size());
  blocks_.assign(outcome.blocks.begin(), outcome.blocks.end());
  if (outcome.kind == OutcomeKind::kElement && payload_.size() >= sizeof head_) {
    std::memcpy(&head_, payload_.data(), sizeof head_);
  }
}

Element::Element(Element&& other) noexcept
    : outcome_(other.outcome_),
      payload_(std::move(other.payload_)),
      blocks_(std::exchange(other.blocks_, {})),
      head_(other.head_) {}

std::string Element::fault() const {
  if (kind() != OutcomeKind::kElement) return "no element";
  if (payload_.size() < sizeof head_) return "the envelope is too short";
  if (head_.epoch != epoch() || head_.position != position()) {
    return "the element of job " + std::to_string(head_.position) + " came as that of job " +
           std::to_string(position());
  }
  if (head_.sum != expected_sum(head_.bytes, head_.epoch, head_.position)) return "a torn envelope";
  const std::byte* data = nullptr;
  if (head_.has_block != 0) {
    if (blocks_.size() != 1 || blocks_[0].bytes < head_.bytes) return "the block is not there";
    data = outcome_.arena->memory().data() + blocks_[0].offset;
  } else {
    if (payload_.size() != sizeof head_ + head_.bytes) return "the envelope was cut";
    data = reinterpret_cast<const std::byte*>(payload_.data()) + sizeof head_;
  }
  if (sum_of(data, head_.bytes) != head_.sum) return "the array's bytes are wrong";
  return "";
}

void Element::release() {
  for (const BlockRef& block : blocks_) outcome_.arena->release(block.id);
  blocks_.clear();
}

// ------------------------------------------------------------------ the pool

Pool::Pool(const PoolOptions& options) {
  void* page = ::mmap(nullptr, sizeof(Blackboard), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) throw std::bad_alloc();
  blackboard_ = new (page) Blackboard();
  gate_ = ::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
  int ends[2];
  if (gate_ < 0 || ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw std::runtime_error("no descriptors for a pool");
  }
  shm::FileDescriptor socket(ends[0]);
  const pid_t parent = ::getpid();
  server_ = ::fork();
  if (server_ == 0) {
    ::close(ends[0]);
    ::alarm(0);
    struct sigaction action{};
    action.sa_handler = [](int) {};
    ::sigaction(SIGUSR2, &action, nullptr);
    Host host(*blackboard_, gate_, options);
    try {
      workers::serve_forks(ends[1], parent, host);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "in the fork server: %s\n", error.what());
      ::_exit(1);
    }
    ++blackboard_->server_ended;
    ::_exit(0);
  }
  ::close(ends[1]);
  manager_ = std::make_unique<Manager>(options.manager, std::move(socket), server_);
}

Pool::~Pool() {
  manager_.reset();
  ::close(gate_);
  ::munmap(blackboard_, sizeof(Blackboard));
}

void Pool::open_gate(std::uint64_t workers) {
  if (::write(gate_, &workers, sizeof workers) != sizeof workers) std::abort();
}

void Pool::produce(std::uint64_t epoch, std::uint64_t position, const Order& order,
                   std::optional<std::uint32_t> worker) {
  std::vector<std::byte> payload(sizeof order + order.filler, filler_of(epoch));
  std::memcpy(payload.data(), &order, sizeof order);
  workers::JobOrder job;
  job.epoch = epoch;
  job.position = position;
  job.payload = payload;
  job.worker = worker;
  manager_->produce(job);
}

std::optional<Element> Pool::next(bool ordered) {
  for (;;) {
    switch (manager_->poll(ordered)) {
      case Manager::State::kReady:
        return Element(manager_->take(ordered));
      case Manager::State::kIdle:
        return std::nullopt;
      case Manager::State::kPending:
        manager_->wait(ordered, nullptr);
    }
  }
}

void Pool::run(std::uint64_t epoch, std::uint64_t count, bool ordered,
               const std::function<Order(std::uint64_t)>& order,
               const std::function<void(Element)>& take) {
  std::uint64_t produced = 0;
  for (;;) {
    while (produced < count && manager_->can_produce()) {
      produce(epoch, produced, order(produced));
      ++produced;
    }
    std::optional<Element> element = next(ordered);
    if (!element) {
      if (produced == count) return;
      continue;
    }
    take(std::move(*element));
  }
}

// ------------------------------------------------------------------ what a test must leave

void ProcessTest::SetUp() {
  ::alarm(kSecondsUntilHung);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  descriptors_ = open_descriptors();
}

void ProcessTest::TearDown() {
  wait_for_every_process();
  EXPECT_EQ(open_descriptors(), descriptors_) << "a descriptor was left";
  EXPECT_EQ(stook_mappings(), "") << "a mapping was left";
  ::alarm(0);
}

void ProcessTest::wait_for_every_process() {
  while (::waitpid(-1, nullptr, 0) > 0 || errno == EINTR) {
  }
  EXPECT_EQ(errno, ECHILD);
}

void Ledger::take(const Element& element) {
  ASSERT_EQ(element.fault(), "") << "element " << element.position();
  ASSERT_LT(element.position(), seen_.size());
  ++seen_[element.position()];
  if (ordered_) {
    ASSERT_EQ(element.position(), next_) << "out of order";
  }
  ++next_;
}

void Ledger::check() const {
  for (std::uint64_t position = 0; position < seen_.size(); ++position) {
    ASSERT_EQ(seen_[position], 1U) << "times that element " << position << " arrived";
  }
}

bool is_running(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(stat, line)) return false;
  const char state = line[line.rfind(')') + 2];
  return state != 'Z' && state != 'X';
}

}  // namespace stook
