// What a task gets beside the indices of a batch that is to be filled.
#pragma once

#include "bindings/python_api.h"
#include "workers/index_plan.h"

namespace stook::bindings {

// The payload of such a batch: a tuple of a _core.FurtherItems and of the indices. Nothing, with an
// error set, if there is no memory. Requires GIL.
OwnedRef filled_payload(const workers::ItemsFrom& from, std::span<const std::byte> indices);

}  // namespace stook::bindings
