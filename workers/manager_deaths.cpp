// Manager: what the fork server tells, and what is done when a worker is dead.
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

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
  const bool was_overdue = worker.overdue != 0;
  bool had_stale = false;  // a job that was given up while it ran: what it died of, maybe
  for (auto stale = stale_.begin(); stale != stale_.end();) {
    if (stale->second.worker != index) {
      ++stale;
      continue;
    }
    had_stale = true;
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
  // Its successor has begun nothing.
  cell.item_begun.store(0, std::memory_order_relaxed);
  worker.overdue = 0;
  const std::uint64_t progress = cell.progress.load(std::memory_order_relaxed);
  const bool retired = !lost && (progress == kRetired || progress == kDismissed);
  if (options_.any_order && !retired) deaths_.push_back({index, worker.pid, status});
  // A worker that dies again and again before it runs anything would be replaced for ever.
  const bool has_begun = lost || had_stale || was_overdue || worker.has_published;
  if (!has_begun && ++startup_deaths_ > options_.max_restarts) {
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

void Manager::give_free(JobRecord& job) {
  unclaim_job(channel_->control().header().jobs, channel_->control().job(job.number), job.number,
              job.claimants);
}

void Manager::lose_job(std::uint64_t number, std::uint32_t index, int status) {
  JobRecord& job = record(number);
  const WorkerRecord& worker = workers_[index];
  const WorkerCell& cell = channel_->control().cell(index);
  const bool by_kill = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  const bool was_overdue = worker.overdue != 0 && by_kill;
  const bool timed_out =
      was_overdue && cell.item_begun.load(std::memory_order_relaxed) == worker.overdue;
  const std::uint64_t begun = items_begun(cell.progress.load(std::memory_order_relaxed), number);
  const bool begun_is_told = channel_->control().header().items_are_told != 0;
  // What was overdue came to its end before the kill came, and this is another item: it has done
  // nothing. Nor has a job that was claimed and not begun.
  if (!timed_out && (was_overdue || (begun_is_told && begun == 0))) return give_free(job);
  // Deaths are the item's that was begun: others of the job have not cost the workers before.
  const std::uint64_t at = begun_is_told ? begun : 0;
  job.deaths.push_back(at);
  const auto attempts =
      static_cast<std::uint32_t>(std::count(job.deaths.begin(), job.deaths.end(), at));
  const bool out_of_memory = by_kill && !timed_out && was_out_of_memory();
  if (!timed_out && options_.restart_workers && attempts <= options_.max_restarts) {
    return give_free(job);
  }
  const Loss loss{static_cast<std::uint32_t>(begun == 0 ? 0 : begun - 1),
                  index,
                  worker.pid,
                  status,
                  attempts,
                  (timed_out ? Loss::kTimedOut : 0) | (out_of_memory ? Loss::kOutOfMemory : 0)};
  if (options_.report_losses && add_loss(job, loss)) {
    std::erase(job.deaths, at);
    return give_free(job);
  }
  Outcome outcome;
  outcome.kind = timed_out ? OutcomeKind::kTimedOut : OutcomeKind::kWorkerDied;
  outcome.worker = loss.worker;
  outcome.pid = loss.pid;
  outcome.status = loss.status;
  outcome.attempts = loss.attempts;
  outcome.begun = begun;
  outcome.out_of_memory = out_of_memory;
  // Workers may write there: no further than there is something.
  const JobSlot& slot = channel_->control().job(job.number);
  const bool is_inline = slot.external_offset == 0;
  const std::uint64_t offset = std::min<std::uint64_t>(slot.external_offset, arguments_.size());
  const std::uint64_t room = is_inline ? kJobInlineBytes : arguments_.size() - offset;
  if (slot.block_count == 0) {
    const std::byte* payload = is_inline ? slot.payload : arguments_.data() + offset;
    job.external_payload.assign(payload, payload + std::min(slot.payload_bytes, room));
    outcome.payload = job.external_payload;
  }
  finish(job, outcome);
}

// True if the kernel's out-of-memory killer has killed more than the deaths that were put down to
// it: one kill explains one death.
bool Manager::was_out_of_memory() {
  if (shm::oom_kill_count() <= oom_kills_) return false;
  ++oom_kills_;
  return true;
}

// False if the job is not to be run again: its runner should have left the item out when it was
// told of it, and did not the second time either; or there is no room.
bool Manager::add_loss(JobRecord& job, const Loss& loss) {
  const auto same_item = [&](const Loss& other) { return other.item == loss.item; };
  if (std::count_if(job.losses.begin(), job.losses.end(), same_item) > 1) return false;
  const auto block = allocate_arguments((job.losses.size() + 1) * sizeof(Loss));
  if (!block) return false;
  // Nobody reads the list that there was: the job's worker is dead.
  std::erase_if(job.arguments, [&](const BlockRef& argument) {
    if (job.losses.empty() || argument.id != job.losses_block) return false;
    free_arguments({&argument, 1});
    return true;
  });
  job.losses.push_back(loss);
  job.losses_block = block->ref.id;
  job.arguments.push_back(block->ref);
  std::memcpy(block->data, job.losses.data(), job.losses.size() * sizeof(Loss));
  JobSlot& slot = channel_->control().job(job.number);
  slot.losses_offset = block->ref.offset;
  slot.losses_count = static_cast<std::uint32_t>(job.losses.size());
  return true;
}

// Kills workers that are at one item for longer than they may. What becomes of the item is decided
// when their death is heard of: they may come to its end meanwhile.
void Manager::kill_overdue() {
  const std::uint64_t now = options_.clock();
  if (now <= overdue_from_) return;
  const auto allowed = static_cast<std::uint64_t>(options_.element_timeout.count());
  bool some_are_dead = false;
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    WorkerRecord& worker = workers_[index];
    const std::uint64_t begun =
        channel_->control().cell(index).item_begun.load(std::memory_order_relaxed);
    if (begun == 0 || now < begun || now - begun <= allowed) continue;
    if (!worker.alive || worker.overdue != 0 || !worker.pidfd.is_open()) continue;
    // One that is dead has left its item as it was, and takes a signal until it is reaped. It has
    // not died of the time that went by since.
    if (wait_for_end(worker.pidfd.get(), 0)) {
      some_are_dead = true;
      continue;
    }
    worker.overdue = begun;
    kill_by_pidfd(worker.pidfd.get(), SIGKILL);
  }
  if (some_are_dead && broken_.empty()) handle_messages();
  overdue_from_ = first_overdue_at(now);
}

// The earliest moment at which an item can be overdue that is not yet. What is begun from `now` on
// is overdue later.
std::uint64_t Manager::first_overdue_at(std::uint64_t now) const {
  const auto allowed = static_cast<std::uint64_t>(options_.element_timeout.count());
  std::uint64_t first = now + allowed;
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const std::uint64_t begun =
        channel_->control().cell(index).item_begun.load(std::memory_order_relaxed);
    if (begun != 0 && workers_[index].overdue == 0) first = std::min(first, begun + allowed);
  }
  return first;
}

}  // namespace stook::workers
