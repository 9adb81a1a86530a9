// TaskQueue: jobs out, and the end. Results in: task_queue_results.cpp; waiting:
// task_queue_wait.cpp.
#include "bindings/task_queue.h"

#include <algorithm>
#include <utility>

#include "bindings/errors.h"
#include "bindings/job_kinds.h"
#include "bindings/signal_handlers.h"
#include "bindings/task_function.h"
#include "shm/error.h"

namespace stook::bindings {

namespace {

using workers::Manager;

// Arguments that lie ready beyond what the workers need to stay busy.
constexpr std::uint64_t kMostArgumentBytes = std::uint64_t{8} << 20;

// For how long the main thread may encode one task before others look whether a handler keeps it.
constexpr std::chrono::milliseconds kPatience{100};

}  // namespace

TaskQueue::TaskQueue(std::shared_ptr<WorkerPool> pool, PyObject* waiting, PyObject* notify,
                     PyObject* on_deaths)
    : pool_(std::move(pool)),
      waiting_(Py_NewRef(waiting)),
      notify_(Py_NewRef(notify)),
      on_deaths_(Py_NewRef(on_deaths)),
      main_thread_(main_thread()) {}

// ------------------------------------------------------------------ jobs out

std::uint64_t TaskQueue::submit(PyObject* function, PyObject* payload, PyObject* sink,
                                std::uint32_t kind, bool background) {
  Task task;
  task.number = next_number_++;
  task.kind = kind;
  task.background = background;
  task.function.reset(Py_NewRef(function));
  task.payload.reset(Py_NewRef(payload));
  task.sink.reset(Py_NewRef(sink));
  const std::uint64_t number = task.number;
  pending_.push_back(std::move(task));
  ++outstanding_;
  if (background) ++in_background_;
  const bool fed = feed();
  // Left to the main thread, which a handler may keep from it: whoever sleeps in pump() is to look
  // after it. He does so from now on.
  if (asleep_ && pending_.size() == 1 && !feeders_.empty()) wake();
  if (pool_->starts_on_demand && kind != kRetireJob) {
    const LockWithGil lock(pool_->mutex);
    Manager& manager = pool_->manager;
    if (manager.is_open() && outstanding_ > manager.workers_alive()) manager.add_worker();
  }
  return fed ? number : 0;
}

// Who feeds goes on with what other threads submit meanwhile, in its order. But what interrupts him
// in his own thread (a signal handler, a finalizer, a pickle that submits) may wait for what it
// submits, and so is fed at once; and while a signal handler has interrupted the main thread as it
// feeds, any thread does.
bool TaskQueue::may_feed(unsigned long me) const {
  if (feeders_.empty() || feeders_.back() == me) return true;
  return feeders_.back() == main_thread_ &&
         std::chrono::steady_clock::now() - main_fed_at_ > kPatience && handler_runs();
}

bool TaskQueue::feed() {
  const unsigned long me = PyThread_get_thread_ident();
  if (pending_.empty() || !pool_->is_open() || !may_feed(me)) return true;
  // The pool's own is in the hands of whom this interrupts.
  const std::unique_ptr<Encoder> own = feeders_.empty() ? nullptr : pool_->make_encoder();
  feeders_.push_back(me);
  bool ring = false;
  const bool went_well = feed_with(own ? *own : pool_->encoder, me, ring);
  // The last of this thread's is this one; other threads may have come or gone.
  feeders_.erase(std::find(feeders_.rbegin(), feeders_.rend(), me).base() - 1);
  if (!ring || !pool_->is_open()) return went_well;
  const LockWithGil lock(pool_->mutex);
  if (!pool_->manager.is_open()) return went_well;
  pool_->manager.ring_workers();
  if (!failed_.empty()) pool_->manager.wake();
  return went_well;
}

bool TaskQueue::feed_with(Encoder& encoder, unsigned long me, bool& ring) {
  while (!pending_.empty() && pool_->is_open()) {
    {
      const LockWithGil lock(pool_->mutex);
      Manager& manager = pool_->manager;
      if (!manager.is_open() || !manager.can_produce()) break;
      if (argument_bytes_ > kMostArgumentBytes &&
          manager.under_way() >= 2 * std::uint64_t{manager.worker_count()}) {
        break;
      }
    }
    if (pending_.empty()) break;  // by another thread, while this one waited for the lock
    Task task = std::move(pending_.front());
    pending_.pop_front();
    // Somebody else's sleep is not ended by what he does not know of.
    const bool is_others = pumper_ != 0 && pumper_ != me;
    const bool background = task.background;
    if (me == main_thread_) main_fed_at_ = std::chrono::steady_clock::now();
    if (send(encoder, task)) {
      ring |= background || is_others;
    } else if (handler_raised()) {
      // What a signal handler raised while an argument was pickled is the program's, and not the
      // argument's.
      if (!closed_error_) {
        pending_.push_front(std::move(task));
        return false;
      }
      const OwnedRef interrupt = take_exception();
      if (!deliver_failure(task, closed_error_.get(), -1)) PyErr_Clear();
      raise_exception(interrupt.get());
      return false;
    } else {
      task.failure = take_exception();
      ring = true;
      if (!closed_error_) {
        failed_.push_back(std::move(task));
      } else if (!deliver_failure(task, closed_error_.get(), -1)) {
        PyErr_WriteUnraisable(task.sink.get());
      }
    }
  }
  return true;
}

// False with a Python error set.
bool TaskQueue::send(Encoder& encoder, Task& task) {
  switch (encoder.encode(task.payload.get(), false)) {
    case EncodeResult::kDone:
      break;
    case EncodeResult::kPythonError:
      return false;
    case EncodeResult::kNoRoom: {
      const OwnedRef error(
          PyObject_CallMethod(pool_->functions.ptr(), "exhausted_error", "K",
                              static_cast<unsigned long long>(encoder.requested_bytes())));
      if (error) raise_exception(error.get());
      return false;
    }
  }
  task.segments = encoder.take_sent().finish(true);
  const auto& function = *py::handle(task.function.get()).cast<TaskFunction*>();
  workers::JobOrder order;
  order.epoch = function.number();
  order.position = function.offset();
  order.kind = task.kind;
  order.payload = encoder.payload();
  order.blocks = encoder.made_blocks();
  task.argument_bytes = encoder.payload().size() + encoder.array_bytes();
  try {
    const LockWithGil lock(pool_->mutex);
    if (!pool_->manager.is_open()) {
      throw shm::Error(shm::ErrorCode::kBroken, "the pool was closed");
    }
    task.job = pool_->manager.produce(order);
  } catch (const shm::Error& error) {
    set_python_error(error);
    return false;
  }
  argument_bytes_ += task.argument_bytes;
  job_of_[task.number] = task.job;
  // The arguments are with the worker, and here nobody's business any more. Dropped last: that may
  // run Python code.
  OwnedRef arguments;
  if (!has_items(task.kind)) arguments = std::move(task.payload);
  const std::uint64_t job = task.job;
  in_flight_[job] = std::move(task);
  return true;
}

bool TaskQueue::cancel(std::uint64_t number) {
  const auto sent = job_of_.find(number);
  if (sent != job_of_.end()) {
    const std::uint64_t job = sent->second;  // `sent` may not be what it was once the lock is there
    {
      const LockWithGil lock(pool_->mutex);
      if (!pool_->manager.is_open() || !pool_->manager.cancel(job)) return false;
    }
    const auto found = in_flight_.find(job);
    if (found == in_flight_.end()) return false;  // failed by close() meanwhile
    Task task = std::move(found->second);
    in_flight_.erase(found);
    job_of_.erase(number);
    argument_bytes_ -= task.argument_bytes;
    finish(std::move(task));
    return feed();
  }
  // In the order of their numbers, but for a few at the front that were sent once and came back.
  auto task = std::lower_bound(
      pending_.begin(), pending_.end(), number,
      [](const Task& pending, std::uint64_t wanted) { return pending.number < wanted; });
  if (task == pending_.end() || task->number != number) {
    task = std::find_if(pending_.begin(), pending_.end(),
                        [&](const Task& pending) { return pending.number == number; });
  }
  if (task == pending_.end()) return false;
  Task cancelled = std::move(*task);
  pending_.erase(task);
  finish(std::move(cancelled));
  return true;
}

bool TaskQueue::is_running(std::uint64_t number) {
  const auto sent = job_of_.find(number);
  if (sent == job_of_.end()) return false;
  const std::uint64_t job = sent->second;
  const LockWithGil lock(pool_->mutex);
  return pool_->manager.is_open() && pool_->manager.is_claimed(job);
}

// No more is to come of it.
void TaskQueue::finish(Task task) {
  --outstanding_;
  if (task.background) --in_background_;
}

// ------------------------------------------------------------------ the end

void TaskQueue::retire_workers(PyObject* function, PyObject* sink) {
  std::uint32_t alive = 0;
  {
    const LockWithGil lock(pool_->mutex);
    if (!pool_->manager.is_open()) return;
    alive = pool_->manager.workers_alive();
  }
  for (std::uint32_t i = 0; i < alive; ++i) {
    if (submit(function, Py_None, sink, kRetireJob, false) == 0) return;
  }
}

void TaskQueue::fail_all(PyObject* error) {
  closed_error_.reset(Py_NewRef(error));
  std::deque<Task> tasks;
  for (auto& [job, task] : in_flight_) tasks.push_back(std::move(task));
  in_flight_.clear();
  job_of_.clear();
  argument_bytes_ = 0;
  std::sort(tasks.begin(), tasks.end(),
            [](const Task& a, const Task& b) { return a.number < b.number; });
  for (auto& task : failed_) tasks.push_back(std::move(task));
  failed_.clear();
  for (auto& task : pending_) tasks.push_back(std::move(task));
  pending_.clear();
  OwnedRef interrupt;
  for (Task& task : tasks) {
    if (!deliver_failure(task, error, -1)) interrupt = take_exception();
  }
  if (interrupt) raise_exception(interrupt.get());
}

void TaskQueue::close() {
  pool_->close([this] { const std::lock_guard awake(sleep_mutex_); });
}

int TaskQueue::traverse(visitproc visit, void* arg) const {
  const auto visit_task = [&](const Task& task) {
    Py_VISIT(task.function.get());
    Py_VISIT(task.payload.get());
    Py_VISIT(task.sink.get());
    Py_VISIT(task.failure.get());
    return 0;
  };
  Py_VISIT(closed_error_.get());
  Py_VISIT(broken_.get());
  Py_VISIT(waiting_.get());
  Py_VISIT(notify_.get());
  Py_VISIT(on_deaths_.get());
  for (const auto* tasks : {&pending_, &failed_}) {
    for (const Task& task : *tasks) {
      if (const int stop = visit_task(task)) return stop;
    }
  }
  for (const auto& [job, task] : in_flight_) {
    if (const int stop = visit_task(task)) return stop;
  }
  return 0;
}

void TaskQueue::drop_all() {
  const auto pending = std::move(pending_);
  const auto in_flight = std::move(in_flight_);
  const auto failed = std::move(failed_);
  pending_.clear();
  in_flight_.clear();
  failed_.clear();
}

}  // namespace stook::bindings
