#include <numpy/arrayobject.h>
#include <pybind11/pybind11.h>

#include "bindings/register.h"

namespace {

// import_array() is a macro that returns from the function it stands in.
void* import_numpy() {
  import_array1(nullptr);
  return nullptr;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  import_numpy();
  if (PyErr_Occurred() != nullptr) throw pybind11::error_already_set();
  module.doc() = "The C++ side of stook. Private: what people import is the package stook.";
  module.attr("__version__") = STOOK_VERSION;
  stook::bindings::register_errors(module);
  stook::bindings::register_index_plan(module);
  stook::bindings::register_jpeg(module);
  stook::bindings::register_lease(module);
  stook::bindings::register_npy(module);
  stook::bindings::register_resized_crop(module);
  stook::bindings::register_segment_object(module);
  stook::bindings::register_shared_memory_array(module);
  stook::bindings::register_reclaimer(module);
  stook::bindings::register_timed_iterator(module);
  stook::bindings::register_worker_pool(module);
  stook::bindings::register_result_iterator(module);
  stook::bindings::register_tar(module);
  stook::bindings::register_task_queue(module);
  stook::bindings::register_worker_process(module);
  stook::bindings::register_begin_item(module);
  stook::bindings::register_profile(module);
}
