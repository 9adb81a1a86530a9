// Python's signal handlers, which run in its main thread between any two steps of Python code: see
// stook/_signal_handlers.py. All require the GIL.
#pragma once

#include "bindings/python_api.h"

namespace stook::bindings {

// PyThread_get_thread_ident() of the thread in which they run.
unsigned long main_thread();

// True if the Python error that is set is one that a handler raised, and so the program's. The
// error stays set.
bool handler_raised();

// True if the main thread is in one. May run Python code; sets no error.
bool handler_runs();

}  // namespace stook::bindings
