#include "tests/cpp/model/checker.h"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <ostream>
#include <sstream>

namespace stook::model {
namespace {

constexpr std::size_t kMaxLocations = 32;
constexpr std::size_t kArenaBytes = 1 << 20;
constexpr std::size_t kStackBytes = 256 << 10;

bool acquires(std::memory_order order) {
  return order == std::memory_order_acquire || order == std::memory_order_consume ||
         order == std::memory_order_acq_rel || order == std::memory_order_seq_cst;
}
bool releases(std::memory_order order) {
  return order == std::memory_order_release || order == std::memory_order_acq_rel ||
         order == std::memory_order_seq_cst;
}

const char* order_name(std::memory_order order) {
  switch (order) {
    case std::memory_order_relaxed:
      return "relaxed";
    case std::memory_order_consume:
      return "consume";
    case std::memory_order_acquire:
      return "acquire";
    case std::memory_order_release:
      return "release";
    case std::memory_order_acq_rel:
      return "acq_rel";
    case std::memory_order_seq_cst:
      return "seq_cst";
  }
  return "?";
}

std::uint64_t mix(std::uint64_t seed, std::uint64_t value) {
  std::uint64_t x = seed ^ (value + 0x9e3779b97f4a7c15ULL + (seed << 6) + (seed >> 2));
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// What a thread, or whoever reads a message, is bound to have seen.
struct View {
  std::array<std::uint16_t, kMaxLocations> newest{};  // index of a store, per location
  std::array<std::uint32_t, kMaxThreads> clock{};     // happens-before, for plain data
};

struct Store {
  std::uint64_t value = 0;
  std::uint64_t key = 0;       // names the store independently of the interleaving
  std::uint16_t position = 0;  // in the modification order
  bool glued = false;          // a read-modify-write: stays right behind the store before it
  View view;
};

struct Location {
  const void* address = nullptr;
  std::uint64_t serial = 0;                       // its offset in the arena
  std::vector<Store> stores;                      // in the order of execution
  std::vector<std::uint16_t> modification_order;  // indices into `stores`

  std::uint16_t position(std::uint16_t store) const { return stores[store].position; }
};

struct Thread {
  std::string name;
  std::function<void()> body;
  ucontext_t context{};
  View current;  // what it has seen
  View pending;  // what an acquire fence would add
  View fenced;   // what a relaxed store carries since the last release fence
  std::uint64_t history = 0;
  bool finished = false;
  bool daemon = false;
  bool spurious_failure_used = false;
  bool (*ready)(const void*) = nullptr;
  const void* ready_argument = nullptr;

  bool enabled() const { return !finished && (ready == nullptr || ready(ready_argument)); }
};

// Hashes of the states met: open addressing, because it is probed at every step.
class StateSet {
 public:
  StateSet() : slots_(1 << 16) {}

  bool insert(std::uint64_t hash) {
    if (hash == 0) hash = 1;
    if (2 * size_ >= slots_.size()) grow();
    if (!place(hash)) return false;
    ++size_;
    return true;
  }
  std::uint64_t size() const { return size_; }

 private:
  bool place(std::uint64_t hash) {
    for (std::size_t i = hash & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i] == hash) return false;
      if (slots_[i] == 0) {
        slots_[i] = hash;
        return true;
      }
    }
  }
  void grow() {
    std::vector<std::uint64_t> old(slots_.size() * 2);
    old.swap(slots_);
    for (const std::uint64_t hash : old) {
      if (hash != 0) place(hash);
    }
  }

  std::vector<std::uint64_t> slots_;
  std::uint64_t size_ = 0;
};

struct Choice {
  std::uint32_t taken;
  std::uint32_t count;
};

enum class Phase { kSetup, kRunning, kConclusion };

class Engine {
 public:
  Engine(const Build& build, const Options& options)
      : build_(build),
        options_(options),
        arena_(static_cast<std::byte*>(::operator new(kArenaBytes, std::align_val_t{4096}))) {
    for (auto& stack : stacks_) stack = std::make_unique<std::byte[]>(kStackBytes);
  }
  ~Engine() { ::operator delete(arena_, std::align_val_t{4096}); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  Report explore();

  Phase phase() const { return phase_; }

  void* allocate(std::size_t size, std::size_t alignment) {
    arena_used_ = (arena_used_ + alignment - 1) / alignment * alignment;
    if (phase_ != Phase::kSetup || arena_used_ + size > kArenaBytes) {
      misuse("Scenario::make: only while setting up, at most 1 MiB");
    }
    void* memory = arena_ + arena_used_;
    arena_used_ += size;
    std::memset(memory, 0, size);
    return memory;
  }
  void destroy_later(void* object, void (*destroy)(void*)) {
    destructors_.emplace_back(object, destroy);
  }
  void add_thread(std::string name, std::function<void()> body, bool daemon = false) {
    if (threads_.size() == kMaxThreads) misuse("too many threads");
    threads_.emplace_back();
    threads_.back().name = std::move(name);
    threads_.back().body = std::move(body);
    threads_.back().daemon = daemon;
  }
  void set_conclusion(std::function<void()> body) { conclusion_ = std::move(body); }

  std::uint64_t load(const void* where, std::uint64_t initial, std::memory_order order,
                     const Site& site);
  void store(const void* where, std::uint64_t initial, std::uint64_t value, std::memory_order order,
             const Site& site);
  std::uint64_t modify(const void* where, std::uint64_t initial, detail::Modify apply,
                       std::uint64_t operand, std::memory_order order, const Site& site);
  bool compare_exchange(const void* where, std::uint64_t initial, std::uint64_t& expected,
                        std::uint64_t desired, bool weak, std::memory_order success,
                        std::memory_order failure, const Site& success_site,
                        const Site& failure_site);
  void fence(std::memory_order order, const Site& site);
  void read_plain(detail::Accesses& accesses);
  void write_plain(detail::Accesses& accesses);
  void block(bool (*ready)(const void*), const void* argument);
  void register_counter(const std::uint64_t* counter) { counters_.push_back(counter); }
  void counter_step(const char* operation, const std::uint64_t* counter);
  void counter_done(std::uint64_t value);
  void fail(const std::string& reason);

  [[noreturn]] static void misuse(const char* what) {
    std::fprintf(stderr, "model checker: %s\n", what);
    std::abort();
  }

 private:
  static void run_thread(unsigned index);

  bool run_once();  // false: the execution failed
  bool next_execution();
  std::uint32_t choose(std::size_t count);
  void step();  // a scheduling point: others may run first
  void schedule();
  void leave();  // abandons the execution
  std::uint64_t state_hash() const;

  Thread& current() { return threads_[current_]; }
  std::size_t locate(const void* where, std::uint64_t initial);
  std::memory_order weakened(std::memory_order order, const Site& site);
  void join(View& into, const View& from) const;
  void observe(std::size_t location, std::uint16_t store, std::memory_order order);
  std::uint16_t oldest_readable(std::size_t location, std::memory_order order) const;
  void insert(std::size_t location, std::size_t position, std::uint64_t value, bool glued,
              const View* inherited, std::memory_order order);
  void remember(std::uint64_t what, const void* where, std::uint64_t value);
  void trace(const char* operation, const void* where, std::uint64_t value, std::memory_order order,
             const Site& site);

  const Build& build_;
  const Options& options_;
  std::byte* arena_;
  std::size_t arena_used_ = 0;
  std::array<std::unique_ptr<std::byte[]>, kMaxThreads> stacks_;
  std::vector<std::pair<void*, void (*)(void*)>> destructors_;

  Phase phase_ = Phase::kSetup;
  std::vector<Thread> threads_;  // [0] sets up and concludes
  std::size_t current_ = 0;
  std::function<void()> conclusion_;
  std::vector<Location> locations_;
  std::size_t location_count_ = 0;  // `locations_` keeps its memory between executions
  std::vector<const std::uint64_t*> counters_;
  View fence_view_;  // what seq_cst fences have seen
  ucontext_t main_context_{};

  std::vector<Choice> choices_;
  std::size_t depth_ = 0;
  std::size_t replayed_ = 0;  // choices that an earlier execution has made
  std::uint32_t steps_ = 0;
  bool completed_ = false;
  StateSet states_;
  Report report_;
  bool tracing_ = false;
  std::ostringstream trace_;
};

Engine* engine = nullptr;

// --- the search
// -----------------------------------------------------------------------------------

Report Engine::explore() {
  for (;;) {
    ++report_.executions;
    if (!run_once()) {
      // Once more, by the same choices, writing down what happens.
      const std::string failure = report_.failure;
      tracing_ = true;
      run_once();
      report_.failure = failure;
      report_.trace = trace_.str();
      break;
    }
    if (!next_execution()) {
      report_.complete = true;
      break;
    }
    if (report_.executions >= options_.max_executions) break;
  }
  report_.states = states_.size();
  return report_;
}

bool Engine::next_execution() {
  choices_.resize(depth_);
  while (!choices_.empty() && choices_.back().taken + 1 == choices_.back().count) {
    choices_.pop_back();
  }
  if (choices_.empty()) return false;
  ++choices_.back().taken;
  return true;
}

std::uint32_t Engine::choose(std::size_t count) {
  if (count == 1) return 0;
  if (depth_ == choices_.size()) choices_.push_back({0, static_cast<std::uint32_t>(count)});
  return choices_[depth_++].taken;
}

bool Engine::run_once() {
  report_.failure.clear();
  depth_ = 0;
  replayed_ = choices_.size();
  steps_ = 0;
  completed_ = false;
  arena_used_ = 0;
  location_count_ = 0;
  counters_.clear();
  fence_view_ = View{};
  threads_.clear();
  threads_.reserve(kMaxThreads);
  conclusion_ = nullptr;
  phase_ = Phase::kSetup;
  current_ = 0;
  add_thread("conclusion", nullptr);

  Scenario scenario;
  build_(scenario);

  for (std::size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    thread.current.clock[i] = 1;
    thread.history = mix(0x57a7e, i);
    if (i == 0) continue;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stacks_[i].get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, reinterpret_cast<void (*)()>(&run_thread), 1,
                static_cast<unsigned>(i));
  }
  threads_[0].finished = true;
  phase_ = Phase::kRunning;
  schedule();  // comes back when the execution is over

  current_ = 0;
  if (completed_ && conclusion_) {
    phase_ = Phase::kConclusion;
    for (const Thread& thread : threads_) join(threads_[0].current, thread.current);
    conclusion_();
  }
  phase_ = Phase::kSetup;
  for (auto it = destructors_.rbegin(); it != destructors_.rend(); ++it) it->second(it->first);
  destructors_.clear();
  return report_.failure.empty();
}

void Engine::run_thread(unsigned index) {
  engine->remember(0xf0, nullptr, 0);
  engine->threads_[index].body();
  Thread& thread = engine->threads_[index];
  thread.finished = true;
  engine->remember(0xf1, nullptr, 0);
  engine->schedule();
}

// Picks who runs next and goes there; returns when the calling thread is picked.
void Engine::schedule() {
  if (++steps_ > options_.max_steps) {
    fail("an execution takes too many steps: a loop does not end");
    return;
  }
  if (depth_ >= replayed_ && !tracing_ && !states_.insert(state_hash())) {
    leave();
    return;
  }
  std::array<std::size_t, kMaxThreads> enabled{};
  std::size_t count = 0;
  // The running thread first: the search then switches seldom.
  if (current().enabled()) enabled[count++] = current_;
  for (std::size_t i = 1; i < threads_.size(); ++i) {
    if (i != current_ && threads_[i].enabled()) enabled[count++] = i;
  }
  if (count == 0) {
    std::string asleep;
    for (const Thread& thread : threads_) {
      if (!thread.finished && !thread.daemon) asleep += (asleep.empty() ? "" : ", ") + thread.name;
    }
    if (asleep.empty()) {
      completed_ = true;
      leave();
    } else {
      fail("deadlock: nobody wakes " + asleep);
    }
    return;
  }
  const std::size_t next = enabled[choose(count)];
  if (next == current_) return;
  const std::size_t previous = std::exchange(current_, next);
  // Thread 0 is the caller of explore(): it waits here for the end of the execution.
  ucontext_t* from = previous == 0 ? &main_context_ : &threads_[previous].context;
  swapcontext(from, &threads_[next].context);
}

// The fiber is dropped as it stands: its stack serves the next execution.
void Engine::leave() {
  if (current_ == 0) return;
  setcontext(&main_context_);
}

void Engine::step() {
  if (phase_ == Phase::kRunning) schedule();
}

void Engine::fail(const std::string& reason) {
  if (report_.failure.empty()) report_.failure = reason;
  if (tracing_) trace_ << "=> " << reason << '\n';
  if (phase_ == Phase::kRunning) leave();
}

// Two interleavings that differ in nothing but the order of independent steps meet in one state:
// every thread has the same past, every location the same modification order.
std::uint64_t Engine::state_hash() const {
  std::uint64_t hash = 0;
  for (const Thread& thread : threads_) hash = mix(hash, thread.history);
  for (const std::uint64_t* counter : counters_) hash = mix(hash, *counter);
  // Locations are numbered in the order of their first use, which depends on the interleaving: sum.
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < location_count_; ++i) {
    const Location& location = locations_[i];
    if (location.stores.size() == 1) continue;
    std::uint64_t part = mix(1, location.serial);
    for (const std::uint16_t store : location.modification_order) {
      part = mix(part, location.stores[store].key);
    }
    sum += mix(part, location.stores[fence_view_.newest[i]].key);
  }
  return mix(hash, sum);
}

// --- memory
// ---------------------------------------------------------------------------------------

std::size_t Engine::locate(const void* where, std::uint64_t initial) {
  for (std::size_t i = 0; i < location_count_; ++i) {
    if (locations_[i].address == where) return i;
  }
  if (location_count_ == kMaxLocations) misuse("too many atomic locations");
  const auto* byte = static_cast<const std::byte*>(where);
  if (byte < arena_ || byte >= arena_ + kArenaBytes) {
    misuse("an atomic that is not from Scenario::make");
  }
  if (location_count_ == locations_.size()) locations_.emplace_back();
  Location& location = locations_[location_count_];
  location.address = where;
  location.serial = static_cast<std::uint64_t>(byte - arena_);
  location.stores.clear();
  location.modification_order.assign(1, 0);
  Store& first = location.stores.emplace_back();
  first.value = initial;
  first.view.clock[0] = 1;
  return location_count_++;
}

std::memory_order Engine::weakened(std::memory_order order, const Site& site) {
  if (order == std::memory_order_relaxed) return order;
  const bool known =
      std::any_of(report_.sites.begin(), report_.sites.end(),
                  [&](const SiteOrder& s) { return s.order == order && s.site == site; });
  if (!known) report_.sites.push_back({site, order});
  if (options_.weakening && options_.weakening->from == order && options_.weakening->site == site) {
    return options_.weakening->order;
  }
  return order;
}

void Engine::join(View& into, const View& from) const {
  for (std::size_t i = 0; i < location_count_; ++i) {
    if (locations_[i].position(from.newest[i]) > locations_[i].position(into.newest[i])) {
      into.newest[i] = from.newest[i];
    }
  }
  for (std::size_t i = 0; i < kMaxThreads; ++i) {
    into.clock[i] = std::max(into.clock[i], from.clock[i]);
  }
}

// The thread has read `store`.
void Engine::observe(std::size_t location, std::uint16_t store, std::memory_order order) {
  Thread& thread = current();
  const Location& l = locations_[location];
  thread.current.newest[location] = store;
  join(acquires(order) ? thread.current : thread.pending, l.stores[store].view);
  if (order == std::memory_order_seq_cst &&
      l.position(store) > l.position(fence_view_.newest[location])) {
    fence_view_.newest[location] = store;
  }
}

std::uint16_t Engine::oldest_readable(std::size_t location, std::memory_order order) const {
  const Location& l = locations_[location];
  std::uint16_t oldest = l.position(threads_[current_].current.newest[location]);
  if (order == std::memory_order_seq_cst) {
    oldest = std::max(oldest, l.position(fence_view_.newest[location]));
  }
  return oldest;
}

// The thread's own store, at `position` of the modification order.
void Engine::insert(std::size_t location, std::size_t position, std::uint64_t value, bool glued,
                    const View* inherited, std::memory_order order) {
  Thread& thread = current();
  Location& l = locations_[location];
  const auto index = static_cast<std::uint16_t>(l.stores.size());
  Store store;
  store.value = value;
  store.key = thread.history;
  store.glued = glued;
  if (inherited != nullptr) store.view = *inherited;
  l.stores.push_back(store);
  l.modification_order.insert(l.modification_order.begin() + static_cast<std::ptrdiff_t>(position),
                              index);
  for (std::size_t i = position; i < l.modification_order.size(); ++i) {
    l.stores[l.modification_order[i]].position = static_cast<std::uint16_t>(i);
  }
  thread.current.newest[location] = index;
  View& carried = l.stores[index].view;
  join(carried, releases(order) ? thread.current : thread.fenced);
  carried.newest[location] = index;
  if (order == std::memory_order_seq_cst && position > l.position(fence_view_.newest[location])) {
    fence_view_.newest[location] = index;
  }
  // What the thread does from here on is not covered by this store.
  ++thread.current.clock[current_];
}

void Engine::remember(std::uint64_t what, const void* where, std::uint64_t value) {
  Thread& thread = current();
  const std::uint64_t serial =
      where == nullptr
          ? 0
          : static_cast<std::uint64_t>(static_cast<const std::byte*>(where) - arena_) + 1;
  thread.history = mix(mix(mix(thread.history, what), serial), value);
}

void Engine::trace(const char* operation, const void* where, std::uint64_t value,
                   std::memory_order order, const Site& site) {
  if (!tracing_) return;
  const std::string file = site.file;
  trace_ << "  " << current().name << ": " << operation;
  if (where != nullptr) {
    trace_ << " @" << static_cast<const std::byte*>(where) - arena_ << " 0x" << std::hex << value
           << std::dec;
  }
  trace_ << ' ' << order_name(order) << "  " << file.substr(file.rfind('/') + 1) << ':' << site.line
         << '\n';
}

std::uint64_t Engine::load(const void* where, std::uint64_t initial, std::memory_order order,
                           const Site& site) {
  step();
  order = weakened(order, site);
  const std::size_t location = locate(where, initial);
  const Location& l = locations_[location];
  const std::size_t readable = l.modification_order.size() - oldest_readable(location, order);
  // The newest first: the plain executions come first.
  const std::size_t position = l.modification_order.size() - 1 - choose(readable);
  const std::uint16_t store = l.modification_order[position];
  observe(location, store, order);
  remember(0x10, where, l.stores[store].key);
  trace(site.operation, where, l.stores[store].value, order, site);
  return l.stores[store].value;
}

void Engine::store(const void* where, std::uint64_t initial, std::uint64_t value,
                   std::memory_order order, const Site& site) {
  step();
  order = weakened(order, site);
  const std::size_t location = locate(where, initial);
  const Location& l = locations_[location];
  std::array<std::size_t, 256> places{};
  std::size_t count = 0;
  for (std::size_t place = l.modification_order.size(); place > oldest_readable(location, order);
       --place) {
    const bool splits =
        place < l.modification_order.size() && l.stores[l.modification_order[place]].glued;
    if (count == places.size()) misuse("too many stores to one location");
    if (!splits) places[count++] = place;
  }
  const std::size_t place = places[choose(count)];
  remember(0x20, where, value);
  insert(location, place, value, false, nullptr, order);
  trace(site.operation, where, value, order, site);
}

std::uint64_t Engine::modify(const void* where, std::uint64_t initial, detail::Modify apply,
                             std::uint64_t operand, std::memory_order order, const Site& site) {
  step();
  order = weakened(order, site);
  const std::size_t location = locate(where, initial);
  const Location& l = locations_[location];
  std::array<std::size_t, 256> places{};
  std::size_t count = 0;
  const std::size_t size = l.modification_order.size();
  for (std::size_t place = size; place-- > oldest_readable(location, order);) {
    // Atomic: nothing comes between what it reads and what it writes.
    const bool taken = place + 1 < size && l.stores[l.modification_order[place + 1]].glued;
    if (count == places.size()) misuse("too many stores to one location");
    if (!taken) places[count++] = place;
  }
  const std::size_t place = places[choose(count)];
  const std::uint16_t read = l.modification_order[place];
  const std::uint64_t before = l.stores[read].value;
  observe(location, read, order);
  remember(0x30, where, l.stores[read].key);
  const View inherited = l.stores[read].view;
  insert(location, place + 1, apply(before, operand), true, &inherited, order);
  trace(site.operation, where, before, order, site);
  return before;
}

bool Engine::compare_exchange(const void* where, std::uint64_t initial, std::uint64_t& expected,
                              std::uint64_t desired, bool weak, std::memory_order success,
                              std::memory_order failure, const Site& success_site,
                              const Site& failure_site) {
  step();
  success = weakened(success, success_site);
  failure = weakened(failure, failure_site);
  const std::size_t location = locate(where, initial);
  const Location& l = locations_[location];
  struct Outcome {
    std::size_t place;
    bool exchanged;
  };
  std::array<Outcome, 256> outcomes{};
  std::size_t count = 0;
  const std::size_t size = l.modification_order.size();
  const std::size_t oldest_success = oldest_readable(location, success);
  const std::size_t oldest_failure = oldest_readable(location, failure);
  for (std::size_t place = size; place-- > std::min(oldest_success, oldest_failure);) {
    if (count + 2 > outcomes.size()) misuse("too many stores to one location");
    const bool equal = l.stores[l.modification_order[place]].value == expected;
    const bool taken = place + 1 < size && l.stores[l.modification_order[place + 1]].glued;
    if (equal && !taken && place >= oldest_success) outcomes[count++] = {place, true};
    if (place < oldest_failure) continue;
    if (!equal) outcomes[count++] = {place, false};
    if (equal && weak && !current().spurious_failure_used) outcomes[count++] = {place, false};
  }
  const Outcome outcome = outcomes[choose(count)];
  const std::uint16_t read = l.modification_order[outcome.place];
  const std::uint64_t before = l.stores[read].value;
  observe(location, read, outcome.exchanged ? success : failure);
  if (outcome.exchanged) {
    remember(0x40, where, l.stores[read].key);
    const View inherited = l.stores[read].view;
    insert(location, outcome.place + 1, desired, true, &inherited, success);
    trace(success_site.operation, where, before, success, success_site);
    return true;
  }
  if (before == expected) current().spurious_failure_used = true;
  remember(0x50, where, l.stores[read].key);
  trace(failure_site.operation, where, before, failure, failure_site);
  expected = before;
  return false;
}

void Engine::fence(std::memory_order order, const Site& site) {
  order = weakened(order, site);
  // Only the seq_cst fence has to do with other threads.
  if (order == std::memory_order_seq_cst) step();
  Thread& thread = current();
  if (acquires(order)) join(thread.current, thread.pending);
  if (order == std::memory_order_seq_cst) {
    // The global view carries no happens-before, so no clocks.
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < location_count_; ++i) {
      const Location& l = locations_[i];
      std::uint16_t& global = fence_view_.newest[i];
      std::uint16_t& own = thread.current.newest[i];
      if (l.position(global) > l.position(own)) {
        own = global;
      } else {
        global = own;
      }
      if (own != 0) seen += mix(l.serial, l.stores[own].key);
    }
    remember(0x60, nullptr, seen);
  }
  if (releases(order)) {
    thread.fenced = thread.current;
    ++thread.current.clock[current_];
  }
  trace(site.operation, nullptr, 0, order, site);
}

void Engine::read_plain(detail::Accesses& accesses) {
  if (phase_ != Phase::kRunning) return;
  const View& view = current().current;
  if (accesses.write_clock > view.clock[accesses.writer]) {
    fail("data race: " + current().name + " reads what " + threads_[accesses.writer].name +
         " wrote, and nothing orders the two");
    return;
  }
  accesses.read_clock[current_] = view.clock[current_];
}

void Engine::write_plain(detail::Accesses& accesses) {
  if (phase_ != Phase::kRunning) return;
  const View& view = current().current;
  if (accesses.write_clock > view.clock[accesses.writer]) {
    fail("data race: " + current().name + " overwrites what " + threads_[accesses.writer].name +
         " wrote, and nothing orders the two");
    return;
  }
  for (std::size_t i = 0; i < kMaxThreads; ++i) {
    if (accesses.read_clock[i] > view.clock[i]) {
      fail("data race: " + current().name + " overwrites what " + threads_[i].name +
           " reads, and nothing orders the two");
      return;
    }
  }
  accesses.writer = static_cast<std::uint32_t>(current_);
  accesses.write_clock = view.clock[current_];
}

void Engine::block(bool (*ready)(const void*), const void* argument) {
  if (phase_ != Phase::kRunning) return;
  current().ready = ready;
  current().ready_argument = argument;
  remember(0x70, nullptr, 0);
  step();
  current().ready = nullptr;
  remember(0x71, nullptr, 0);
  trace("wakes", nullptr, 0, std::memory_order_relaxed, {});
}

void Engine::counter_step(const char* operation, const std::uint64_t* counter) {
  step();
  remember(0x80, counter, 0);
  trace(operation, counter, *counter, std::memory_order_relaxed, {});
}

void Engine::counter_done(std::uint64_t value) { remember(0x81, nullptr, value); }

// --- weakenings
// -----------------------------------------------------------------------------------

std::vector<std::memory_order> weaker_orders(std::memory_order order, const Site& site) {
  using Order = std::memory_order;
  const bool is_load = std::strcmp(site.operation, "load") == 0 ||
                       std::strcmp(site.operation, "compare_exchange failure") == 0;
  if (order == Order::acq_rel) return {Order::relaxed, Order::acquire, Order::release};
  if (order != Order::seq_cst) return {Order::relaxed};
  if (is_load) return {Order::relaxed, Order::acquire};
  if (std::strcmp(site.operation, "store") == 0) return {Order::relaxed, Order::release};
  return {Order::relaxed, Order::acq_rel};
}

// "ring.tail" for the nearest line above with SYNC(ring.tail), within the same few lines.
std::string sync_name(const Site& site) {
  std::ifstream source(site.file);
  std::string line;
  std::string name;
  unsigned found = 0;
  for (unsigned number = 1; number <= site.line && std::getline(source, line); ++number) {
    const std::size_t start = line.find("SYNC(");
    if (start == std::string::npos) continue;
    const std::size_t end = line.find(')', start);
    name = line.substr(start + 5, end - start - 5);
    found = number;
  }
  if (found == 0 || site.line - found > 8) return "(no SYNC comment) " + std::string(site.function);
  return name;
}

bool ends_in(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

bool Site::operator==(const Site& other) const {
  return line == other.line && std::strcmp(operation, other.operation) == 0 &&
         std::strcmp(file, other.file) == 0;
}

std::ostream& operator<<(std::ostream& out, const Report& report) {
  if (report.failure.empty()) {
    out << (report.complete ? "no execution fails" : "not explored to the end");
  } else {
    out << report.failure << '\n' << report.trace;
  }
  return out << " (" << report.executions << " executions, " << report.states << " states)";
}

void* Scenario::allocate(std::size_t size, std::size_t alignment) {
  return engine->allocate(size, alignment);
}
void Scenario::destroy_later(void* object, void (*destroy)(void*)) {
  engine->destroy_later(object, destroy);
}
void Scenario::thread(std::string name, std::function<void()> body) {
  engine->add_thread(std::move(name), std::move(body));
}
void Scenario::finally(std::function<void()> body) { engine->set_conclusion(std::move(body)); }

void Scenario::daemon(std::string name, std::function<void()> body) {
  engine->add_thread(std::move(name), std::move(body), true);
}

Report explore(const Build& build, const Options& options) {
  if (engine != nullptr) Engine::misuse("one exploration at a time");
  Engine exploration(build, options);
  engine = &exploration;
  Report report = exploration.explore();
  engine = nullptr;
  return report;
}

void require(bool condition, const char* message) {
  if (!condition) engine->fail(message);
}

std::vector<std::string> surviving_weakenings(const std::vector<NamedScenario>& scenarios,
                                              const std::string& file, int* tried) {
  std::vector<SiteOrder> sites;
  for (const NamedScenario& scenario : scenarios) {
    for (const SiteOrder& site : explore(scenario.build).sites) {
      const bool known = std::any_of(sites.begin(), sites.end(), [&](const SiteOrder& s) {
        return s.order == site.order && s.site == site.site;
      });
      if (!known && ends_in(site.site.file, file)) sites.push_back(site);
    }
  }
  std::vector<std::string> survivors;
  int count = 0;
  for (const SiteOrder& site : sites) {
    for (const std::memory_order order : weaker_orders(site.order, site.site)) {
      ++count;
      Options options;
      options.weakening = Weakening{site.site, site.order, order};
      const bool found =
          std::any_of(scenarios.begin(), scenarios.end(), [&](const NamedScenario& scenario) {
            return !explore(scenario.build, options).failure.empty();
          });
      if (!found) {
        survivors.push_back(sync_name(site.site) + ": " + site.site.operation + " " +
                            order_name(site.order) + " -> " + order_name(order));
      }
    }
  }
  if (tried != nullptr) *tried = count;
  return survivors;
}

namespace detail {

bool running() { return engine != nullptr && engine->phase() != Phase::kSetup; }
std::uint64_t load(const void* where, std::uint64_t initial, std::memory_order order,
                   const Site& site) {
  return engine->load(where, initial, order, site);
}
void store(const void* where, std::uint64_t initial, std::uint64_t value, std::memory_order order,
           const Site& site) {
  engine->store(where, initial, value, order, site);
}
std::uint64_t modify(const void* where, std::uint64_t initial, Modify apply, std::uint64_t operand,
                     std::memory_order order, const Site& site) {
  return engine->modify(where, initial, apply, operand, order, site);
}
bool compare_exchange(const void* where, std::uint64_t initial, std::uint64_t& expected,
                      std::uint64_t desired, bool weak, std::memory_order success,
                      std::memory_order failure, const Site& success_site,
                      const Site& failure_site) {
  return engine->compare_exchange(where, initial, expected, desired, weak, success, failure,
                                  success_site, failure_site);
}
void fence(std::memory_order order, const Site& site) {
  if (running()) engine->fence(order, site);
}
void read_plain(Accesses& accesses) { engine->read_plain(accesses); }
void write_plain(Accesses& accesses) { engine->write_plain(accesses); }
void block(bool (*ready)(const void*), const void* argument) { engine->block(ready, argument); }
void register_counter(const std::uint64_t* counter) { engine->register_counter(counter); }
void counter_step(const char* operation, const std::uint64_t* counter) {
  if (running()) engine->counter_step(operation, counter);
}
void counter_done(std::uint64_t value) {
  if (running()) engine->counter_done(value);
}

}  // namespace detail

}  // namespace stook::model
