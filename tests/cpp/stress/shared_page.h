// Memory for the stress tests: a shared mapping, as the processes of production have it.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace stook {

// A T in zeroed shared memory.
template <class T>
class SharedPage {
 public:
  SharedPage() {
    void* memory =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    object_ = new (memory) T();
  }
  ~SharedPage() {
    object_->~T();
    ::munmap(object_, sizeof(T));
  }
  SharedPage(const SharedPage&) = delete;
  SharedPage& operator=(const SharedPage&) = delete;

  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }

 private:
  T* object_;
};

// What a slot or block holds in these tests: words that depend on a number, and their sum.
struct Checked {
  static constexpr std::size_t kWords = 14;
  std::uint64_t number;
  std::uint64_t words[kWords];
  std::uint64_t sum;

  void write(std::uint64_t seed) {
    number = seed;
    sum = seed;
    for (std::size_t i = 0; i < kWords; ++i) {
      words[i] = (seed + i) * 0x9e3779b97f4a7c15ULL;
      sum += words[i];
    }
  }
  bool holds(std::uint64_t seed) const {
    std::uint64_t total = number;
    for (const std::uint64_t word : words) total += word;
    return number == seed && total == sum && words[0] == seed * 0x9e3779b97f4a7c15ULL;
  }
};

}  // namespace stook
