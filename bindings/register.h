// What the files of this room give to the module: each binds one thing and exports one function,
// register_x(module), that adds it to stook._core. Called once, at import, with the GIL held.
#pragma once

#include <pybind11/pybind11.h>

namespace stook::bindings {

void register_begin_item(pybind11::module_& module);
void register_errors(pybind11::module_& module);
void register_index_plan(pybind11::module_& module);
void register_jpeg(pybind11::module_& module);
void register_lease(pybind11::module_& module);
void register_npy(pybind11::module_& module);
void register_profile(pybind11::module_& module);
void register_reclaimer(pybind11::module_& module);
void register_resized_crop(pybind11::module_& module);
void register_result_iterator(pybind11::module_& module);
void register_segment_object(pybind11::module_& module);
void register_shared_memory_array(pybind11::module_& module);
void register_tar(pybind11::module_& module);
void register_task_queue(pybind11::module_& module);
void register_timed_iterator(pybind11::module_& module);
void register_worker_pool(pybind11::module_& module);
void register_worker_process(pybind11::module_& module);

}  // namespace stook::bindings
