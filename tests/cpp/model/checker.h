// A model checker for the C++20 memory model, small enough to read.
//
// Code under test takes its atomics as a template parameter (shm/atomics.h). Given `ModelAtomics`,
// it runs on fibers of one thread, and `explore` drives it through every execution: every
// interleaving, every older store that a load may still return, every place in the modification
// order that a store may take. What is explored is the code of production, not a copy of it.
//
// The model. Each thread has a view: per location the newest store that it is bound to have seen. A
// load returns any store not older than that; a store goes anywhere behind it in the modification
// order; a read-modify-write is glued to the store that it reads. A release store carries its
// thread's view, an acquire load joins it, read-modify-writes carry on what they read (release
// sequences of C++20), and fences do the same for the relaxed accesses around them. A seq_cst fence
// joins a global view and adds to it, which is what [atomics.order] asks of pairs of such fences.
// Happens-before for plain data (`ModelVar`) is kept in vector clocks beside the views.
//
// What it does not show:
// - executions in which a load returns a store that is made later in the same interleaving (load
//   buffering): ISO C++ allows them for relaxed accesses, this checker (like RC11) does not;
// - seq_cst loads, stores and read-modify-writes in their full weakness: beside relaxed accesses
//   they are taken to be somewhat stronger than the standard says. Our protocols use seq_cst fences
//   only, and those are exact.
//
// Rules for scenarios: shared objects come from `Scenario::make`; threads are deterministic, own no
// heap memory (an execution is abandoned in the middle once it reaches a known state) and share
// nothing but model objects; loops end after finitely many reads. One exploration at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iosfwd>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace stook::model {

inline constexpr std::uint32_t kMaxThreads = 5;  // with the one that sets up and concludes

// A memory order in the code under test: one argument of one call.
struct Site {
  const char* file = "";
  unsigned line = 0;
  const char* function = "";
  const char* operation = "";  // "load", "fetch_or", "compare_exchange failure", "fence", ...

  bool operator==(const Site& other) const;
};

struct SiteOrder {
  Site site;
  std::memory_order order;
};

// Runs the code under test as if `site` asked for `order`.
struct Weakening {
  Site site;
  std::memory_order from;
  std::memory_order order;
};

struct Options {
  std::uint64_t max_executions = 3'000'000;
  std::uint32_t max_steps = 2'000;  // of one execution: beyond, a loop is taken to be endless
  std::optional<Weakening> weakening;
};

struct Report {
  std::string failure;  // empty: no execution fails
  std::string trace;    // the failing execution, one operation a line
  std::uint64_t executions = 0;
  std::uint64_t states = 0;
  bool complete = false;         // every execution was explored
  std::vector<SiteOrder> sites;  // the orders met, relaxed ones left out

  bool passed() const { return complete && failure.empty(); }
};

std::ostream& operator<<(std::ostream& out, const Report& report);

// One execution's threads and memory; `explore` makes a fresh one for every execution.
class Scenario {
 public:
  // A shared object, at the same address in every execution. Destroyed when the execution ends.
  template <class T, class... Args>
  T* make(Args&&... args) {
    T* object = new (allocate(sizeof(T), alignof(T))) T(std::forward<Args>(args)...);
    if constexpr (!std::is_trivially_destructible_v<T>) {
      destroy_later(object, [](void* p) { static_cast<T*>(p)->~T(); });
    }
    return object;
  }

  void thread(std::string name, std::function<void()> body);

  // A thread that may be asleep when all others have ended.
  void daemon(std::string name, std::function<void()> body);

  // Runs after every thread has ended, and sees all that they did.
  void finally(std::function<void()> body);

 private:
  void* allocate(std::size_t size, std::size_t alignment);
  void destroy_later(void* object, void (*destroy)(void*));
};

using Build = std::function<void(Scenario&)>;

// Explores every execution of what `build` sets up, up to the first that fails. A failure is a
// require() that does not hold, a data race, a deadlock or an endless loop.
Report explore(const Build& build, const Options& options = {});

// Fails the execution unless `condition` holds. In a thread it does not return in that case.
void require(bool condition, const char* message);

// Sleeps until `condition()` holds; it may look at EventFd::readable() alone. A thread that nobody
// wakes is a deadlock.
template <class Condition>
void block_until(const Condition& condition);

struct NamedScenario {
  std::string name;
  Build build;
};

// Every weaker version of every memory order that the scenarios meet in a file whose path ends in
// `file`, run through the scenarios until one fails. Returns those that no scenario finds, as
// "return.summary: fetch_or release -> relaxed", after the nearest SYNC comment above the line.
// `tried` counts all.
std::vector<std::string> surviving_weakenings(const std::vector<NamedScenario>& scenarios,
                                              const std::string& file, int* tried = nullptr);

namespace detail {

bool running();  // threads of a scenario, or its conclusion, are running
std::uint64_t load(const void* where, std::uint64_t initial, std::memory_order order,
                   const Site& site);
void store(const void* where, std::uint64_t initial, std::uint64_t value, std::memory_order order,
           const Site& site);
using Modify = std::uint64_t (*)(std::uint64_t before, std::uint64_t operand);
std::uint64_t modify(const void* where, std::uint64_t initial, Modify apply, std::uint64_t operand,
                     std::memory_order order, const Site& site);
bool compare_exchange(const void* where, std::uint64_t initial, std::uint64_t& expected,
                      std::uint64_t desired, bool weak, std::memory_order success,
                      std::memory_order failure, const Site& success_site,
                      const Site& failure_site);
void fence(std::memory_order order, const Site& site);

// Who touched a plain variable last; lies beside it.
struct Accesses {
  std::uint32_t writer = 0;
  std::uint32_t write_clock = 0;
  std::uint32_t read_clock[kMaxThreads] = {};
};
void read_plain(Accesses& accesses);
void write_plain(Accesses& accesses);

void block(bool (*ready)(const void*), const void* argument);
void register_counter(const std::uint64_t* counter);
void counter_step(const char* operation, const std::uint64_t* counter);
void counter_done(std::uint64_t value);

inline std::memory_order failure_order(std::memory_order success) {
  if (success == std::memory_order_acq_rel) return std::memory_order_acquire;
  if (success == std::memory_order_release) return std::memory_order_relaxed;
  return success;
}

}  // namespace detail

// Has the size and layout of std::atomic<T>: shared structures keep their static_asserts. Outside
// an exploration, and while a scenario is set up, it is a plain variable.
template <class T>
class ModelAtomic {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  using Order = std::memory_order;

 public:
  static constexpr bool is_always_lock_free = true;
  using value_type = T;

  ModelAtomic() = default;
  constexpr ModelAtomic(T value) : value_(value) {}
  ModelAtomic(const ModelAtomic&) = delete;
  ModelAtomic& operator=(const ModelAtomic&) = delete;

  T load(Order order = Order::seq_cst, const char* file = __builtin_FILE(),
         unsigned line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) const {
    if (!detail::running()) return value_;
    return from_bits(detail::load(this, to_bits(value_), order, {file, line, function, "load"}));
  }

  void store(T value, Order order = Order::seq_cst, const char* file = __builtin_FILE(),
             unsigned line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) {
    if (!detail::running()) {
      value_ = value;
      return;
    }
    detail::store(this, to_bits(value_), to_bits(value), order, {file, line, function, "store"});
  }

  T exchange(T value, Order order = Order::seq_cst, const char* file = __builtin_FILE(),
             unsigned line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) {
    return modify([](std::uint64_t, std::uint64_t operand) { return operand; }, value, order,
                  {file, line, function, "exchange"});
  }

  T fetch_add(T value, Order order = Order::seq_cst, const char* file = __builtin_FILE(),
              unsigned line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) {
    return modify(
        [](std::uint64_t before, std::uint64_t operand) {
          return to_bits(static_cast<T>(from_bits(before) + from_bits(operand)));
        },
        value, order, {file, line, function, "fetch_add"});
  }

  T fetch_sub(T value, Order order = Order::seq_cst, const char* file = __builtin_FILE(),
              unsigned line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) {
    return modify(
        [](std::uint64_t before, std::uint64_t operand) {
          return to_bits(static_cast<T>(from_bits(before) - from_bits(operand)));
        },
        value, order, {file, line, function, "fetch_sub"});
  }

  T fetch_or(T value, Order order = Order::seq_cst, const char* file = __builtin_FILE(),
             unsigned line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) {
    return modify([](std::uint64_t before, std::uint64_t operand) { return before | operand; },
                  value, order, {file, line, function, "fetch_or"});
  }

  T fetch_and(T value, Order order = Order::seq_cst, const char* file = __builtin_FILE(),
              unsigned line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) {
    return modify([](std::uint64_t before, std::uint64_t operand) { return before & operand; },
                  value, order, {file, line, function, "fetch_and"});
  }

  bool compare_exchange_strong(T& expected, T desired, Order success, Order failure,
                               const char* file = __builtin_FILE(),
                               unsigned line = __builtin_LINE(),
                               const char* function = __builtin_FUNCTION()) {
    return compare_exchange(expected, desired, false, success, failure, file, line, function);
  }

  bool compare_exchange_strong(T& expected, T desired, Order order = Order::seq_cst,
                               const char* file = __builtin_FILE(),
                               unsigned line = __builtin_LINE(),
                               const char* function = __builtin_FUNCTION()) {
    return compare_exchange(expected, desired, false, order, detail::failure_order(order), file,
                            line, function);
  }

  // May fail without a reason, once in each thread of an execution.
  bool compare_exchange_weak(T& expected, T desired, Order success, Order failure,
                             const char* file = __builtin_FILE(), unsigned line = __builtin_LINE(),
                             const char* function = __builtin_FUNCTION()) {
    return compare_exchange(expected, desired, true, success, failure, file, line, function);
  }

  bool compare_exchange_weak(T& expected, T desired, Order order = Order::seq_cst,
                             const char* file = __builtin_FILE(), unsigned line = __builtin_LINE(),
                             const char* function = __builtin_FUNCTION()) {
    return compare_exchange(expected, desired, true, order, detail::failure_order(order), file,
                            line, function);
  }

 private:
  static std::uint64_t to_bits(T value) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
  }
  static T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
  }

  T modify(detail::Modify apply, T operand, Order order, const Site& site) {
    if (!detail::running()) {
      const T before = value_;
      value_ = from_bits(apply(to_bits(before), to_bits(operand)));
      return before;
    }
    return from_bits(detail::modify(this, to_bits(value_), apply, to_bits(operand), order, site));
  }

  bool compare_exchange(T& expected, T desired, bool weak, Order success, Order failure,
                        const char* file, unsigned line, const char* function) {
    if (!detail::running()) {
      if (to_bits(value_) == to_bits(expected)) {
        value_ = desired;
        return true;
      }
      expected = value_;
      return false;
    }
    std::uint64_t bits = to_bits(expected);
    const bool exchanged =
        detail::compare_exchange(this, to_bits(value_), bits, to_bits(desired), weak, success,
                                 failure, {file, line, function, "compare_exchange success"},
                                 {file, line, function, "compare_exchange failure"});
    if (!exchanged) expected = from_bits(bits);
    return exchanged;
  }

  T value_{};  // as set up; the stores of an exploration are kept by the checker
};

// Stands in for shm::StdAtomics.
struct ModelAtomics {
  template <class T>
  using Atomic = ModelAtomic<T>;

  static void fence(std::memory_order order, const char* file = __builtin_FILE(),
                    unsigned line = __builtin_LINE(), const char* function = __builtin_FUNCTION()) {
    detail::fence(order, {file, line, function, "fence"});
  }
};

// Plain data. Two accesses of different threads, one of them a write, with no happens-before
// between them fail the execution.
template <class T>
class ModelVar {
 public:
  ModelVar() = default;
  ModelVar(T value) : value_(value) {}
  ModelVar(const ModelVar& other) : value_(other.get()) {}
  ModelVar& operator=(const ModelVar& other) {
    set(other.get());
    return *this;
  }
  ModelVar& operator=(T value) {
    set(value);
    return *this;
  }
  operator T() const { return get(); }

  T get() const {
    if (detail::running()) detail::read_plain(accesses_);
    return value_;
  }
  void set(T value) {
    if (detail::running()) detail::write_plain(accesses_);
    value_ = value;
  }

 private:
  T value_{};
  mutable detail::Accesses accesses_;
};

// An eventfd. By POSIX alone a ring makes none of the waker's stores visible to the sleeper; Linux
// takes the same lock in both calls, which does. Nothing but what says kSynchronises leans on it.
enum class EventFdOrder { kNone, kSynchronises };

class EventFd {
 public:
  explicit EventFd(EventFdOrder order = EventFdOrder::kNone) : order_(order) {
    detail::register_counter(&count_);
  }
  EventFd(const EventFd&) = delete;
  EventFd& operator=(const EventFd&) = delete;

  void ring() {
    if (order_ == EventFdOrder::kSynchronises) kernel_.fetch_add(1, std::memory_order_acq_rel);
    detail::counter_step("eventfd ring", &count_);
    ++count_;
    detail::counter_done(count_);
  }

  // Takes what was rung; false if nothing was.
  bool drain() {
    detail::counter_step("eventfd drain", &count_);
    const std::uint64_t count = std::exchange(count_, 0);
    detail::counter_done(count);
    if (order_ == EventFdOrder::kSynchronises) kernel_.fetch_add(1, std::memory_order_acq_rel);
    return count != 0;
  }

  // Sleeps until rung; takes nothing.
  void poll() {
    detail::block([](const void* self) { return static_cast<const EventFd*>(self)->readable(); },
                  this);
  }

  // As read() of a blocking eventfd.
  void wait() {
    poll();
    drain();
  }

  bool readable() const { return count_ != 0; }  // for block_until

 private:
  EventFdOrder order_;
  std::uint64_t count_ = 0;
  ModelAtomic<std::uint64_t> kernel_;
};

template <class Condition>
void block_until(const Condition& condition) {
  detail::block([](const void* c) { return (*static_cast<const Condition*>(c))(); }, &condition);
}

}  // namespace stook::model
