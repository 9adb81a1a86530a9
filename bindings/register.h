// What the files of this room give to the module: each binds one thing and exports one function,
// register_x(module), that adds it to stook._core. Called once, at import, with the GIL held.
#pragma once

#include <pybind11/pybind11.h>

namespace stook::bindings {}  // namespace stook::bindings
