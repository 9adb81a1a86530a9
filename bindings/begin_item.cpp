#include "bindings/begin_item.h"

#include "bindings/register.h"

namespace stook::bindings {
namespace {

// Set once, before the first job; null in every process but a worker.
workers::Worker* told_worker = nullptr;

PyObject* begin_item(PyObject*, PyObject* number) {
  const unsigned long item = PyLong_AsUnsignedLong(number);
  if (item == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) return nullptr;
  // A child that user code forked is at no job.
  if (told_worker != nullptr && !told_worker->in_forked_child()) told_worker->begin_item(item);
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"begin_item", begin_item, METH_O,
     "begin_item($module, item, /)\n--\n\n"
     "Says that the task goes on to item `item` of its job. Does nothing outside of workers."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void tell_items_to(workers::Worker& worker) { told_worker = &worker; }

OwnedRef losses_of(const workers::Job& job) {
  OwnedRef losses(PyTuple_New(static_cast<Py_ssize_t>(job.losses.size())));
  if (!losses) return losses;
  for (std::size_t i = 0; i < job.losses.size(); ++i) {
    const workers::Loss& loss = job.losses[i];
    const auto flag = [&](std::uint32_t bit) {
      return (loss.flags & bit) != 0 ? Py_True : Py_False;
    };
    PyObject* entry =
        Py_BuildValue("IIiiIOO", loss.item, loss.worker, loss.pid, loss.status, loss.attempts,
                      flag(workers::Loss::kTimedOut), flag(workers::Loss::kOutOfMemory));
    if (entry == nullptr) return OwnedRef();
    PyTuple_SET_ITEM(losses.get(), static_cast<Py_ssize_t>(i), entry);
  }
  return losses;
}

void register_begin_item(py::module_& module) {
  if (PyModule_AddFunctions(module.ptr(), functions) < 0) throw py::error_already_set();
}

}  // namespace stook::bindings
