// The limit: what handing blocks over costs where no process boundary, no Python and no envelope is
// in the way.
//
// Threads of one process take the roles of Stook's workers and parent. They use the same ring,
// return bitmap and doorbells (shm/), the same rule of claiming, the same kind of memory (one memfd
// each) and the same reuse (last in, first out). A producer writes every byte of a block; the
// consumer touches one byte or reads all of them, and gives a block back when it has the next one,
// which is what `for array in loader` does. Nobody spins: who has nothing to do sleeps on an
// eventfd.
//
//   bench_limit --size 150528 --producers 2 --buffer 8 --consumer touch --seconds 1
//
// prints one line of JSON. Every element is checked; a wrong one ends the program with status 1.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "shm/doorbell.h"
#include "shm/eventfd.h"
#include "shm/return_bitmap.h"
#include "shm/ring.h"
#include "shm/shared_memory.h"

namespace {

using Clock = std::chrono::steady_clock;
namespace shm = stook::shm;

// Smaller elements travel in the slot, by value, like Stook's below `min_shared_bytes`.
constexpr std::uint64_t kInlineBytes = 240;

struct Settings {
  std::uint64_t size = 150528;  // bytes per element, a multiple of 8
  std::uint64_t producers = 2;
  std::uint64_t buffer = 8;  // elements per producer made ahead, beside the one in hand
  bool read = false;         // the consumer reads every byte instead of touching one
  double seconds = 1;

  std::uint64_t window() const { return producers * (buffer + 1); }
  bool in_slot() const { return size <= kInlineBytes; }
};

struct Slot {
  std::uint64_t element;
  std::uint64_t block;
  std::byte bytes[kInlineBytes];
};

// One sleeper's word and the eventfd that it sleeps on.
class Bell {
 public:
  // Sleeper: sleeps until it is rung for `reason`, unless `ready()` holds at the second look.
  template <class Ready>
  void sleep_unless(std::uint64_t reason, Ready&& ready) {
    shm::announce_sleep(word_, reason);
    if (ready()) {
      shm::wake_up(word_);
      return;
    }
    ++sleeps_;
    std::uint64_t rung = 0;
    while (::read(event_.get(), &rung, sizeof(rung)) < 0 && errno == EINTR) {
    }
    shm::wake_up(word_);
  }

  // Waker, after publishing.
  template <class Wanted>
  void ring_if(Wanted&& wanted) {
    if (shm::take_sleeper(word_, wanted)) ring();
  }
  void ring() { shm::ring_eventfd(event_.get()); }

  std::uint64_t sleeps() const { return sleeps_; }

 private:
  shm::DoorbellWord<> word_{};
  shm::FileDescriptor event_ = shm::create_eventfd(shm::EventWait::kBlocking);
  std::uint64_t sleeps_ = 0;  // the sleeper's own
};

// What all threads share. `claimed` is written by producers, `delivered` and `stop` by the
// consumer.
struct Shared {
  alignas(shm::kIsolation) std::atomic<std::uint64_t> claimed{0};
  alignas(shm::kIsolation) std::atomic<std::uint64_t> delivered{0};
  alignas(shm::kIsolation) std::atomic<bool> stop{false};
  Bell consumer;
};

std::byte byte_of(std::uint64_t element) { return static_cast<std::byte>(element % 251); }

// A ring with its blocks: made by the main thread, written by one producer, read by the consumer.
class Lane {
 public:
  Lane(const Settings& settings, Shared& shared)
      : settings_(settings),
        shared_(shared),
        block_bytes_(shm::round_up(std::max<std::uint64_t>(settings.size, 1), shm::kPageBytes)),
        // All of the window, and the two elements that the consumer may hold.
        block_count_(settings.window() + 2),
        capacity_(std::bit_ceil(settings.window())),
        memory_(shm::create_shared_memory("stook-limit", block_bytes_ * block_count_)),
        blocks_(memory_.get(), block_bytes_ * block_count_, shm::Access::kReadWrite),
        slots_(std::make_unique<Slot[]>(capacity_)),
        writer_(positions_, slots_.get(), capacity_),
        reader_(positions_, slots_.get(), capacity_) {}

  void produce() {
    for (std::uint64_t element = 0; claim(element);) {
      Slot* slot = writer_.prepare();
      if (slot == nullptr) std::abort();  // the ring holds the window
      slot->element = element;
      std::byte* bytes = slot->bytes;
      if (!settings_.in_slot()) {
        slot->block = take_block();
        bytes = block(slot->block);
      }
      std::memset(bytes, static_cast<int>(byte_of(element)), settings_.size);
      writer_.publish();
      shared_.consumer.ring_if([](std::uint64_t) { return true; });
    }
  }

  // Consumer.
  const Slot* front() { return reader_.front(); }
  void pop() { reader_.pop(); }
  std::byte* block(std::uint64_t index) const { return blocks_.data() + index * block_bytes_; }
  void give_back(std::uint64_t index) {
    shm::return_block(returned_, static_cast<std::uint32_t>(index));
  }
  Bell& bell() { return bell_; }

 private:
  // The next element that nobody makes yet, once it is inside the window. False at the end.
  bool claim(std::uint64_t& element) {
    element = shared_.claimed.load(std::memory_order_relaxed);
    for (;;) {
      if (shared_.stop.load(std::memory_order_relaxed)) return false;
      const std::uint64_t limit =
          shared_.delivered.load(std::memory_order_acquire) + settings_.window();
      if (element < limit) {
        if (shared_.claimed.compare_exchange_weak(element, element + 1,
                                                  std::memory_order_relaxed)) {
          return true;
        }
        continue;
      }
      // Asleep until half of the window is free again: one ring for many elements.
      const std::uint64_t wake_at = limit - settings_.window() + (settings_.window() + 1) / 2;
      bell_.sleep_unless(wake_at, [&] {
        return shared_.stop.load(std::memory_order_relaxed) ||
               shared_.delivered.load(std::memory_order_acquire) >= wake_at;
      });
      element = shared_.claimed.load(std::memory_order_relaxed);
    }
  }

  std::uint64_t take_block() {
    shm::harvest_blocks(returned_, static_cast<std::uint32_t>(block_count_),
                        [&](std::uint32_t index) { free_.push_back(index); });
    if (!free_.empty()) {
      const std::uint64_t index = free_.back();
      free_.pop_back();
      return index;
    }
    if (fresh_ == block_count_) std::abort();
    return fresh_++;
  }

  const Settings& settings_;
  Shared& shared_;
  std::uint64_t block_bytes_;
  std::uint64_t block_count_;
  std::uint64_t capacity_;
  shm::FileDescriptor memory_;
  shm::Mapping blocks_;
  std::unique_ptr<Slot[]> slots_;
  shm::RingPositions<> positions_{};
  shm::ReturnBitmapWords<> returned_{};
  shm::RingWriter<Slot> writer_;
  shm::RingReader<Slot> reader_;
  Bell bell_;
  std::vector<std::uint64_t> free_;  // the producer's, last in, first out
  std::uint64_t fresh_ = 0;          // blocks never used yet start here
};

// Delivers elements in order, each from whichever lane it arrives on.
class Consumer {
 public:
  Consumer(const Settings& settings, Shared& shared, std::vector<std::unique_ptr<Lane>>& lanes)
      : settings_(settings), shared_(shared), lanes_(lanes), arrived_(settings.window()) {}

  void consume() {
    const std::uint64_t place = next_ % settings_.window();
    while (!arrived_[place].there) {
      if (collect()) continue;
      shared_.consumer.sleep_unless(1, [&] { return collect(); });
    }
    Arrival& arrival = arrived_[place];
    arrival.there = false;
    const std::byte* bytes =
        settings_.in_slot() ? arrival.slot.bytes : arrival.lane->block(arrival.slot.block);
    check(bytes);
    // The array of the turn before dies when the loop's variable takes this one.
    if (held_ != nullptr) held_->give_back(held_block_);
    held_ = settings_.in_slot() ? nullptr : arrival.lane;
    held_block_ = arrival.slot.block;
    ++next_;
    shared_.delivered.store(next_, std::memory_order_release);
    shm::doorbell_fence<shm::StdAtomics>();
    for (auto& lane : lanes_) {
      lane->bell().ring_if([&](std::uint64_t wake_at) { return next_ >= wake_at; });
    }
  }

  std::uint64_t delivered() const { return next_; }

 private:
  struct Arrival {
    bool there = false;
    Lane* lane = nullptr;
    Slot slot{};
  };

  bool collect() {
    bool found = false;
    for (auto& lane : lanes_) {
      while (const Slot* slot = lane->front()) {
        Arrival& arrival = arrived_[slot->element % settings_.window()];
        arrival.there = true;
        arrival.lane = lane.get();
        arrival.slot.element = slot->element;
        arrival.slot.block = slot->block;
        if (settings_.in_slot()) std::memcpy(arrival.slot.bytes, slot->bytes, settings_.size);
        lane->pop();
        found = true;
      }
    }
    return found;
  }

  void check(const std::byte* bytes) const {
    bool right = *static_cast<const volatile std::byte*>(bytes) == byte_of(next_);
    if (settings_.read) {
      const std::uint64_t words = settings_.size / 8;
      std::uint64_t sum = 0;
      for (std::uint64_t i = 0; i < words; ++i) {
        std::uint64_t word;
        std::memcpy(&word, bytes + 8 * i, 8);
        sum += word;
      }
      const auto byte = static_cast<std::uint64_t>(byte_of(next_));
      right = right && sum == words * (byte * 0x0101010101010101u);
    }
    if (!right) {
      std::fprintf(stderr, "element %llu holds wrong bytes\n",
                   static_cast<unsigned long long>(next_));
      std::exit(1);
    }
  }

  const Settings& settings_;
  Shared& shared_;
  std::vector<std::unique_ptr<Lane>>& lanes_;
  std::vector<Arrival> arrived_;
  std::uint64_t next_ = 0;
  Lane* held_ = nullptr;
  std::uint64_t held_block_ = 0;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void measure(const Settings& settings) {
  Shared shared;
  std::vector<std::unique_ptr<Lane>> lanes;
  for (std::uint64_t i = 0; i < settings.producers; ++i) {
    lanes.push_back(std::make_unique<Lane>(settings, shared));
  }
  std::vector<std::thread> threads;
  for (auto& lane : lanes) threads.emplace_back([&lane] { lane->produce(); });

  Consumer consumer(settings, shared, lanes);
  // Unmeasured first: until the blocks in use have been touched, and the caches have settled.
  const std::uint64_t between_looks = settings.size > 1'000'000 ? 4 : 64;
  const auto run_for = [&](double seconds) {
    const Clock::time_point start = Clock::now();
    do {
      for (std::uint64_t i = 0; i < between_looks; ++i) consumer.consume();
    } while (seconds_since(start) < seconds);
    return seconds_since(start);
  };
  while (consumer.delivered() < 4 * settings.window()) consumer.consume();
  run_for(settings.seconds / 5);
  const std::uint64_t warm = consumer.delivered();
  const double took = run_for(settings.seconds);
  const std::uint64_t elements = consumer.delivered() - warm;

  shared.stop.store(true, std::memory_order_relaxed);
  std::uint64_t sleeps = 0;
  for (auto& lane : lanes) lane->bell().ring();
  for (auto& thread : threads) thread.join();
  for (auto& lane : lanes) sleeps += lane->bell().sleeps();

  std::printf(
      "{\"size\": %llu, \"producers\": %llu, \"buffer\": %llu, \"consumer\": \"%s\", "
      "\"elements\": %llu, \"seconds\": %.6f, \"us_per_element\": %.4f, "
      "\"consumer_sleeps_per_element\": %.4f, \"producer_sleeps_per_element\": %.4f}\n",
      static_cast<unsigned long long>(settings.size),
      static_cast<unsigned long long>(settings.producers),
      static_cast<unsigned long long>(settings.buffer), settings.read ? "read" : "touch",
      static_cast<unsigned long long>(elements), took, took / static_cast<double>(elements) * 1e6,
      static_cast<double>(shared.consumer.sleeps()) / static_cast<double>(consumer.delivered()),
      static_cast<double>(sleeps) / static_cast<double>(consumer.delivered()));
}

[[noreturn]] void refuse(std::string_view option, std::string_view value, const char* allowed) {
  std::fprintf(stderr, "bench_limit: %.*s %.*s: must be %s\n", static_cast<int>(option.size()),
               option.data(), static_cast<int>(value.size()), value.data(), allowed);
  std::exit(2);
}

template <class Number>
Number number(std::string_view option, std::string_view value, Number least, const char* allowed) {
  Number parsed{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), parsed);
  if (error != std::errc{} || end != value.data() + value.size() || parsed < least) {
    refuse(option, value, allowed);
  }
  return parsed;
}

Settings parse(std::span<char*> arguments) {
  Settings settings;
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    const std::string_view option = arguments[i];
    if (i + 1 == arguments.size()) refuse(option, "(nothing)", "followed by a value");
    const std::string_view value = arguments[i + 1];
    if (option == "--size") {
      settings.size = number<std::uint64_t>(option, value, 8, "a multiple of 8, at least 8");
      if (settings.size % 8 != 0) refuse(option, value, "a multiple of 8, at least 8");
    } else if (option == "--producers") {
      settings.producers = number<std::uint64_t>(option, value, 1, "at least 1");
    } else if (option == "--buffer") {
      settings.buffer = number<std::uint64_t>(option, value, 1, "at least 1");
    } else if (option == "--consumer") {
      if (value != "touch" && value != "read") refuse(option, value, "touch or read");
      settings.read = value == "read";
    } else if (option == "--seconds") {
      settings.seconds = number<double>(option, value, 0.0, "a number of seconds");
    } else {
      refuse(option, "",
             "one of --size, --producers, --buffer, --consumer and --seconds, with a value");
    }
  }
  return settings;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    measure(parse(std::span(argv + 1, static_cast<std::size_t>(argc - 1))));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_limit: %s\n", error.what());
    return 1;
  }
}
