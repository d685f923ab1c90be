/* Suspend a request under uGreen, and save what uWSGI does not save.

   uwsgi.suspend() switches the machine stack and, in the thread state, the frame
   pointer and the recursion counters. The next request overwrites the rest of the
   thread state: the data stack, which holds the frames of Python functions since
   3.11, the exceptions being handled, the context of contextvars. It also keeps the
   GIL, so that the next request waits for it. suspend() below replaces it: it saves
   these fields, lets uWSGI switch, and restores them.

   Assumptions: all uGreen requests of a process run in one native thread, on one
   thread state. uWSGI's own stack in that thread runs no Python code when it starts
   or resumes a request. Therefore everything in the thread state when a request
   resumes was left by a request that has ended.

   No thread state refers to the frames of a suspended request. The garbage collector
   does not need to find them: it frees only objects that garbage alone refers to, and
   the references of a frame are counted (without the GIL, some are not).
   sys._current_frames() and faulthandler do not show the request.

   These fields of the thread state are not saved:

   - datastack_cached_chunk (3.14, 3.15): a free chunk, which any request may use.
   - base_frame (3.15): the lowest frame of the thread, in the thread state itself.
     uWSGI starts each request on the current_frame that its own stack had, so
     every request's frames end there.
   - last_profiled_frame (3.15): a profiler in another process writes it and compares
     it with the frames that it finds. The interpreter compares it, by address only,
     with the frames that return. If another request is running, the profiler does not
     find it and reads all frames.
   - current_executor, and jit_exit (3.15): used by the JIT compiler. They are also
     overwritten when C code calls Python. But the compiler also records the sequence
     of instructions that a thread runs, and two requests are not one sequence:
     psycogreen.uwsgi refuses uGreen while the JIT compiler is on.
*/

#include <Python.h>
#include <pthread.h>
#include <stdint.h>

#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x03100000
#  error "the layout of the thread state is known for CPython 3.11 to 3.15 only"
#endif
#ifdef Py_GIL_DISABLED
#  error "without the GIL, the garbage collector must find all frames in a thread state"
#endif
#ifdef PYPY_VERSION
#  error "PyPy has another thread state"
#endif
#ifndef __GLIBC__
#  error "musl reports the current size of the first thread's stack, not its limit"
#endif

/* A machine stack, from its lowest address to the one past its highest. */
typedef struct {
    uintptr_t low;
    uintptr_t high;
} Stack;

typedef struct {
    PyObject *uwsgi_suspend;     /* uwsgi.suspend, a built-in function */
    int has_threads;             /* uwsgi.has_threads: the GIL is in use */
    _PyStackChunk *spare_chunks; /* linked by their `previous` */
    Stack stated;                /* the bounds that enter_stack() found, or zeros */
} State;

/* The fields of the thread state that are saved for a suspended request.
   References are moved, not counted: each is owned by the thread state or by the
   Portion, never by both. */
typedef struct {
    _PyStackChunk *datastack_chunk;
    PyObject **datastack_top;
    PyObject **datastack_limit;
    _PyErr_StackItem *exc_info;
    _PyErr_StackItem exc_state;
    PyObject *context;
    Stack stated;
#if PY_VERSION_HEX < 0x030D0000
    int trash_nesting;
#endif
} Portion;

/* The nesting depth of destructors in the request, up to 3.12. (From 3.13 on, Python
   uses the recursion counter, which uWSGI saves, or the stack pointer.) The list of
   objects whose destruction is delayed stays in the thread state: any request whose
   depth allows it destroys them, and none is lost. */
#if PY_VERSION_HEX < 0x030C0000
#  define TRASH_NESTING(tstate) ((tstate)->trash_delete_nesting)
#elif PY_VERSION_HEX < 0x030D0000
#  define TRASH_NESTING(tstate) ((tstate)->trash.delete_nesting)
#endif


/* ---- the machine stack ----------------------------------------------------- */

static uintptr_t
stack_pointer(void)
{
    return (uintptr_t)__builtin_frame_address(0);
}

/* Find the stack that the operating system gave the calling thread, even if the
   thread runs on another stack now. Return 0, or -1 with an exception set. */
static int
find_native_stack(Stack *stack)
{
    /* Cached, because glibc reads /proc to find it in the first thread of a process.
       It never changes, and a fork keeps it. */
    static _Thread_local Stack known;
    if (!known.high) {
        pthread_attr_t attributes;
        void *low;
        size_t size;
        int error = pthread_getattr_np(pthread_self(), &attributes);
        if (!error) {
            error = pthread_attr_getstack(&attributes, &low, &size);
            pthread_attr_destroy(&attributes);
        }
        if (error) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        known.low = (uintptr_t)low;
        known.high = known.low + size;
    }
    *stack = known;
    return 0;
}

/* Return whether the calling code runs on one of uGreen's stacks, that is, outside
   the thread's native stack; return -1 with an exception set. */
static int
is_on_green_stack(void)
{
    Stack native;
    if (find_native_stack(&native) < 0) {
        return -1;
    }
    uintptr_t here = stack_pointer();
    return here < native.low || here >= native.high;
}

/* From 3.14 on, the interpreter compares the stack pointer with the bounds of the
   thread's stack. It does so to raise RecursionError, and also to delay the
   destruction of containers when the stack is almost used up. uGreen's stacks are
   below the native stack in memory: with the native bounds, the destruction of every
   container would be delayed forever. So the native bounds must not be in force.
   Nothing here is called when another request begins, so the bounds of one request
   must not be in force then. They are set between enter_stack() and leave_stack()
   only, and not while the request is suspended. */

static void
state_bounds(State *state, PyThreadState *tstate, Stack stack)
{
    state->stated = stack;
#if PY_VERSION_HEX >= 0x030E0000
    if (!stack.high) {
        /* A stack that extends below all others: in effect without bounds. */
        stack.low = 1 << 16;
        stack.high = stack_pointer();
    }
    (void)PyUnstable_ThreadState_SetStackProtection(tstate, (void *)stack.low,
                                                    stack.high - stack.low);
#else
    (void)tstate;
#endif
}

static const Stack no_bounds = {0, 0};


/* ---- the data stack -------------------------------------------------------- */

/* The interpreter never frees the lowest chunk of a data stack: each request that
   began while others were suspended leaves one. They are kept for the next such
   request, so there are at most as many as concurrent requests. */

static void
set_datastack(PyThreadState *tstate, _PyStackChunk *chunk)
{
    tstate->datastack_chunk = chunk;
    /* As in the interpreter: no frame begins at the first item of the lowest chunk,
       because its end would be mistaken for the end of the chunk. */
    tstate->datastack_top = chunk ? &chunk->data[1] : NULL;
    tstate->datastack_limit =
        chunk ? (PyObject **)((char *)chunk + chunk->size) : NULL;
}

static void
give_empty_datastack(State *state, PyThreadState *tstate)
{
    _PyStackChunk *chunk = state->spare_chunks;
    if (chunk) {
        state->spare_chunks = chunk->previous;
        chunk->previous = NULL;
    }
    /* Without a chunk the interpreter allocates one for the next frame. */
    set_datastack(tstate, chunk);
}

static void
keep_empty_datastack(State *state, PyThreadState *tstate)
{
    _PyStackChunk *chunk = tstate->datastack_chunk;
    if (!chunk) {
        return;
    }
    if (chunk->previous || tstate->datastack_top != &chunk->data[1]) {
        /* uWSGI itself has suspended another request while its Python code ran.
           The frames of the two requests would overwrite each other. */
        Py_FatalError("psycogreen: a request under uGreen was suspended otherwise "
                      "than by psycogreen while its Python code ran (reading its "
                      "body? set uWSGI's option post-buffering)");
    }
    chunk->previous = state->spare_chunks;
    state->spare_chunks = chunk;
}


/* ---- the thread state ------------------------------------------------------ */

/* Save the request's fields, and reset the thread state to that of a thread that
   runs no Python code. */
static void
take_out(State *state, PyThreadState *tstate, Portion *mine)
{
    mine->datastack_chunk = tstate->datastack_chunk;
    mine->datastack_top = tstate->datastack_top;
    mine->datastack_limit = tstate->datastack_limit;
    give_empty_datastack(state, tstate);

    /* exc_info points to exc_state or, inside a generator, to the generator's item,
       which is linked to exc_state by address. That address does not change, so it
       is enough to save the contents. */
    mine->exc_info = tstate->exc_info;
    mine->exc_state = tstate->exc_state;
    tstate->exc_info = &tstate->exc_state;
    tstate->exc_state.exc_value = NULL;
    tstate->exc_state.previous_item = NULL;

    mine->context = tstate->context;
    tstate->context = NULL;
    tstate->context_ver++; /* context variables cache values by it */

    mine->stated = state->stated;
    state_bounds(state, tstate, no_bounds);

#ifdef TRASH_NESTING
    mine->trash_nesting = TRASH_NESTING(tstate);
    TRASH_NESTING(tstate) = 0;
#endif
}

static void
put_back(State *state, PyThreadState *tstate, const Portion *mine)
{
    PyObject *left_context = tstate->context;
    PyObject *left_exception = tstate->exc_state.exc_value;

    keep_empty_datastack(state, tstate);
    tstate->datastack_chunk = mine->datastack_chunk;
    tstate->datastack_top = mine->datastack_top;
    tstate->datastack_limit = mine->datastack_limit;

    tstate->exc_info = mine->exc_info;
    tstate->exc_state = mine->exc_state;

    tstate->context = mine->context;
    tstate->context_ver++;

    state_bounds(state, tstate, mine->stated);

#ifdef TRASH_NESTING
    TRASH_NESTING(tstate) = mine->trash_nesting;
#endif

    /* Last, because this may run any code: release what an ended request has left. */
    Py_XDECREF(left_context);
    Py_XDECREF(left_exception);
}


/* ---- the module ------------------------------------------------------------ */

PyDoc_STRVAR(prepare_doc,
"prepare()\n--\n\n"
"Prepare this thread for green stacks. Raise OSError if its native stack cannot be\n"
"found: a green stack is recognised by not being that. Calling it again is harmless.");

static PyObject *
prepare(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    Stack native;
    if (find_native_stack(&native) < 0) {
        return NULL;
    }
    state_bounds(PyModule_GetState(module), PyThreadState_Get(), no_bounds);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(on_green_stack_doc,
"on_green_stack()\n--\n\n"
"Return whether this code runs in a request on one of uGreen's stacks, where\n"
"suspend() may be called. False on uWSGI's own stack, in native threads and in\n"
"sub-interpreters.");

static PyObject *
on_green_stack(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    /* A sub-interpreter has its own thread state. uWSGI confuses them when requests
       of several interpreters take turns. */
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        Py_RETURN_FALSE;
    }
    int green = is_on_green_stack();
    return green < 0 ? NULL : PyBool_FromLong(green);
}

PyDoc_STRVAR(suspend_doc,
"suspend()\n--\n\n"
"Let other requests run until uWSGI resumes this one: uwsgi.suspend() for uGreen.\n"
"Call it only if on_green_stack() is true, and after uwsgi.wait_fd_read() or\n"
"uwsgi.wait_fd_write(): a request that waits for nothing is never resumed.");

static PyObject *
suspend(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    State *state = PyModule_GetState(module);
    PyThreadState *tstate = PyThreadState_Get();
    PyCFunction swap = PyCFunction_GetFunction(state->uwsgi_suspend);
    PyObject *self = PyCFunction_GetSelf(state->uwsgi_suspend);
    PyObject *arguments = PyTuple_New(0);
    PyObject *result;
    Portion mine;

    if (!arguments) {
        return NULL;
    }
    take_out(state, tstate, &mine);
    if (state->has_threads) {
        /* uWSGI takes the GIL, in this thread, for each request that it starts.
           uWSGI's own functions release the GIL before they switch. */
        PyEval_SaveThread();
        result = swap(self, arguments);
        PyEval_RestoreThread(tstate);
    }
    else {
        /* uWSGI 2.0.26 and older, without --enable-threads: uWSGI always holds the
           GIL, and would not take it again. */
        result = swap(self, arguments);
    }
    put_back(state, tstate, &mine);
    Py_DECREF(arguments);
    if (!result) {
        return NULL;
    }
    /* The result is a new reference to True, which was counted without the GIL: an
       update by another thread may have been lost. The reference is not released, so
       that the count can only be too high. (From 3.12 on True is not counted.) */
    Py_RETURN_NONE;
}

#if PY_VERSION_HEX >= 0x030E0000

PyDoc_STRVAR(enter_stack_doc,
"enter_stack()\n--\n\n"
"Let Python raise RecursionError at the end of the current green stack, in this\n"
"request and until leave_stack(). Raise OSError if the end cannot be found.");

static PyObject *
enter_stack(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    /* uGreen has inaccessible pages below and above each stack, so that each stack is
       a separate mapping. */
    uintptr_t here = stack_pointer();
    uintptr_t low = 0, high = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "re");

    if (!maps) {
        return PyErr_SetFromErrnoWithFilename(PyExc_OSError, "/proc/self/maps");
    }
    do {
        if (!fgets(line, sizeof(line), maps)) {
            fclose(maps);
            PyErr_SetString(PyExc_OSError, "the stack is not in /proc/self/maps");
            return NULL;
        }
        /* "low-high ...". Not sscanf(): compiled with newer headers, the extension
           would need the glibc of the machine that compiled it. */
        char *end;
        low = PyOS_strtoul(line, &end, 16);
        high = *end == '-' ? PyOS_strtoul(end + 1, NULL, 16) : 0;
    } while (here < low || here >= high);
    fclose(maps);
    state_bounds(PyModule_GetState(module), PyThreadState_Get(), (Stack){low, high});
    Py_RETURN_NONE;
}

PyDoc_STRVAR(leave_stack_doc,
"leave_stack()\n--\n\n"
"Undo enter_stack(), before the request ends or uWSGI switches to another one.");

static PyObject *
leave_stack(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    state_bounds(PyModule_GetState(module), PyThreadState_Get(), no_bounds);
    Py_RETURN_NONE;
}

#endif

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_NOARGS, prepare_doc},
    {"on_green_stack", on_green_stack, METH_NOARGS, on_green_stack_doc},
    {"suspend", suspend, METH_NOARGS, suspend_doc},
#if PY_VERSION_HEX >= 0x030E0000
    {"enter_stack", enter_stack, METH_NOARGS, enter_stack_doc},
    {"leave_stack", leave_stack, METH_NOARGS, leave_stack_doc},
#endif
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    PyObject *uwsgi = PyImport_ImportModule("uwsgi");
    PyObject *has_threads = NULL;
    int status = -1;

    if (!uwsgi) {
        return -1;
    }
    state->uwsgi_suspend = PyObject_GetAttrString(uwsgi, "suspend");
    has_threads = PyObject_GetAttrString(uwsgi, "has_threads");
    if (!state->uwsgi_suspend || !has_threads) {
        goto done;
    }
    /* It is called without the GIL, which only uWSGI's own C function allows. */
    if (!PyCFunction_CheckExact(state->uwsgi_suspend) ||
        PyCFunction_GetFlags(state->uwsgi_suspend) != METH_VARARGS) {
        PyErr_Format(PyExc_ImportError, "uwsgi.suspend is not uWSGI's own: %R",
                     state->uwsgi_suspend);
        goto done;
    }
    state->has_threads = PyObject_IsTrue(has_threads);
    status = state->has_threads < 0 ? -1 : 0;
done:
    Py_XDECREF(has_threads);
    Py_DECREF(uwsgi);
    return status;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->uwsgi_suspend);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->uwsgi_suspend);
    return 0;
}

static void
module_free(void *module)
{
    State *state = PyModule_GetState(module);
    PyObjectArenaAllocator arena;

    module_clear(module);
    PyObject_GetArenaAllocator(&arena); /* the interpreter allocated them with it */
    while (state->spare_chunks) {
        _PyStackChunk *chunk = state->spare_chunks;
        state->spare_chunks = chunk->previous;
        arena.free(arena.ctx, chunk, chunk->size);
    }
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "psycogreen._uwsgi._ugreen",
    .m_doc = "Suspend requests under uWSGI's uGreen. Importable only in uWSGI.",
    .m_size = sizeof(State),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__ugreen(void)
{
    return PyModuleDef_Init(&definition);
}
