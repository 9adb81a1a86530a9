// A large array of zeros that costs only what is touched, private to the process.
//
// Not calloc: once a large block was freed, glibc serves the next one from the heap and zeroes all
// of it, which for the tables here takes tens of milliseconds.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

namespace stook::shm {

template <class T>
class SparseArray {
  static_assert(std::is_trivial_v<T>);

 public:
  // Throws std::bad_alloc.
  explicit SparseArray(std::size_t count) : bytes_(count * sizeof(T)) {
    void* memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    items_ = static_cast<T*>(memory);
  }
  SparseArray(SparseArray&& other) noexcept
      : items_(std::exchange(other.items_, nullptr)), bytes_(other.bytes_) {}
  SparseArray(const SparseArray&) = delete;
  SparseArray& operator=(const SparseArray&) = delete;
  ~SparseArray() {
    if (items_ != nullptr) ::munmap(items_, bytes_);
  }

  T& operator[](std::size_t i) noexcept { return items_[i]; }
  const T& operator[](std::size_t i) const noexcept { return items_[i]; }

 private:
  T* items_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace stook::shm
