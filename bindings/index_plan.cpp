#include "workers/index_plan.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "bindings/further_items.h"
#include "bindings/register.h"

namespace stook::bindings {
namespace {

namespace py = pybind11;
using workers::IndexPlan;
using workers::ItemsFrom;

py::int_ index_of(std::uint64_t value) {
  return py::reinterpret_steal<py::int_>(PyLong_FromUnsignedLongLong(value));
}

// (epoch, number, index or tuple of indices), as the task takes it.
py::tuple next_job(IndexPlan& plan) {
  IndexPlan::Job job;
  if (!plan.next(job)) throw py::stop_iteration();
  OwnedRef payload;
  if (plan.options().fill) {
    payload = filled_payload(plan.items_from(job), std::as_bytes(job.indices));
  } else if (plan.options().batch_size == 0) {
    payload.reset(PyLong_FromUnsignedLongLong(job.indices.front()));
  } else {
    payload = tuple_of(std::as_bytes(job.indices));
  }
  if (!payload) throw py::error_already_set();
  return py::make_tuple(index_of(job.epoch), index_of(job.number),
                        py::reinterpret_steal<py::object>(payload.release()));
}

std::optional<std::uint64_t> further_item(const ItemsFrom& from, std::uint64_t number) {
  return from.at(number);
}

}  // namespace

OwnedRef tuple_of(std::span<const std::byte> words, OwnedRef first) {
  const std::size_t count = words.size() / sizeof(std::uint64_t);
  const std::size_t before = first ? 1 : 0;
  OwnedRef tuple(PyTuple_New(static_cast<Py_ssize_t>(before + count)));
  if (!tuple) return tuple;
  if (first) PyTuple_SET_ITEM(tuple.get(), 0, first.release());
  for (std::size_t i = 0; i < count; ++i) {
    std::uint64_t value = 0;
    std::memcpy(&value, words.data() + i * sizeof value, sizeof value);
    PyObject* number = PyLong_FromUnsignedLongLong(value);
    if (number == nullptr) return OwnedRef();
    PyTuple_SET_ITEM(tuple.get(), static_cast<Py_ssize_t>(before + i), number);
  }
  return tuple;
}

OwnedRef filled_payload(const ItemsFrom& from, std::span<const std::byte> indices) {
  try {
    return tuple_of(indices, OwnedRef(py::cast(from).release().ptr()));
  } catch (py::error_already_set& error) {
    error.restore();
    return OwnedRef();
  }
}

void register_index_plan(py::module_& module) {
  py::class_<ItemsFrom>(module, "FurtherItems",
                        "The items of an epoch from the first one of a batch on: called with a "
                        "number, counted from 0 there, gives the index, or None beyond the end.")
      .def("__call__", &further_item, py::arg("number"), py::pos_only());
  py::class_<IndexPlan>(module, "IndexPlan",
                        "The jobs of a pass over a source that is indexed: an iterator of (epoch, "
                        "number, index), or of (epoch, number, tuple of indices) with a batch "
                        "size other than 0; see workers/index_plan.h. Its length is the number of "
                        "jobs in one epoch of this shard.")
      .def(py::init([](std::uint64_t length, std::uint64_t batch_size, bool drop_remainder,
                       std::optional<std::uint64_t> shuffle_seed, std::uint64_t first_epoch,
                       std::optional<std::uint64_t> num_epochs, std::uint64_t shard_index,
                       std::uint64_t shard_count, std::uint64_t first_position,
                       std::uint64_t first_place, std::vector<std::uint64_t> skip, bool fill,
                       std::optional<std::uint64_t> first_item) {
             return IndexPlan({.length = length,
                               .batch_size = batch_size,
                               .drop_remainder = drop_remainder,
                               .shuffle_seed = shuffle_seed,
                               .first_epoch = first_epoch,
                               .num_epochs = num_epochs,
                               .shard_index = shard_index,
                               .shard_count = shard_count,
                               .first_position = first_position,
                               .first_place = first_place,
                               .skip = std::move(skip),
                               .fill = fill,
                               .first_item = first_item});
           }),
           py::arg("length"), py::arg("batch_size") = 0, py::arg("drop_remainder") = false,
           py::arg("shuffle_seed") = py::none(), py::arg("first_epoch") = 0,
           py::arg("num_epochs") = 1, py::kw_only(), py::arg("shard_index") = 0,
           py::arg("shard_count") = 1, py::arg("first_position") = 0, py::arg("first_place") = 0,
           py::arg("skip") = std::vector<std::uint64_t>(), py::arg("fill") = false,
           py::arg("first_item") = py::none())
      .def("__iter__", [](py::object self) { return self; })
      .def("__next__", &next_job)
      .def("__len__", [](const IndexPlan& plan) { return plan.jobs_per_epoch(); })
      .def("rewind", &IndexPlan::rewind, py::arg("epoch"), py::arg("position"), py::arg("item"),
           py::arg("ordinal"))
      .def("planned_items", &IndexPlan::planned_items, py::arg("epoch"), py::arg("item"))
      .def_property_readonly("jobs_per_epoch", &IndexPlan::jobs_per_epoch)
      .def_property_readonly("jobs_in_first_epoch", &IndexPlan::jobs_in_first_epoch);
}

}  // namespace stook::bindings
