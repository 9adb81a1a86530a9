// The Python side of the fork server and of the workers that it forks.
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/begin_item.h"
#include "bindings/calls.h"
#include "bindings/decoder.h"
#include "bindings/encoder.h"
#include "bindings/errors.h"
#include "bindings/further_items.h"
#include "bindings/held_segments.h"
#include "bindings/job_kinds.h"
#include "bindings/numpy_allocator.h"
#include "bindings/profile.h"
#include "bindings/python_api.h"
#include "bindings/register.h"
#include "bindings/worker_errors.h"
#include "workers/fork_server.h"
#include "workers/worker.h"

namespace stook::bindings {
namespace {

// A worker comes back with what it has of a job's items after so many bytes of arrays, or, if the
// items were put together because their calls took no time, after this time.
constexpr std::uint64_t kMostBatchBytes = std::uint64_t{8} << 20;
constexpr std::chrono::microseconds kBatchTime{1000};

class ArenaBlocks : public BlockSource {
 public:
  explicit ArenaBlocks(workers::WorkerArena& arena) : arena_(arena) {}

  std::optional<Destination> allocate(std::uint64_t bytes) override {
    const auto allocation = arena_.allocate(bytes);
    if (!allocation) return std::nullopt;
    const shm::Block& block = allocation->block;
    return Destination{allocation->data, {block.offset, block.capacity, block.id, 0}};
  }
  std::optional<shm::Block> find(const void* data) override { return arena_.find(data); }
  std::uint64_t offset_of(const void* address) override { return arena_.offset_of(address); }
  void discard(const workers::BlockRef& block) override { arena_.release_own({&block, 1}); }

 private:
  workers::WorkerArena& arena_;
};

// User code forked, and this is the child, back from it: it is no worker.
[[noreturn]] void end_forked_child(const WorkerFunctions& functions, OwnedRef result) {
  result.reset();
  const OwnedRef exception =
      PyErr_Occurred() != nullptr ? take_exception() : OwnedRef(Py_NewRef(Py_None));
  const OwnedRef done(PyObject_CallOneArg(functions.end_forked_child, exception.get()));
  ::_exit(1);
}

class PythonRunner : public workers::JobRunner {
 public:
  PythonRunner(workers::Worker& worker, const WorkerFunctions& functions, PyObject* task,
               std::uint64_t min_shared_bytes, std::uint64_t most_jobs,
               workers::ProfileCell* profile)
      : functions_(functions),
        profile_(profile),
        task_(task),
        most_jobs_(most_jobs),
        function_table_(functions.load_function),
        blocks_(worker.arena()),
        encoder_(blocks_, min_shared_bytes, functions.pickle_objects, functions.pickle_dtype),
        decoder_(functions.unpickle_objects, functions.unpickle_dtype) {}

  void before_sleep() override { thread_ = PyEval_SaveThread(); }
  void after_sleep() override { PyEval_RestoreThread(std::exchange(thread_, nullptr)); }

  void run(const workers::Job& job, workers::Worker& worker) override {
    held_.note_delivered(worker.delivered());
    if (has_items(job.kind)) {
      run_items(job, worker);
    } else {
      run_one(job, worker);
    }
    if (job.kind != kRetireJob && (most_jobs_ == 0 || ++jobs_run_ < most_jobs_)) return;
    worker.set_end(job.kind == kRetireJob ? workers::kDismissed : workers::kRetired);
    const OwnedRef never(PyObject_CallNoArgs(functions_.retire));
    ::_exit(1);
  }

 private:
  void run_one(const workers::Job& job, workers::Worker& worker) {
    if (job.kind == kFailedJob) {
      const std::string error(reinterpret_cast<const char*>(job.payload.data()),
                              job.payload.size());
      return publish_error(worker, job.number, workers::ResultKind::kError, error);
    }
    // From call to publication in one function: see encoder.h.
    OwnedRef result = call(job, worker);
    if (worker.in_forked_child()) end_forked_child(functions_, std::move(result));
    Remarks remarks;
    if (!result) {
      if (job.kind == kFilledJob) remarks.consumed = take_items_used();
      return publish_error(worker, job.number, workers::ResultKind::kError,
                           encode_exception(functions_), remarks);
    }
    if (is_remark(result.get()) && has_task(job.kind)) {
      remarks = take_out_element(result);
      if (!result || result.get() == functions_.skip) {
        if (result) return publish_skip(job.number, remarks, worker);
        return publish_error(worker, job.number, workers::ResultKind::kError,
                             encode_exception(functions_));
      }
    }
    std::uint64_t begun = profile_ != nullptr ? workers::monotonic_nanoseconds() : 0;
    switch (encoder_.encode(result.get(), true)) {
      case EncodeResult::kDone: {
        if (profile_ != nullptr) {
          begun = note_encoded(*profile_, job, begun, encoder_, result.get(), blocks_);
        }
        encoder_.let_go_of(result);
        if (worker.in_forked_child()) end_forked_child(functions_, std::move(result));
        const bool published = publish(job, remarks, worker);
        if (profile_ != nullptr) note_handed_over(*profile_, job, begun);
        if (published) return;
        for (const workers::BlockRef& block : encoder_.made_blocks()) blocks_.discard(block);
        set_exhausted(encoder_.payload().size(), worker);
        break;
      }
      case EncodeResult::kNoRoom:
        set_exhausted(encoder_.requested_bytes(), worker);
        break;
      case EncodeResult::kPythonError:
        break;
    }
    result.reset();
    publish_error(worker, job.number, workers::ResultKind::kError, encode_exception(functions_),
                  remarks);
  }

  // How many items a batch has used up that raised what is set, as the task has noted on it
  // (stook/_element_errors.py), for the parent alone; 0 if it has not.
  static std::uint32_t take_items_used() {
    constexpr const char* kNote = "_stook_consumed";
    const OwnedRef exception = take_exception();
    if (!exception) return 0;
    const OwnedRef used(PyObject_GetAttrString(exception.get(), kNote));
    std::uint64_t count = 0;
    if (used && PyLong_CheckExact(used.get())) count = PyLong_AsUnsignedLong(used.get());
    PyErr_Clear();
    if (used && PyObject_DelAttrString(exception.get(), kNote) != 0) PyErr_Clear();
    raise_exception(exception.get());
    return count > UINT32_MAX ? 0 : static_cast<std::uint32_t>(count);
  }

  bool is_remark(PyObject* result) const {
    return reinterpret_cast<PyObject*>(Py_TYPE(result)) == functions_.report_type ||
           result == functions_.skip;
  }

  // Leaves the element of a report in `result`, and nothing else holds it on the report's account;
  // or nothing, with an error set.
  Remarks take_out_element(OwnedRef& result) const {
    Remarks remarks;
    if (result.get() == functions_.skip) return remarks;
    const OwnedRef report = std::move(result);
    result.reset(PyObject_GetAttrString(report.get(), "element"));
    const OwnedRef failed(PyObject_GetAttrString(report.get(), "failed"));
    const OwnedRef consumed(PyObject_GetAttrString(report.get(), "consumed"));
    const auto count = [](PyObject* value) {
      const unsigned long number = PyLong_AsUnsignedLong(value);
      if (number > UINT32_MAX && PyErr_Occurred() == nullptr) {
        PyErr_SetString(PyExc_OverflowError, "a count of items of an element beyond 2**32");
      }
      return static_cast<std::uint32_t>(number);
    };
    if (result && failed && consumed) {
      remarks.failed = count(failed.get());
      if (consumed.get() != Py_None && PyErr_Occurred() == nullptr) {
        remarks.consumed = count(consumed.get());
      }
    }
    if (PyErr_Occurred() != nullptr) result.reset();
    return remarks;
  }

  static void publish_skip(std::uint64_t job, const Remarks& remarks, workers::Worker& worker) {
    workers::ResultDraft draft;
    draft.job = job;
    draft.kind = workers::ResultKind::kSkipped;
    draft.failed = remarks.failed;
    draft.consumed = remarks.consumed;
    worker.publish(draft);  // it needs no memory
  }

  // From the call of an item to its encoding in one function, as for one: what is to be moved then
  // is seen by nobody but `results`, also while the calls behind it run.
  void run_items(const workers::Job& job, workers::Worker& worker) {
    const auto begin = std::chrono::steady_clock::now();
    const OwnedRef function = function_table_.find(job, worker.arguments());
    OwnedRef items;
    if (function) {
      set_numpy_allocator_active(true);
      items.reset(decoder_.decode_copied(job.payload, job.blocks, worker.arguments()));
      if (!items) mark_undecodable();
      set_numpy_allocator_active(false);
    }
    if (items && !PyList_CheckExact(items.get())) {
      items.reset();
      PyErr_SetString(PyExc_SystemError, "the payload of a job with items is no list");
    }
    if (!items) {
      return publish_error(worker, job.number, workers::ResultKind::kError,
                           encode_exception(functions_));
    }
    batch_.clear();
    const Py_ssize_t size = PyList_GET_SIZE(items.get());
    for (Py_ssize_t i = 0; i < size; ++i) {
      // Before the call: if it is the worker's death, those behind it have not run.
      worker.set_progress(job.number, static_cast<std::uint64_t>(i) + 1);
      // Each item is dropped when its call is over, as an argument is.
      OwnedRef item(Py_NewRef(PyList_GET_ITEM(items.get(), i)));
      PyList_SetItem(items.get(), i, Py_NewRef(Py_None));
      set_numpy_allocator_active(true);
      OwnedRef result;
      if (PyErr_CheckSignals() == 0) {
        result = call_with_item(function.get(), std::move(item), has_star(job.kind));
      }
      set_numpy_allocator_active(false);
      if (worker.in_forked_child()) end_forked_child(functions_, std::move(result));
      add_result(std::move(result), worker);
      if (batch_.array_bytes() > kMostBatchBytes) break;
      if (is_batch(job.kind) && std::chrono::steady_clock::now() - begin > kBatchTime) break;
    }
    workers::ResultDraft draft;
    draft.job = job.number;
    batch_.fill(draft);
    const bool published = worker.publish(draft);
    finish(job, batch_.sent(), published);
    if (!published) {
      for (const workers::BlockRef& block : batch_.made_blocks()) blocks_.discard(block);
      set_exhausted(draft.payload.size(), worker);
      publish_error(worker, job.number, workers::ResultKind::kError, encode_exception(functions_));
    }
    batch_.clear();
  }

  // The error that is set is one of unpickling arguments.
  void mark_undecodable() {
    const OwnedRef error = take_exception();
    if (!error) return;
    const OwnedRef marked(PyObject_CallOneArg(functions_.undecodable, error.get()));
    if (!marked) PyErr_Clear();
    raise_exception(marked ? marked.get() : error.get());
  }

  // A result, or the error that is set.
  void add_result(OwnedRef result, workers::Worker& worker) {
    if (result) {
      if (batch_.add_plain(result.get())) return;
      switch (encoder_.encode(result.get(), true)) {
        case EncodeResult::kDone:
          encoder_.let_go_of(result);
          if (worker.in_forked_child()) end_forked_child(functions_, std::move(result));
          return batch_.add(std::move(result), encoder_);
        case EncodeResult::kNoRoom:
          set_exhausted(encoder_.requested_bytes(), worker);
          break;
        case EncodeResult::kPythonError:
          break;
      }
    }
    batch_.add_error(encode_exception(functions_));
  }

  OwnedRef call(const workers::Job& job, workers::Worker& worker) {
    if (PyErr_CheckSignals() != 0) return OwnedRef();
    set_numpy_allocator_active(true);
    OwnedRef result;
    if (job.kind == kRetireJob) {
      result.reset(Py_NewRef(Py_None));
    } else if (job.kind == kCallJob) {
      const OwnedRef function = function_table_.find(job, worker.arguments());
      OwnedRef payload;
      if (function) {
        payload.reset(decoder_.decode_copied(job.payload, job.blocks, worker.arguments()));
        if (!payload) mark_undecodable();
      }
      if (payload) result = call_with_pair(function.get(), std::move(payload));
    } else {
      OwnedRef epoch(PyLong_FromUnsignedLongLong(job.epoch));
      OwnedRef position(PyLong_FromUnsignedLongLong(job.position));
      OwnedRef payload(decode(job, worker));
      OwnedRef losses;
      if (!job.losses.empty()) losses = losses_of(job);
      if (epoch && position && payload && PyErr_Occurred() == nullptr) {
        PyObject* arguments[] = {nullptr, epoch.get(), position.get(), payload.get(), losses.get()};
        const std::size_t count = losses ? 4 : 3;
        result.reset(PyObject_Vectorcall(task_, arguments + 1,
                                         count | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
      }
      // The payload's reference is gone before anything is tested for uniqueness: what user code
      // returns may be what it was given.
    }
    set_numpy_allocator_active(false);
    return result;
  }

  PyObject* decode(const workers::Job& job, workers::Worker& worker) {
    if (job.kind == kEncodedJob) {
      return decoder_.decode_copied(job.payload, job.blocks, worker.arguments());
    }
    if (job.kind == kFilledJob) {
      workers::ItemsFrom from{};
      std::memcpy(&from, job.payload.data(), sizeof from);
      return filled_payload(from, job.payload.subspan(sizeof from)).release();
    }
    if (job.kind == kIndicesJob) return tuple_of(job.payload).release();
    std::uint64_t index = 0;
    std::memcpy(&index, job.payload.data(), sizeof index);
    return PyLong_FromUnsignedLongLong(index);
  }

  bool publish(const workers::Job& job, const Remarks& remarks, workers::Worker& worker) {
    workers::ResultDraft draft;
    draft.job = job.number;
    draft.kind = workers::ResultKind::kElement;
    draft.moved_blocks = encoder_.moved_blocks();
    draft.made_blocks = encoder_.made_blocks();
    draft.payload = encoder_.payload();
    draft.array_bytes = encoder_.array_bytes();
    draft.moved = encoder_.moved();
    draft.copied = encoder_.copied();
    draft.segments = encoder_.transferred();
    draft.failed = remarks.failed;
    draft.consumed = remarks.consumed;
    const bool published = worker.publish(draft);
    SentSegments sent = encoder_.take_sent();
    finish(job, sent, published);
    return published;
  }

  void finish(const workers::Job& job, SentSegments& sent, bool published) {
    std::vector<OwnedRef> others = sent.finish(published);
    if (published) held_.hold(job.number, std::move(others));
  }

  void set_exhausted(std::uint64_t requested, workers::Worker& worker) {
    const OwnedRef exception(PyObject_CallFunction(
        functions_.exhausted_error, "KK", static_cast<unsigned long long>(requested),
        static_cast<unsigned long long>(worker.arena().capacity_bytes())));
    if (exception) {
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.get())), exception.get());
    }
  }

  const WorkerFunctions& functions_;
  workers::ProfileCell* profile_;  // nullptr without profiling
  PyObject* task_;
  std::uint64_t most_jobs_;  // 0: no end
  std::uint64_t jobs_run_ = 0;
  FunctionTable function_table_;
  BatchDraft batch_;
  ArenaBlocks blocks_;
  Encoder encoder_;
  HeldSegments held_;
  Decoder decoder_;
  PyThreadState* thread_ = nullptr;
};

class PythonHost : public workers::ForkHost {
 public:
  PythonHost(const WorkerFunctions& functions, std::uint64_t min_shared_bytes,
             std::uint64_t most_jobs)
      : functions_(functions), min_shared_bytes_(min_shared_bytes), most_jobs_(most_jobs) {}

  void before_fork() override { PyOS_BeforeFork(); }
  void after_fork_in_server() override { PyOS_AfterFork_Parent(); }
  void on_interrupt() override {
    if (PyErr_CheckSignals() != 0) PyErr_Clear();
  }

  [[noreturn]] void run_worker(workers::WorkerBirth birth) override {
    PyOS_AfterFork_Child();
    const auto index = birth.index;
    const auto incarnation = birth.incarnation;
    try {
      // Never destroyed: arrays in the arena may be freed by any thread until the process ends.
      auto* worker = new workers::Worker(std::move(birth));
      PyObject* task = PyObject_CallFunction(functions_.set_up, "III", index,
                                             worker->worker_count(), incarnation);
      if (worker->in_forked_child()) end_forked_child(functions_, OwnedRef(task));
      if (task == nullptr) {
        const std::string error = encode_exception(functions_);
        // What the initializer said on other channels of its own comes first.
        const OwnedRef done(PyObject_CallNoArgs(functions_.run_finalizers));
        if (!done) PyErr_Clear();
        publish_error(*worker, workers::kNoJob, workers::ResultKind::kStartupError, error);
        ::_exit(1);
      }
      install_numpy_allocator(worker->arena(), min_shared_bytes_);
      tell_items_to(*worker);
      const WorkerProfile profile = choose_worker_profile(index);
      if (profile.cell != nullptr) worker->set_profile(*profile.cell, profile.window);
      auto* runner =
          new PythonRunner(*worker, functions_, task, min_shared_bytes_, most_jobs_, profile.cell);
      worker->run(*runner);
    } catch (const py::error_already_set& error) {
      std::fprintf(stderr, "stook: worker %u: %s\n", index, error.what());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "stook: worker %u: %s\n", index, error.what());
    }
    ::_exit(1);
  }

 private:
  const WorkerFunctions& functions_;
  std::uint64_t min_shared_bytes_;
  std::uint64_t most_jobs_;
};

void serve(int socket, int parent, std::uint64_t min_shared_bytes, std::uint64_t most_jobs,
           const py::object& functions) {
  const auto get = [&](const char* name) {
    // Held by the module object for as long as the process lives.
    return py::object(functions.attr(name)).release().ptr();
  };
  const WorkerFunctions table{
      get("set_up"),         get("encode_error"),  get("exhausted_error"),
      get("pickle_objects"), get("pickle_dtype"),  get("unpickle_objects"),
      get("unpickle_dtype"), get("load_function"), get("undecodable_arguments"),
      get("run_finalizers"), get("retire"),        get("end_forked_child"),
      get("report_type"),    get("skip")};
  PythonHost host(table, min_shared_bytes, most_jobs);
  workers::serve_forks(socket, parent, host);
}

}  // namespace

void register_worker_process(py::module_& module) {
  module.def(
      "serve", &serve, py::arg("socket"), py::arg("parent"), py::arg("min_shared_bytes"),
      py::arg("most_jobs"), py::arg("functions"),
      "Runs the fork server until its parent ends or closes the socket. A worker ends, and is "
      "replaced, after `most_jobs` jobs (0: never). `functions` has the attributes that a "
      "worker needs (stook/_worker.py).");
  module.def("keep_numpy_allocator_active", &keep_numpy_allocator_active,
             "Has arrays that the calling thread of a worker makes from now on born in shared "
             "memory also between jobs, if its context has the worker's NumPy handler.");
}

}  // namespace stook::bindings
