#include "bindings/numpy_allocator.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

namespace stook::bindings {
namespace {

// Zeroing a sparse gigabyte would touch it all: larger requests for zeros go to the heap, whose
// pages are zero without being touched.
constexpr std::size_t kMaxZeroedBytes = std::size_t{64} << 20;

// Never destroyed: arrays may outlive everything else in the process.
workers::WorkerArena* arena = nullptr;
// Of workers that this one was forked from: a loader in a worker, with start_method="fork". Arrays
// in them were made there, and are read here.
std::vector<workers::WorkerArena*> inherited_arenas;
std::size_t min_bytes = 0;
PyDataMem_Handler* fallback = nullptr;
PyObject* our_capsule = nullptr;
// Written by the worker's main thread, read by whichever thread allocates. Relaxed: a thread that
// allocates just after the end of a job may as well have done so just before.
std::atomic<bool> active{false};
thread_local bool active_in_thread = false;

void* fallback_malloc(std::size_t size) {
  return fallback->allocator.malloc(fallback->allocator.ctx, size);
}

std::byte* arena_malloc(std::size_t size, bool* zeroed) {
  if (size < min_bytes) return nullptr;
  if (!active.load(std::memory_order_relaxed) && !active_in_thread) return nullptr;
  const auto allocation = arena->allocate_array(size);
  // Out of arena: the heap serves, and the array is copied when it is handed over.
  if (!allocation) return nullptr;
  *zeroed = allocation->block.zeroed;
  return allocation->data;
}

void* handler_malloc(void*, std::size_t size) {
  bool zeroed = false;
  if (std::byte* data = arena_malloc(size, &zeroed)) return data;
  return fallback_malloc(size);
}

void* handler_calloc(void*, std::size_t count, std::size_t element_size) {
  const bool overflows =
      element_size != 0 && count > std::numeric_limits<std::size_t>::max() / element_size;
  if (!overflows && count * element_size <= kMaxZeroedBytes) {
    bool zeroed = false;
    if (std::byte* data = arena_malloc(count * element_size, &zeroed)) {
      if (!zeroed) std::memset(data, 0, count * element_size);
      return data;
    }
  }
  return fallback->allocator.calloc(fallback->allocator.ctx, count, element_size);
}

// The arena that the pointer lies in, or nullptr.
workers::WorkerArena* find_arena(const void* pointer) {
  if (arena->contains(pointer)) return arena;
  for (workers::WorkerArena* other : inherited_arenas) {
    if (other->contains(pointer)) return other;
  }
  return nullptr;
}

void handler_free(void*, void* pointer, std::size_t size) {
  if (workers::WorkerArena* home = find_arena(pointer)) {
    home->free(pointer);
  } else {
    fallback->allocator.free(fallback->allocator.ctx, pointer, size);
  }
}

void* handler_realloc(void*, void* pointer, std::size_t new_size) {
  if (pointer == nullptr) return handler_malloc(nullptr, new_size);
  workers::WorkerArena* home = find_arena(pointer);
  if (home == nullptr) {
    return fallback->allocator.realloc(fallback->allocator.ctx, pointer, new_size);
  }
  const auto block = home->find(pointer);
  // In a forked child nobody knows the block any more; what lies behind it is mapped all the same.
  const std::size_t old_size =
      block ? block->capacity : home->memory().size() - home->offset_of(pointer);
  if (block && new_size <= old_size) return pointer;
  void* moved = handler_malloc(nullptr, new_size);
  if (moved == nullptr) return nullptr;
  std::memcpy(moved, pointer, std::min(old_size, new_size));
  home->free(pointer);
  return moved;
}

PyDataMem_Handler handler = {
    "stook_arena",
    1,
    {nullptr, handler_malloc, handler_calloc, handler_realloc, handler_free},
};

}  // namespace

void install_numpy_allocator(workers::WorkerArena& worker_arena, std::uint64_t min_shared_bytes) {
  if (arena != nullptr) inherited_arenas.push_back(arena);
  arena = &worker_arena;
  min_bytes = min_shared_bytes;
  set_numpy_allocator_active(false);  // the worker that this one was forked from was in a job
  // Both capsules are kept for ever: arrays refer to the handler that must free them.
  PyObject* before = PyDataMem_GetHandler();
  if (before == nullptr) throw py::error_already_set();
  auto* found = static_cast<PyDataMem_Handler*>(PyCapsule_GetPointer(before, "mem_handler"));
  if (found == nullptr) throw py::error_already_set();
  if (found != &handler) fallback = found;
  if (our_capsule == nullptr) our_capsule = PyCapsule_New(&handler, "mem_handler", nullptr);
  if (our_capsule == nullptr) throw py::error_already_set();
  PyObject* replaced = PyDataMem_SetHandler(our_capsule);
  if (replaced == nullptr) throw py::error_already_set();
  Py_DECREF(replaced);
}

void set_numpy_allocator_active(bool now_active) {
  active.store(now_active, std::memory_order_relaxed);
}

void keep_numpy_allocator_active() { active_in_thread = true; }

bool has_our_handler(PyArrayObject* array) {
  return our_capsule != nullptr && PyArray_HANDLER(array) == our_capsule;
}

}  // namespace stook::bindings
