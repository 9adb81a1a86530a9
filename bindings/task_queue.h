// Tasks given to a pool one by one, by any thread, and delivered as they finish: the common part of
// what looks like multiprocessing.Pool and like concurrent.futures.
//
// A task goes to its sink, a Python callable, exactly once (a task with items in parts, one after
// the other). Every method requires the GIL, which is also what guards the members; only sleep()
// lets go of it. One thread at a time delivers and sleeps, in pump(); the others wait to be told
// (stook/_task_pool.py).
//
// A signal handler may interrupt the main thread in any Python code that this runs, and wait for
// the pool there in a way that this knows nothing of. While it runs, others deliver and send in its
// place: task_queue_wait.cpp and feed() say how.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "bindings/python_api.h"
#include "bindings/worker_pool.h"

namespace stook::bindings {

class TaskQueue {
 public:
  // `waiting` is a list of what threads wait for that would have liked to pump, `notify()` wakes
  // them, `on_deaths([(worker, pid, status)])` is told of workers that ended unasked.
  TaskQueue(std::shared_ptr<WorkerPool> pool, PyObject* waiting, PyObject* notify,
            PyObject* on_deaths);
  TaskQueue(const TaskQueue&) = delete;
  TaskQueue& operator=(const TaskQueue&) = delete;

  // Never waits. `function` is a TaskFunction; `payload` is (args, kwargs or None), or a list of
  // items. Returns the task's number; 0 with a Python error set if Ctrl-C came meanwhile (the task
  // runs nevertheless).
  std::uint64_t submit(PyObject* function, PyObject* payload, PyObject* sink, std::uint32_t kind,
                       bool background);
  // True if it was not begun, and now never will be; its sink is not called. A Python error may be
  // set, of Ctrl-C.
  bool cancel(std::uint64_t number);
  bool is_running(std::uint64_t number);

  // Delivers, and sleeps in between, until `done()` is true, `seconds` have passed (below 0: no
  // limit) or the pool cannot go on. Nothing (None) if another thread is at it, or has come to be
  // while a signal handler ran here. A thread that calls this from a sink goes on within.
  PyObject* pump(PyObject* done, double seconds);
  // Has who is in pump() look at his `done` again before he sleeps on; nobody may be.
  void wake();
  // For who waits for descriptor(): true if nothing is there now, and whatever comes makes it
  // readable. A pump() ends that, and says so to `waiting`. While another thread pumps, all that it
  // does is to have workers told of jobs.
  bool arm();

  // The main thread is in pump(), and has been found to be in a signal handler: lets another thread
  // have its place. Nothing if it is asleep there, and so delivers.
  void pass_on();

  // Has every worker end in good order once the tasks before this are done; `sink` hears of each.
  void retire_workers(PyObject* function, PyObject* sink);
  // Gives every task to its sink as failed.
  void fail_all(PyObject* error);
  // Ends every process; wakes who sleeps, and returns when he is awake.
  void close();

  // Without those that a signal handler has interrupted as they were delivered: it may wait until
  // there are no others.
  std::uint64_t outstanding() const noexcept {
    return outstanding_ - std::min(outstanding_, set_aside_);
  }
  std::uint64_t outstanding_in_background() const noexcept { return in_background_; }
  WorkerPool& pool() noexcept { return *pool_; }

  int traverse(visitproc visit, void* arg) const;
  void drop_all();
  bool is_pumped() const noexcept { return pumper_ != 0; }
  bool is_pumped_by_main() const noexcept { return pumper_ != 0 && pumper_ == main_thread_; }
  // Why the pool cannot go on; borrowed, or nullptr.
  PyObject* broken() const noexcept { return broken_.get(); }

 private:
  struct Task {
    std::uint64_t number = 0;
    std::uint64_t job = 0;             // once it is with the workers
    std::uint64_t argument_bytes = 0;  // likewise
    std::uint32_t kind = 0;
    bool background = false;
    OwnedRef function;
    OwnedRef payload;
    OwnedRef sink;
    OwnedRef failure;                // it cannot be sent
    std::vector<OwnedRef> segments;  // that went with it, until workers have opened them
  };

  // Hands what is there to its sinks, up to a number, and puts new jobs in the place of those done.
  // Returns how many jobs it was, or -1 with the Python error set that a signal handler raised. The
  // pumper alone may call it (task_queue_wait.cpp says why).
  int deliver();
  bool still_pumps(unsigned long thread);
  void set_mains_aside();
  bool sleep(double seconds);
  bool check_signals(bool came);
  bool others_feed() const;
  bool pump_until(PyObject* done, double seconds, bool& is_done);
  int deliver_some();
  void set_broken() { broken_ = take_error(); }
  static OwnedRef take_error();
  bool notify();
  bool feed();
  bool may_feed(unsigned long me) const;
  bool feed_with(Encoder& encoder, unsigned long me, bool& ring);
  bool send(Encoder& encoder, Task& task);
  void finish(Task task);
  void add_pending_first(Task task);
  bool take(TakenOutcome& taken);
  bool deliver_outcome(Task task, TakenOutcome& taken);
  bool deliver_items(Task task, TakenOutcome& taken);
  bool deliver_failure(Task& task, PyObject* error, Py_ssize_t items);
  bool call_sink(const Task& task, PyObject* const* arguments, std::size_t count);
  OwnedRef take_undecodable();
  OwnedRef make_error(const TakenOutcome& taken, OwnedRef& interrupt);
  void requeue_rest(Task task, Py_ssize_t done);
  bool look_around();

  std::shared_ptr<WorkerPool> pool_;
  std::deque<Task> pending_;
  std::unordered_map<std::uint64_t, Task> in_flight_;        // by job
  std::unordered_map<std::uint64_t, std::uint64_t> job_of_;  // task number -> job
  std::deque<Task> failed_;                                  // those that cannot be sent
  std::uint64_t next_number_ = 1;
  std::uint64_t outstanding_ = 0;
  std::uint64_t in_background_ = 0;
  std::uint64_t argument_bytes_ = 0;  // with the workers
  OwnedRef waiting_;
  OwnedRef notify_;
  OwnedRef on_deaths_;
  OwnedRef broken_;
  unsigned long pumper_ = 0;  // Python's number of the thread
  OwnedRef closed_error_;     // what fail_all() was called with
  const unsigned long main_thread_;
  bool asleep_ = false;  // the pumper
  // Those who deliver a task, of which each was interrupted by the next one.
  struct Delivery {
    unsigned long thread;
    bool is_set_aside;
  };
  std::vector<Delivery> deliveries_;
  std::uint64_t set_aside_ = 0;
  class Delivering;
  // Threads that encode, which runs Python code: each was interrupted by the next one.
  std::vector<unsigned long> feeders_;
  std::chrono::steady_clock::time_point main_fed_at_;
  bool armed_ = false;
  bool woken_ = false;  // since the last look at `done`
  // Held, without the GIL, for the length of a sleep.
  std::mutex sleep_mutex_;
};

}  // namespace stook::bindings
