// Figures of a loader with enable_profiling: the memory they lie in, and functions that are timed.
#pragma once

#include <cstdint>

#include "bindings/encoder.h"
#include "bindings/python_api.h"
#include "workers/profile.h"
#include "workers/worker.h"

namespace stook::bindings {

// What a worker of this process is to note its figures in; nullptr without profiling. Set before
// workers are forked.
struct WorkerProfile {
  workers::ProfileCell* cell = nullptr;
  std::uint64_t window = 0;
};
// The cell of a stook._core.Profile; nullptr with an error set if it is none, or has no such cell.
// The object holds the memory.
workers::ProfileCell* profile_cell(PyObject* profile, unsigned long long index);

// Chooses the cell of worker `index`, also for the timed functions. Called once by a worker.
WorkerProfile choose_worker_profile(std::uint32_t index);

// Of an element that was encoded, begun at `begun`, and of which nothing was dropped yet: notes
// that, and why leaves of it were copied. Returns the time behind that.
std::uint64_t note_encoded(workers::ProfileCell& cell, const workers::Job& job, std::uint64_t begun,
                           const Encoder& encoder, PyObject* element, BlockSource& blocks);
// Of a job that was published, from `begun` to now.
void note_handed_over(workers::ProfileCell& cell, const workers::Job& job, std::uint64_t begun);

}  // namespace stook::bindings
