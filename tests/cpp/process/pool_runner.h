// What workers of a test pool do with a job.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "tests/cpp/process/pool.h"

namespace stook {

// `gate` is the descriptor that kWaitAtGate reads; both outlive the runner.
std::unique_ptr<workers::JobRunner> make_runner(Blackboard& blackboard, int gate);

// Of what payloads of an epoch are filled with.
std::byte filler_of(std::uint64_t epoch);

}  // namespace stook
