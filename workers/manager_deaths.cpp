// Manager: what the fork server tells, and what is done when a worker is dead.
#include <sys/wait.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "shm/error.h"
#include "shm/memory_limit.h"
#include "workers/manager.h"
#include "workers/process.h"

namespace stook::workers {

namespace {

std::string describe_server_end(int pidfd, pid_t pid) {
  std::string text = "the fork server (pid " + std::to_string(pid) + ") ended";
  siginfo_t info{};
  // The socket closes a moment before the process is gone. WNOWAIT: close() reaps it.
  if (wait_for_end(pidfd, 1000) &&
      ::waitid(P_PIDFD, static_cast<id_t>(pidfd), &info, WEXITED | WNOWAIT | WNOHANG) == 0 &&
      info.si_pid == pid) {
    text += info.si_code == CLD_EXITED ? " with exit code " : " by signal ";
    text += std::to_string(info.si_status);
  }
  return text + "; every worker was ended";
}

}  // namespace

void Manager::handle_messages() {
  Received received{};
  for (;;) {
    ReceiveState state = ReceiveState::kClosed;
    try {
      state = receive_message(socket_.get(), received, false);
    } catch (const shm::Error& error) {
      broken_ = error.what();
      return;
    }
    if (state == ReceiveState::kNothing) return;
    if (state == ReceiveState::kClosed) {
      if (broken_.empty()) broken_ = describe_server_end(server_pidfd_.get(), server_);
      return;
    }
    const Message& message = received.message;
    if (message.worker >= workers_.size()) continue;
    WorkerRecord& worker = workers_[message.worker];
    if (message.incarnation != worker.incarnation) continue;
    switch (message.type) {
      case MessageType::kSpawned:
        worker.pid = message.pid;
        --unannounced_;
        if (!received.fds.empty()) worker.pidfd = std::move(received.fds.front());
        break;
      case MessageType::kExited:
        on_exit(message.worker, message.status);
        break;
      case MessageType::kFailed:
        broken_ = std::string("a worker could not be started: ") + std::strerror(message.status);
        return;
      default:
        break;
    }
  }
}

void Manager::on_exit(std::uint32_t index, int status) {
  WorkerRecord& worker = workers_[index];
  // The kernel says it is dead: everything it published is there.
  drain(index);
  worker.alive = false;
  worker.pidfd.reset();
  worker.results.reset();
  worker.arena_fd.reset();
  worker.arena->retire();
  worker.arena->drop_reference();
  worker.arena = nullptr;
  WorkerCell& cell = channel_->control().cell(index);
  cell.handed_bytes.store(worker.received_bytes, std::memory_order_relaxed);
  cell.sleep.reason.store(shm::kAwake, std::memory_order_relaxed);
  cell.mapped_bytes.store(0, std::memory_order_relaxed);
  cell.live_bytes.store(0, std::memory_order_relaxed);
  cell.idle_bytes.store(0, std::memory_order_relaxed);
  for (auto stale = stale_.begin(); stale != stale_.end();) {
    if (stale->second.worker != index) {
      ++stale;
      continue;
    }
    free_arguments(stale->second.arguments);
    stale = stale_.erase(stale);
  }
  if (startup_error_) return;

  bool lost = false;
  for (const JobRecord& job : jobs_) {
    if (job.state != JobState::kUnderWay) continue;
    const std::uint64_t claim =
        channel_->control().job(job.number).claim.load(std::memory_order_acquire);
    if (claim == claim_word(job.number, claimer_of(index))) {
      lost = true;
      lose_job(job.number, index, status);
    }
  }
  const std::uint64_t progress = cell.progress.load(std::memory_order_relaxed);
  const bool retired = !lost && (progress == kRetired || progress == kDismissed);
  if (options_.any_order && !retired) deaths_.push_back({index, worker.pid, status});
  // A worker that dies again and again before it runs anything would be replaced for ever.
  if (!lost && !worker.has_published && ++startup_deaths_ > options_.max_restarts) {
    broken_ = "workers end before they run anything (the last one, pid " +
              std::to_string(worker.pid) + ", with wait status " + std::to_string(status) + ")";
    return;
  }
  worker.ended = retired && progress == kDismissed;
  if (worker.ended) return;
  ++worker.incarnation;
  if (!retired) ++restarts_;
  cell.progress.store(0, std::memory_order_relaxed);
  spawn(index);
  // The dead one may have swallowed a ring that was meant for the others, too.
  ring_for_jobs(true);
}

void Manager::lose_job(std::uint64_t number, std::uint32_t index, int status) {
  JobRecord& job = record(number);
  ++job.attempts;
  if (options_.restart_workers && job.attempts <= options_.max_restarts) {
    unclaim_job(channel_->control().header().jobs, channel_->control().job(number), number,
                job.claimants);
    return;
  }
  Outcome outcome;
  outcome.kind = OutcomeKind::kWorkerDied;
  outcome.worker = index;
  outcome.pid = workers_[index].pid;
  outcome.status = status;
  outcome.attempts = job.attempts;
  outcome.begun =
      items_begun(channel_->control().cell(index).progress.load(std::memory_order_relaxed), number);
  outcome.out_of_memory =
      WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && shm::oom_kill_count() != oom_kills_;
  finish(job, outcome);
}

}  // namespace stook::workers
