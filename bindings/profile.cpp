#include "bindings/profile.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>
#include <utility>

#include "bindings/copy_reasons.h"
#include "bindings/errors.h"
#include "bindings/register.h"
#include "shm/error.h"
#include "shm/fork_guard.h"
#include "shm/shared_memory.h"

namespace stook::bindings {
namespace {

using workers::ProfileCell;
using workers::ProfileStage;

// ------------------------------------------------------------------ the memory

struct Profile {
  PyObject_HEAD;
  shm::Mapping* memory;
  std::uint64_t cells;
  ProfileCell* current;      // of this process
  std::uint64_t generation;  // in which it was chosen: a forked child writes nothing
};

// Held for the life of a fork server, and of a worker until it has chosen its cell; nullptr in
// every other process, those among them that are forked off a worker.
Profile* of_workers = nullptr;

std::uint64_t bytes_for(std::uint64_t cells) {
  return shm::kPageBytes + cells * sizeof(ProfileCell);
}

Profile* as_profile(PyObject* object) { return reinterpret_cast<Profile*>(object); }

workers::ProfileHeader& header_of(Profile* profile) {
  return *reinterpret_cast<workers::ProfileHeader*>(profile->memory->data());
}

ProfileCell* cell_at(Profile* profile, std::uint64_t index) {
  return reinterpret_cast<ProfileCell*>(profile->memory->data() + shm::kPageBytes) + index;
}

void choose(Profile* profile, std::uint64_t index) {
  profile->current = cell_at(profile, index);
  profile->generation = shm::fork_generation();
}

PyObject* profile_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"fd", "cells", "window", "cell", nullptr};
  int fd = -1;
  unsigned long long cells = 0;
  unsigned long long window = 0;
  unsigned long long cell = 0;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "iKKK", const_cast<char**>(names), &fd,
                                  &cells, &window, &cell) == 0) {
    return nullptr;
  }
  if (cell >= cells || cells > (1U << 20)) {
    PyErr_SetString(PyExc_ValueError, "no such cell");
    return nullptr;
  }
  auto* self = as_profile(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  try {
    self->memory = new shm::Mapping(fd, bytes_for(cells), shm::Access::kReadWrite);
  } catch (const shm::Error& error) {
    Py_DECREF(self);
    set_python_error(error);
    return nullptr;
  } catch (const std::bad_alloc&) {
    Py_DECREF(self);
    return PyErr_NoMemory();
  }
  self->cells = cells;
  header_of(self).window = window;
  choose(self, cell);
  return reinterpret_cast<PyObject*>(self);
}

void profile_dealloc(PyObject* object) {
  delete as_profile(object)->memory;
  Py_TYPE(object)->tp_free(object);
}

PyObject* profile_size(PyObject*, PyObject* cells) {
  const unsigned long long count = PyLong_AsUnsignedLongLong(cells);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return PyLong_FromUnsignedLongLong(bytes_for(count));
}

PyObject* profile_serve_workers(PyObject* object, PyObject*) {
  Py_INCREF(object);
  Py_XDECREF(std::exchange(of_workers, as_profile(object)));
  Py_RETURN_NONE;
}

// The cell of an argument, or nullptr with an error set.
ProfileCell* cell_of(Profile* profile, unsigned long long index) {
  if (index < profile->cells) return cell_at(profile, index);
  PyErr_SetString(PyExc_IndexError, "no such cell");
  return nullptr;
}

unsigned long long load(const workers::Shared<std::uint64_t>& word) {
  return word.load(std::memory_order_relaxed);
}

// Py_BuildValue's result, appended; false with an error set.
bool append(PyObject* list, PyObject* entry) {
  const OwnedRef owned(entry);
  return owned && PyList_Append(list, owned.get()) == 0;
}

PyObject* profile_read(PyObject* object, PyObject* argument) {
  const unsigned long long index = PyLong_AsUnsignedLongLong(argument);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const ProfileCell* cell = cell_of(as_profile(object), index);
  if (cell == nullptr) return nullptr;
  OwnedRef waits(PyList_New(0));
  OwnedRef stages(PyList_New(0));
  OwnedRef reasons(PyList_New(0));
  if (!waits || !stages || !reasons) return nullptr;
  for (const workers::ProfileWaitWords& wait : cell->waits) {
    if (!append(waits.get(), Py_BuildValue("KK", load(wait.count), load(wait.nanoseconds)))) {
      return nullptr;
    }
  }
  for (const workers::ProfileStageWords& stage : cell->stages) {
    if (!append(stages.get(), Py_BuildValue("KKK", load(stage.calls), load(stage.nanoseconds),
                                            load(stage.bytes)))) {
      return nullptr;
    }
  }
  for (const workers::ProfileReasonWords& reason : cell->reasons) {
    // SYNC(profile.example): acquires what note() released.
    const bool told = reason.has_example.load(std::memory_order_acquire) != 0;
    const auto references = static_cast<unsigned long long>(told ? reason.references : 0);
    const std::string_view path(told ? reason.path : "");
    const std::string_view type(told ? reason.type : "");
    // A text may be cut in the middle of a character.
    PyObject* path_text =
        PyUnicode_DecodeUTF8(path.data(), static_cast<Py_ssize_t>(path.size()), "replace");
    PyObject* type_text =
        PyUnicode_DecodeUTF8(type.data(), static_cast<Py_ssize_t>(type.size()), "replace");
    if (!append(reasons.get(), Py_BuildValue("KKKNN", load(reason.leaves), load(reason.bytes),
                                             references, path_text, type_text))) {
      return nullptr;
    }
  }
  return Py_BuildValue("KKKKNNN", load(cell->pid), load(cell->started), load(cell->waits_for),
                       load(cell->waits_since), waits.release(), stages.release(),
                       reasons.release());
}

PyObject* profile_events(PyObject* object, PyObject* argument) {
  const unsigned long long index = PyLong_AsUnsignedLongLong(argument);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const ProfileCell* cell = cell_of(as_profile(object), index);
  OwnedRef events(PyList_New(0));
  if (cell == nullptr || !events) return nullptr;
  const std::uint64_t end = load(cell->events);
  const std::uint64_t first = end - std::min(end, workers::kProfileEvents);
  for (std::uint64_t number = first; number < end; ++number) {
    const workers::ProfileEvent& event = cell->ring[number % workers::kProfileEvents];
    // SYNC(profile.event): acquires what add_event() released.
    if (event.number.load(std::memory_order_acquire) != number + 1) continue;
    const std::uint64_t code = load(event.code);
    const std::uint64_t begin = load(event.begin);
    const std::uint64_t nanoseconds = load(event.nanoseconds);
    const std::uint64_t epoch = load(event.epoch);
    const std::uint64_t position = load(event.position);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (event.number.load(std::memory_order_relaxed) != number + 1) continue;  // overwritten
    if (!append(events.get(),
                Py_BuildValue("KKKKKK", static_cast<unsigned long long>(code & 0xFFFFFFFFU),
                              static_cast<unsigned long long>(code >> 32),
                              static_cast<unsigned long long>(begin),
                              static_cast<unsigned long long>(nanoseconds),
                              static_cast<unsigned long long>(epoch),
                              static_cast<unsigned long long>(position)))) {
      return nullptr;
    }
  }
  return events.release();
}

PyObject* profile_record(PyObject* object, PyObject* arguments) {
  unsigned long long index = 0;
  unsigned int stage = 0;
  unsigned long long begin = 0;
  unsigned long long end = 0;
  if (PyArg_ParseTuple(arguments, "KIKK", &index, &stage, &begin, &end) == 0) return nullptr;
  ProfileCell* cell = cell_of(as_profile(object), index);
  if (cell == nullptr) return nullptr;
  cell->add_stage(stage, 1, begin, std::max(begin, end), 0, 0, 0);
  Py_RETURN_NONE;
}

PyMethodDef profile_methods[] = {
    {"size", profile_size, METH_O | METH_STATIC, "Bytes of the memory of so many cells."},
    {"serve_workers", profile_serve_workers, METH_NOARGS,
     "Has the workers that this process forks note their figures here."},
    {"read", profile_read, METH_O,
     "(pid, started, waits_for, waits_since, waits, stages, reasons) of a cell."},
    {"events", profile_events, METH_O,
     "[(code, thread, begin, nanoseconds, epoch, position)] of a cell's last events."},
    {"record", profile_record, METH_VARARGS,
     "(cell, stage, begin, end): counts a call of a stage."},
    {nullptr, nullptr, 0, nullptr},
};

PyTypeObject profile_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook._core.Profile";
  type.tp_doc = "Profile(fd, cells, window, cell): memory of figures; this process writes `cell`.";
  type.tp_basicsize = sizeof(Profile);
  type.tp_flags = Py_TPFLAGS_DEFAULT;
  type.tp_new = profile_new;
  type.tp_dealloc = profile_dealloc;
  type.tp_methods = profile_methods;
  return type;
}();

// ------------------------------------------------------------------ timed functions

// The element that this thread makes.
thread_local std::uint64_t epoch_now = 0;
thread_local std::uint64_t position_now = 0;

struct Stage {
  PyObject_HEAD;
  vectorcallfunc vectorcall;
  Profile* profile;
  PyObject* function;
  std::uint32_t number;
  std::uint32_t calls;  // that one call counts as
};

Stage* as_stage(PyObject* object) { return reinterpret_cast<Stage*>(object); }

// Bytes of the arrays and byte strings in what a stage made; of large trees, of their beginning.
std::uint64_t bytes_in(PyObject* object, int depth = 0) {
  constexpr int kDeepest = 4;
  constexpr Py_ssize_t kWidest = 64;
  if (PyArray_Check(object)) return static_cast<std::uint64_t>(PyArray_NBYTES(as_array(object)));
  if (PyBytes_CheckExact(object)) return static_cast<std::uint64_t>(PyBytes_GET_SIZE(object));
  std::uint64_t bytes = 0;
  if (depth >= kDeepest) return bytes;
  if (PyDict_CheckExact(object)) {
    Py_ssize_t position = 0;
    PyObject* value = nullptr;
    for (Py_ssize_t i = 0; i < kWidest && PyDict_Next(object, &position, nullptr, &value) != 0;
         ++i) {
      bytes += bytes_in(value, depth + 1);
    }
  } else if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) {
    for (Py_ssize_t i = 0; i < std::min(kWidest, Py_SIZE(object)); ++i) {
      bytes += bytes_in(
          PyList_CheckExact(object) ? PyList_GET_ITEM(object, i) : PyTuple_GET_ITEM(object, i),
          depth + 1);
    }
  }
  return bytes;
}

// Counts a call; `made` may be nullptr, with an error set.
PyObject* noted(const Stage* stage, std::uint64_t begin, PyObject* made) {
  const std::uint64_t end = workers::monotonic_nanoseconds();
  const Profile* profile = stage->profile;
  if (profile->generation == shm::fork_generation()) {
    profile->current->add_stage(stage->number, stage->calls, begin, end,
                                made == nullptr ? 0 : bytes_in(made), epoch_now, position_now);
  }
  return made;
}

PyObject* stage_vectorcall(PyObject* object, PyObject* const* arguments, std::size_t count,
                           PyObject* names) {
  const Stage* stage = as_stage(object);
  if (stage->number == static_cast<std::uint32_t>(ProfileStage::kElement) &&
      PyVectorcall_NARGS(count) >= 2) {
    epoch_now = PyLong_AsUnsignedLongLongMask(arguments[0]);
    position_now = PyLong_AsUnsignedLongLongMask(arguments[1]);
    if (PyErr_Occurred() != nullptr) return nullptr;
  }
  const std::uint64_t begin = workers::monotonic_nanoseconds();
  return noted(stage, begin, PyObject_Vectorcall(stage->function, arguments, count, names));
}

PyObject* stage_item(PyObject* object, PyObject* key) {
  const Stage* stage = as_stage(object);
  const std::uint64_t begin = workers::monotonic_nanoseconds();
  return noted(stage, begin, PyObject_GetItem(stage->function, key));
}

int stage_init(PyObject* object, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"profile", "stage", "function", "calls", nullptr};
  PyObject* profile = nullptr;
  PyObject* function = nullptr;
  unsigned int number = 0;
  unsigned int calls = 1;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "O!IO|I", const_cast<char**>(names),
                                  &profile_type, &profile, &number, &function, &calls) == 0) {
    return -1;
  }
  Stage* stage = as_stage(object);
  Py_INCREF(profile);
  Py_INCREF(function);
  const OwnedRef old_profile(
      reinterpret_cast<PyObject*>(std::exchange(stage->profile, as_profile(profile))));
  const OwnedRef old_function(std::exchange(stage->function, function));
  stage->number = number;
  stage->calls = calls;
  stage->vectorcall = stage_vectorcall;
  return 0;
}

PyObject* stage_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  OwnedRef self(type->tp_alloc(type, 0));
  if (!self || stage_init(self.get(), arguments, keywords) != 0) return nullptr;
  return self.release();
}

int stage_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(as_stage(object)->profile);
  Py_VISIT(as_stage(object)->function);
  return 0;
}

// Only what may be part of a cycle: whoever calls the rest of one finds a profile.
int stage_clear(PyObject* object) {
  Py_INCREF(Py_None);
  const OwnedRef function(std::exchange(as_stage(object)->function, Py_None));
  return 0;
}

void stage_dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  Py_CLEAR(as_stage(object)->function);
  Py_CLEAR(as_stage(object)->profile);
  Py_TYPE(object)->tp_free(object);
}

PyMappingMethods stage_mapping{nullptr, stage_item, nullptr};

PyTypeObject stage_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook._core.Stage";
  type.tp_doc =
      "Stage(profile, stage, function, calls=1): calls the function, or takes its items, and "
      "notes the time.";
  type.tp_basicsize = sizeof(Stage);
  type.tp_flags =
      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL;
  type.tp_new = stage_new;
  type.tp_dealloc = stage_dealloc;
  type.tp_traverse = stage_traverse;
  type.tp_clear = stage_clear;
  type.tp_call = PyVectorcall_Call;
  type.tp_vectorcall_offset = offsetof(Stage, vectorcall);
  type.tp_as_mapping = &stage_mapping;
  return type;
}();

}  // namespace

workers::ProfileCell* profile_cell(PyObject* profile, unsigned long long index) {
  if (Py_TYPE(profile) == &profile_type) return cell_of(as_profile(profile), index);
  PyErr_SetString(PyExc_TypeError, "not a Profile");
  return nullptr;
}

WorkerProfile choose_worker_profile(std::uint32_t index) {
  if (of_workers == nullptr || index >= of_workers->cells) return {};
  Profile* profile = std::exchange(of_workers, nullptr);  // its reference lasts with the process
  choose(profile, index);
  return {profile->current, header_of(profile).window};
}

std::uint64_t note_encoded(ProfileCell& cell, const workers::Job& job, std::uint64_t begun,
                           const Encoder& encoder, PyObject* element, BlockSource& blocks) {
  cell.add_stage(static_cast<std::uint32_t>(ProfileStage::kEncode), 1, begun,
                 workers::monotonic_nanoseconds(), encoder.array_bytes(), job.epoch, job.position);
  note_copy_reasons(element, encoder.min_shared_bytes(), blocks, encoder.moved(), cell);
  return workers::monotonic_nanoseconds();
}

void note_handed_over(ProfileCell& cell, const workers::Job& job, std::uint64_t begun) {
  cell.add_stage(static_cast<std::uint32_t>(ProfileStage::kHandOver), 1, begun,
                 workers::monotonic_nanoseconds(), 0, job.epoch, job.position);
}

void register_profile(py::module_& module) {
  if (PyType_Ready(&profile_type) < 0 || PyType_Ready(&stage_type) < 0) {
    throw py::error_already_set();
  }
  module.add_object("Profile", reinterpret_cast<PyObject*>(&profile_type));
  module.add_object("Stage", reinterpret_cast<PyObject*>(&stage_type));
}

}  // namespace stook::bindings
