// A pool of real processes without Python: the manager of production, a fork server, and workers
// whose "user code" does what each job tells it.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "workers/manager.h"
#include "workers/worker.h"

namespace stook {

// What user code does with a job.
enum class Act : std::uint32_t {
  kMake,               // an array, moved into the element
  kMakeCopied,         // an array, copied into a block made for the element
  kMakeEnvelope,       // `bytes` of envelope, no array
  kRaise,              // an error
  kSkip,               // nothing to deliver
  kDie,                // killed before anything is allocated
  kDieWithArray,       // killed with the array written, nothing published
  kDieOnce,            // as kDieWithArray, but only in a worker's first incarnation
  kDieHavingCounted,   // in the first incarnation: killed after a block was counted as handed over
  kDieAfterPublish,    // killed after the element was published
  kExit,               // ends with exit code 0
  kStick,              // never returns
  kStickOnce,          // the same, but only in a worker's first incarnation
  kStickAfterPublish,  // makes, and never returns
  kItems,       // eight items: sets of 8 bits in `bytes` say which die, stick, and run once lost
  kWaitAtGate,  // waits until the test opens the gate, checks its payload, then makes
  kLeaveChild,  // forks a child that outlives the job, then makes
  kLieAboutOffset,    // publishes a block that lies outside the arena
  kLieAboutId,        // publishes a block whose id cannot be
  kLieAboutSize,      // publishes an envelope larger than its slot
  kLieAboutOverflow,  // the same with a sum that wraps round
  kLieAboutSecond,    // publishes one block that is there and one that is not
  kLieAboutBlocks,    // publishes a large envelope that is shorter than its block references
};

struct Order {
  Act act = Act::kMake;
  std::uint32_t filler = 0;    // bytes that follow the order in the job's payload
  std::uint64_t bytes = 4096;  // of the array
  std::uint64_t spin = 0;      // rounds of work before the array is written
};

// The envelope of an element: how to recognise the array.
struct ElementHead {
  std::uint64_t epoch;
  std::uint64_t position;
  std::uint64_t bytes;
  std::uint64_t sum;
  std::int32_t pid;
  std::uint32_t has_block;
};

// Fills `bytes` (a multiple of 8) with words that depend on epoch, position and place; their sum.
std::uint64_t write_array(std::byte* data, std::uint64_t bytes, std::uint64_t epoch,
                          std::uint64_t position);
std::uint64_t expected_sum(std::uint64_t bytes, std::uint64_t epoch, std::uint64_t position);
std::uint64_t sum_of(const std::byte* data, std::uint64_t bytes);

// What test and workers share beside the pool's own memory.
struct Blackboard {
  std::atomic<std::uint64_t> started;       // jobs that reached user code
  std::atomic<std::uint64_t> at_gate;       // workers that wait, or have waited, at the gate
  std::atomic<std::uint64_t> stuck;         // jobs that will not return
  std::atomic<std::int32_t> stuck_worker;   // the pid of the last one that runs such a job
  std::atomic<std::uint64_t> past_gate;     // workers that left it, their payloads checked
  std::atomic<std::uint64_t> lies;          // results that cannot be, published
  std::atomic<std::uint64_t> wrong;         // payloads that changed under a waiting worker
  std::atomic<std::uint64_t> interrupts;    // signals that the server's wait saw
  std::atomic<std::uint64_t> server_ended;  // the server came to its own end
  std::atomic<std::int32_t> child;          // forked by kLeaveChild
};

enum class Startup { kFine, kError, kExit };

struct PoolOptions {
  workers::ManagerOptions manager{2, 4, std::uint64_t{1} << 30, true, 2};
  Startup startup = Startup::kFine;
  std::chrono::milliseconds idle_pause = workers::Worker::kIdlePause;
};

// An element that was taken; holds its leases until dropped.
class Element {
 public:
  explicit Element(const workers::Outcome& outcome);
  Element(Element&& other) noexcept;
  Element& operator=(Element&&) = delete;
  Element(const Element&) = delete;
  ~Element() { release(); }

  // Empty if the element is whole and what was asked for, else what is wrong with it.
  std::string fault() const;
  void release();

  workers::OutcomeKind kind() const { return outcome_.kind; }
  std::uint64_t epoch() const { return outcome_.epoch; }
  std::uint64_t position() const { return outcome_.position; }
  const workers::Outcome& outcome() const { return outcome_; }
  const ElementHead& head() const { return head_; }
  std::string text() const { return {payload_.begin(), payload_.end()}; }

 private:
  workers::Outcome outcome_;
  std::vector<char> payload_;
  std::vector<workers::BlockRef> blocks_;
  ElementHead head_{};
};

class Pool {
 public:
  explicit Pool(const PoolOptions& options = {});
  ~Pool();

  workers::Manager& manager() { return *manager_; }
  Blackboard& blackboard() { return *blackboard_; }
  pid_t server() const { return server_; }
  void open_gate(std::uint64_t workers);

  void produce(std::uint64_t epoch, std::uint64_t position, const Order& order,
               std::optional<std::uint32_t> worker = std::nullopt);
  // Until the manager has heard of so many births, and so of pids: elements may come before that.
  void wait_for_births(std::size_t workers = 1);
  // The next element, or nothing if nothing is under way. Throws shm::Error as the manager does.
  std::optional<Element> next(bool ordered);
  // Ends what next() would still wait for, and starts over.
  void abandon() { manager_->abandon(); }

  // Runs `count` jobs of `epoch` and gives each element to `take` as it arrives.
  void run(std::uint64_t epoch, std::uint64_t count, bool ordered,
           const std::function<Order(std::uint64_t position)>& order,
           const std::function<void(Element element)>& take);

 private:
  Blackboard* blackboard_ = nullptr;
  int gate_ = -1;
  pid_t server_ = 0;
  std::unique_ptr<workers::Manager> manager_;
};

// Fails a test that leaves a process, a descriptor or a mapping, and ends one that hangs. Orphans
// of killed processes come to the test, which can so wait for their end.
class ProcessTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // Reaps every child and orphan of the test; returns when there are none. A process that does not
  // end makes the test hang, and so fail.
  static void wait_for_every_process();

 private:
  std::size_t descriptors_ = 0;
};

// Elements 0 .. count - 1 exactly once each, whole; in order if `ordered`.
class Ledger {
 public:
  Ledger(std::uint64_t count, bool ordered) : seen_(count), ordered_(ordered) {}
  void take(const Element& element);
  void check() const;

 private:
  std::vector<std::uint32_t> seen_;
  bool ordered_;
  std::uint64_t next_ = 0;
};

bool is_running(pid_t pid);

// The control memory that this process has mapped: the only pool's.
workers::Control control_memory();

}  // namespace stook
