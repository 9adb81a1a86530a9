#include "bindings/signal_handlers.h"

#include "bindings/errors.h"

namespace stook::bindings {

namespace {

// What a function of stook._signal_handlers says; nothing if it failed, which is not told.
OwnedRef ask(const char* function, PyObject* argument) {
  const OwnedRef module(PyImport_ImportModule("stook._signal_handlers"));
  OwnedRef answer(module ? PyObject_CallMethod(module.get(), function,
                                               argument == nullptr ? nullptr : "O", argument)
                         : nullptr);
  if (!answer) PyErr_Clear();
  return answer;
}

}  // namespace

unsigned long main_thread() {
  const OwnedRef answer = ask("main_thread", nullptr);
  return answer ? PyLong_AsUnsignedLong(answer.get()) : 0;
}

bool handler_raised() {
  const OwnedRef error = take_exception();
  if (!error) return false;
  const OwnedRef answer = ask("raised_by_one", error.get());
  raise_exception(error.get());
  return !answer || answer.get() == Py_True;  // no answer: a second one came meanwhile
}

bool handler_runs() {
  const OwnedRef answer = ask("runs_one", nullptr);
  return answer && answer.get() == Py_True;
}

}  // namespace stook::bindings
