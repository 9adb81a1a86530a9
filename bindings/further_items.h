// What a task gets beside the indices of a batch that is to be filled.
#pragma once

#include <cstddef>
#include <span>

#include "bindings/python_api.h"
#include "workers/index_plan.h"

namespace stook::bindings {

// A tuple of the numbers in `words` (u64 each), behind `first` if there is one, of which it takes
// the reference. Nothing, with an error set, if there is no memory. Requires GIL.
OwnedRef tuple_of(std::span<const std::byte> words, OwnedRef first = OwnedRef());

// The payload of such a batch: a tuple of a _core.FurtherItems and of the indices. Nothing, with an
// error set, if there is no memory. Requires GIL.
OwnedRef filled_payload(const workers::ItemsFrom& from, std::span<const std::byte> indices);

}  // namespace stook::bindings
