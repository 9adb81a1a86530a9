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
#include <string>
#include <system_error>
#include <utility>

#include "tests/cpp/process/pool_runner.h"
#include "workers/fork_server.h"

namespace stook {

using workers::Manager;
using workers::OutcomeKind;

namespace {

constexpr unsigned kSecondsUntilHung = 110;

std::uint64_t mixed(std::uint64_t epoch, std::uint64_t position, std::uint64_t i) {
  return (epoch * 1000003 + position * 8191 + i) * 0x9e3779b97f4a7c15ULL;
}

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
      worker.run(*make_runner(blackboard_, gate_));
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
  for (const workers::BlockRef& block : blocks_) outcome_.arena->release(block.id);
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

void Pool::wait_for_births(std::size_t workers) {
  while (manager_->worker_pids().size() < workers) manager_->poll(true);
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

workers::Control control_memory() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:stook-control") == std::string::npos) continue;
    auto* base = reinterpret_cast<std::byte*>(std::stoull(line, nullptr, 16));
    const auto& header = *reinterpret_cast<workers::ControlHeader*>(base);
    return {base, {header.worker_count, header.job_capacity}};
  }
  throw std::runtime_error("no control memory is mapped");
}

bool is_running(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(stat, line)) return false;
  const char state = line[line.rfind(')') + 2];
  if (state != 'Z' && state != 'X') return true;
  // A process is not dead before all its threads are: a sanitizer's, too.
  std::error_code gone;
  int threads = 0;
  std::filesystem::directory_iterator thread("/proc/" + std::to_string(pid) + "/task", gone);
  for (; !gone && thread != std::filesystem::directory_iterator(); thread.increment(gone)) {
    ++threads;
  }
  return threads > 1;
}

}  // namespace stook
