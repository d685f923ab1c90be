/* The fast path of a wait, in C. Its twin in Python is pure.py: the names and the
   behaviour are the same, and both leave the unusual cases to the same Python code.

   References across a switch: while another greenlet runs, the C frames of a greenlet
   lie on the heap with the references that they hold. A borrowed reference must not be
   used after a switch, unless an object that a frame owns holds it. If the greenlet is
   dropped meanwhile, greenlet throws GreenletExit into it, so that its frames return and
   release their references.

   On Python 3.15, the garbage collector finds a greenlet that is suspended, with all that
   its Python frames refer to, since greenlet 3.5.2. What it finds may be cleared already
   when GreenletExit is thrown; what a C frame owns is not found. So a wait owns its Entry,
   but collect() does not own its Set: then a hub that is suspended there and that nothing
   else refers to could never be collected. After a switch, its hub may be gone.
*/

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <poll.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <time.h>

/* Only the part of greenlet's C API that is the same since 2.0 is used, see
   import_greenlet(): this may be built with one version and run with another. */
#include <greenlet/greenlet.h>

#include "_raised.h"

#define CHECK_INTERVAL 1000

/* The maximum number of events in a batch. They lie on the stack, which greenlet copies
   at each switch. The loop finds the remaining events in its next turn. */
#define BATCH 64

/* psycopg2.extensions.POLL_OK, POLL_READ. */
enum { POLL_OK = 0, POLL_READ = 1, POLL_WRITE = 2, POLL_OTHER = -1 };

typedef struct {
    PyTypeObject *set_type;
    PyTypeObject *entry_type;
    PyTypeObject *wait_type;
    PyTypeObject *connection_type; /* psycopg2's, or NULL: see find_own_methods() */
    PyCFunction own_poll;
    PyCFunction own_fileno;
    PyObject *entries; /* a dictionary: descriptor -> Entry */
    PyObject *polls;   /* a dictionary: id of a connection -> replacement of its poll */
    PyObject *forget;  /* the module's function */
    PyObject *poll;    /* names of methods */
    PyObject *fileno;
    PyObject *hold;
    PyObject *release;
    PyObject *change;
    PyObject *follow;
    PyObject *place;
    PyObject *check;
    PyObject *remove;
    PyObject *handle_error;
    PyObject *qualname;
} State;

typedef struct {
    PyObject_HEAD
    PyObject *hub;
    PyObject *greenlet; /* the hub's */
    PyTypeObject *plain;
    PyObject *switch_;  /* the hub's, bound */
    PyObject *epoll;    /* kept for Python, which closes it */
    uint64_t thread;    /* the hub's thread; this number is never reused */
    int epoll_fd;
    char abandoned;
    char held;
    char releases_late; /* see Hub in hub.py */
    char waking;        /* whether the hub is in wake_ready() */
    Py_ssize_t waiting;
    Py_ssize_t ended;
    Py_ssize_t collected;
} Set;

typedef struct {
    PyWeakReference conn;
    Set *epoll_set;
    PyObject *waiter;
    PyObject *attempt; /* to connect, until the connection is established; else NULL */
    double since;   /* of time.monotonic() */
    int fd;
    int state;      /* what the kernel's set reports for it; 0 if it is not there */
} Entry;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *dict; /* functools.wraps() writes into it */
    PyObject *weakrefs;
    PyObject *find_entry;
    PyObject *failed;
} Wait;

static struct PyModuleDef definition;


/* ---- connections ----------------------------------------------------------- */

/* Call a method without arguments. Return the result, a new reference, or NULL with an
   exception set. An object of exactly psycopg2's type has psycopg2's own method: calling
   its C function saves the lookup and the call through Python. */
static inline PyObject *
call_connection(State *state, PyObject *conn, PyCFunction own, PyObject *name)
{
    return Py_IS_TYPE(conn, state->connection_type) ? own(conn, NULL)
                                                    : PyObject_CallMethodNoArgs(conn, name);
}


/* ---- entries --------------------------------------------------------------- */

static int
entry_traverse(Entry *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->epoll_set);
    Py_VISIT(self->waiter);
    Py_VISIT(self->attempt);
    return _PyWeakref_RefType.tp_traverse((PyObject *)self, visit, arg);
}

static int
entry_clear(Entry *self)
{
    Py_CLEAR(self->epoll_set);
    Py_CLEAR(self->waiter);
    Py_CLEAR(self->attempt);
    return _PyWeakref_RefType.tp_clear((PyObject *)self);
}

/* Free an object after tp_clear. An instance owns a reference to its heap type. */
static void
free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The base type frees the object, but knows nothing of its heap type. */
static void
entry_dealloc(Entry *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    entry_clear(self);
    _PyWeakref_RefType.tp_dealloc((PyObject *)self);
    Py_DECREF(type);
}

/* Return the connection, or None if it was collected. */
static PyObject *
entry_conn(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyObject_CallNoArgs(self);
}

static PyMethodDef entry_methods[] = {
    {"conn", entry_conn, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef entry_members[] = {
    {"epoll_set", T_OBJECT_EX, offsetof(Entry, epoll_set), READONLY, NULL},
    {"waiter", T_OBJECT, offsetof(Entry, waiter), READONLY, NULL},
    {"attempt", T_OBJECT, offsetof(Entry, attempt), 0, NULL},
    {"since", T_DOUBLE, offsetof(Entry, since), 0, NULL},
    {"fd", T_INT, offsetof(Entry, fd), 0, NULL},
    {"state", T_INT, offsetof(Entry, state), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot entry_slots[] = {
    {Py_tp_doc, "A connection's socket in a set; a weak reference to the connection."},
    {Py_tp_dealloc, entry_dealloc},
    {Py_tp_traverse, entry_traverse},
    {Py_tp_clear, entry_clear},
    {Py_tp_methods, entry_methods},
    {Py_tp_members, entry_members},
    {0, NULL},
};

static PyType_Spec entry_spec = {
    .name = "psycogreen._wait._speedups.Entry",
    .basicsize = sizeof(Entry),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = entry_slots,
};

/* Return the entry of a descriptor, borrowed from the dictionary. Return NULL without an
   exception if there is none, or with one set after an error. */
static Entry *
get_entry(State *state, PyObject *fd)
{
    PyObject *entry = PyDict_GetItemWithError(state->entries, fd);
    return entry && Py_IS_TYPE(entry, state->entry_type) ? (Entry *)entry : NULL;
}

/* Return whether the entry is that of *conn*, which is alive. */
static int
is_of(Entry *entry, PyObject *conn)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *found;
    if (PyWeakref_GetRef((PyObject *)entry, &found) < 0) {
        PyErr_Clear();
        return 0;
    }
    Py_XDECREF(found);
    return found == conn;
#else
    return PyWeakref_GetObject((PyObject *)entry) == conn;
#endif
}

/* Return whether the entry is the one of its descriptor. An error is cleared and counts
   as no. */
static int
is_placed(State *state, Entry *entry)
{
    PyObject *fd = PyLong_FromLong(entry->fd);
    PyObject *found = fd ? PyDict_GetItemWithError(state->entries, fd) : NULL;

    Py_XDECREF(fd);
    PyErr_Clear();
    return found == (PyObject *)entry;
}

PyDoc_STRVAR(forget_doc,
"forget(entry)\n--\n\n"
"Drop an entry, unless its descriptor belongs to another entry now.");

/* No other code runs between these steps, see pure.py. As the callback of a weak reference,
   this is also called after the module was cleared. The dictionary may hold the last
   reference to the entry. */
static PyObject *
forget(PyObject *module, PyObject *entry)
{
    State *state = PyModule_GetState(module);

    if (!state->entries) {
        Py_RETURN_NONE;
    }
    if (!Py_IS_TYPE(entry, state->entry_type)) {
        return PyErr_Format(PyExc_TypeError, "expected an Entry, not %R", entry);
    }
    if (is_placed(state, (Entry *)entry)) {
        PyObject *fd = PyLong_FromLong(((Entry *)entry)->fd);
        int status = fd ? PyDict_DelItem(state->entries, fd) : -1;
        Py_XDECREF(fd);
        if (status < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* Make an entry of *conn*, whose socket has the descriptor *fd*. Return a new reference, or
   NULL with an exception set. */
static Entry *
make_entry(State *state, Set *set, PyObject *conn, PyObject *fd)
{
    long number = PyLong_AsLong(fd);
    PyObject *arguments = NULL;
    Entry *made = NULL;

    if (number != -1 || !PyErr_Occurred()) {
        arguments = PyTuple_Pack(2, conn, state->forget);
    }
    if (arguments) {
        made = (Entry *)_PyWeakref_RefType.tp_new(state->entry_type, arguments, NULL);
        Py_DECREF(arguments);
    }
    if (made) {
        made->fd = (int)number;
        made->epoll_set = (Set *)Py_NewRef((PyObject *)set);
    }
    return made;
}


/* ---- sets: waking ---------------------------------------------------------- */

/* Call a method and ignore its result. Return 0, or -1 with an exception set. */
static int
call_method_with(PyObject *self, PyObject *name, PyObject *argument)
{
    PyObject *result = PyObject_CallMethodOneArg(self, name, argument);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Call the hub's method for its set. Return 0, or -1 with an exception set. */
static int
tell_hub(Set *self, PyObject *name)
{
    return self->hub ? call_method_with(self->hub, name, (PyObject *)self) : 0;
}

/* Clear the exception that is set and let the hub report it. Return 0, or -1 with an
   exception set if the hub's loop must end. */
static int
report(State *state, Set *self)
{
    PyObject *raised;
    int status;

    if (!self->hub) { /* it is being collected: the exception ends it */
        return -1;
    }
    raised = take_raised();
    status = call_method_with(self->hub, state->handle_error, raised);
    Py_DECREF(raised);
    return status;
}

/* Run the greenlet that waits for a descriptor until it switches back. If none waits,
   remove the descriptor. Return 0, or -1 with an exception set. */
static int
wake(State *state, Set *self, int number)
{
    PyObject *fd = PyLong_FromLong(number);
    PyObject *waiter = NULL, *result;
    Entry *entry;
    int status;

    if (!fd) {
        return -1;
    }
    entry = get_entry(state, fd);
    if (!entry && PyErr_Occurred()) {
        Py_DECREF(fd);
        return -1;
    }
    if (entry && entry->epoll_set == self) {
        waiter = entry->waiter;
    }
    if (waiter) {
        /* The entry drops its reference while the greenlet runs. */
        Py_INCREF(waiter);
        self->ended += !entry->attempt; /* to connect is one wait, counted at its end */
        result = PyGreenlet_Switch((PyGreenlet *)waiter, NULL, NULL);
        Py_DECREF(waiter);
        status = result ? 0 : -1;
        Py_XDECREF(result);
    }
    else {
        status = call_method_with((PyObject *)self, state->remove, fd);
    }
    Py_DECREF(fd);
    return status;
}

/* Return 1 if the kernel's set was replaced, 0 if not, -1 with an exception set. */
static int
check(State *state, Set *self)
{
    PyObject *result;
    int replaced;

    if (++self->collected % CHECK_INTERVAL) {
        return 0;
    }
    result = PyObject_CallMethodNoArgs((PyObject *)self, state->check);
    if (!result) {
        return -1;
    }
    replaced = PyObject_IsTrue(result);
    Py_DECREF(result);
    return replaced;
}

/* Tell the loop if no greenlet waits any more. Return 0, or -1 with an exception set. An
   exception that is set already stays, unless this raises another one.

   While greenlets are woken this may be left to the end: most of them wait again at once. */
static int
release(State *state, Set *self)
{
    PyObject *raised;
    int status;

    if (self->waiting || !self->held || (self->waking && self->releases_late)) {
        return 0;
    }
    raised = take_raised();
    status = tell_hub(self, state->release);
    /* A signal handler or a destructor may have begun to wait in that call. */
    if (status == 0 && self->waiting) {
        status = tell_hub(self, state->hold);
    }
    if (status < 0) {
        Py_XDECREF(raised);
        return -1;
    }
    if (raised) {
        raise_again(raised);
    }
    return 0;
}

/* Wake the greenlets whose sockets are ready. The hub reports their exceptions. Return 0,
   or -1 with an exception set if the hub's loop must end. */
static int
wake_ready(State *state, Set *self)
{
    struct epoll_event events[BATCH];
    int count = epoll_wait(self->epoll_fd, events, BATCH, 0);
    int status = 0;

    if (count < 0 && errno != EINTR) {
        PyErr_SetFromErrno(PyExc_OSError);
        return report(state, self);
    }
    self->waking = 1;
    for (int i = 0; i < count && status == 0; i++) {
        if (wake(state, self, events[i].data.fd) < 0) {
            status = report(state, self);
        }
    }
    self->waking = 0;
    if (status == 0 && release(state, self) < 0) {
        status = report(state, self);
    }
    return status;
}

PyDoc_STRVAR(collect_doc,
"collect(ignored=None)\n--\n\n"
"Wake the greenlets whose sockets are ready. Called in the hub.\n\n"
"It raises no exception, after which the hub would stop watching: the hub's\n"
"handle_error reports it, and raises it only if the loop must end.");

static PyObject *
collect(Set *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(nargs))
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &definition);
    State *state;
    int status;

    if (!module) {
        return NULL;
    }
    state = PyModule_GetState(module);
    if (self->abandoned) {
        status = tell_hub(self, state->release);
    }
    else if (self->epoll_fd < 0) { /* closed */
        status = 0;
    }
    else {
        status = check(state, self);
        if (status == 0) {
            status = wake_ready(state, self);
        }
        else if (status < 0) {
            status = report(state, self);
        }
    }
    if (status < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}


/* ---- sets ------------------------------------------------------------------ */

static int
set_init(Set *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"hub", NULL};
    PyObject *hub, *greenlet = NULL, *plain = NULL, *switch_ = NULL, *late = NULL;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:BaseSet", names, &hub) ||
        !(late = PyObject_GetAttrString(hub, "releases_late")) ||
        !(greenlet = PyObject_GetAttrString(hub, "greenlet")) ||
        !(plain = PyObject_GetAttrString(hub, "plain")) ||
        !(switch_ = PyObject_GetAttrString(hub, "switch"))) {
        goto error;
    }
    if (!PyGreenlet_Check(greenlet) || !PyType_Check(plain)) {
        PyErr_Format(PyExc_TypeError, "expected a greenlet and a type, not %R and %R",
                     greenlet, plain);
        goto error;
    }
    Py_XSETREF(self->hub, Py_NewRef(hub));
    Py_XSETREF(self->greenlet, greenlet);
    Py_XSETREF(self->plain, (PyTypeObject *)plain);
    Py_XSETREF(self->switch_, switch_);
    self->releases_late = late == Py_True;
    Py_DECREF(late);
    self->thread = PyThreadState_GetID(PyThreadState_Get());
    self->epoll_fd = -1;
    return 0;

error:
    Py_XDECREF(greenlet);
    Py_XDECREF(plain);
    Py_XDECREF(switch_);
    Py_XDECREF(late);
    return -1;
}

static int
set_traverse(Set *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->hub);
    Py_VISIT(self->greenlet);
    Py_VISIT(self->plain);
    Py_VISIT(self->switch_);
    Py_VISIT(self->epoll);
    return 0;
}

static int
set_clear(Set *self)
{
    Py_CLEAR(self->hub);
    Py_CLEAR(self->greenlet);
    Py_CLEAR(self->plain);
    Py_CLEAR(self->switch_);
    Py_CLEAR(self->epoll);
    return 0;
}

static void
set_dealloc(Set *self)
{
    PyObject_GC_UnTrack(self);
    set_clear(self);
    free_object((PyObject *)self);
}

PyDoc_STRVAR(entry_doc,
"entry(conn)\n--\n\n"
"Return the entry of a connection, which is made if it has none here. See pure.py.");

static PyObject *
set_entry(Set *self, PyObject *conn)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &definition);
    State *state = module ? PyModule_GetState(module) : NULL;
    PyObject *fd =
        state ? call_connection(state, conn, state->own_fileno, state->fileno) : NULL;
    PyObject *made = fd ? (PyObject *)make_entry(state, self, conn, fd) : NULL;
    PyObject *found = made ? PyDict_SetDefault(state->entries, fd, made) : NULL;

    Py_XDECREF(fd);
    if (found && found != made) { /* the descriptor has an entry already */
        PyObject *arguments[] = {(PyObject *)self, made, conn};
        found = PyObject_VectorcallMethod(state->place, arguments, 3, NULL);
    }
    else {
        Py_XINCREF(found);
    }
    Py_XDECREF(made);
    return found;
}

static PyMethodDef set_methods[] = {
    {"collect", (PyCFunction)(void (*)(void))collect, METH_FASTCALL, collect_doc},
    {"entry", (PyCFunction)set_entry, METH_O, entry_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef set_members[] = {
    {"hub", T_OBJECT_EX, offsetof(Set, hub), READONLY, NULL},
    {"waiting", T_PYSSIZET, offsetof(Set, waiting), READONLY, NULL},
    {"ended", T_PYSSIZET, offsetof(Set, ended), 0, NULL},
    {"abandoned", T_BOOL, offsetof(Set, abandoned), 0, NULL},
    {"held", T_BOOL, offsetof(Set, held), 0, NULL},
    {"epoll_fd", T_INT, offsetof(Set, epoll_fd), 0, NULL},
    {"_epoll", T_OBJECT, offsetof(Set, epoll), 0, NULL},
    {"_collected", T_PYSSIZET, offsetof(Set, collected), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot set_slots[] = {
    {Py_tp_doc, "The part of an EpollSet that every wait touches."},
    {Py_tp_init, set_init},
    {Py_tp_dealloc, set_dealloc},
    {Py_tp_traverse, set_traverse},
    {Py_tp_clear, set_clear},
    {Py_tp_methods, set_methods},
    {Py_tp_members, set_members},
    {0, NULL},
};

static PyType_Spec set_spec = {
    .name = "psycogreen._wait._speedups.BaseSet",
    .basicsize = sizeof(Set),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = set_slots,
};


/* ---- the wait -------------------------------------------------------------- */

/* Call the replacement of a connection's poll() if there is one, else poll(). Return the
   result, a new reference, or NULL with an exception set. */
static PyObject *
poll_otherwise(State *state, PyObject *conn)
{
    PyObject *id = PyLong_FromVoidPtr(conn);
    PyObject *poll = id ? PyDict_GetItemWithError(state->polls, id) : NULL;
    PyObject *result = NULL;

    if (poll) {
        /* It may be removed from the dictionary while it runs. */
        Py_INCREF(poll);
        result = PyObject_CallNoArgs(poll);
        Py_DECREF(poll);
    }
    else if (!PyErr_Occurred()) {
        result = PyObject_CallMethodNoArgs(conn, state->poll);
    }
    Py_XDECREF(id);
    return result;
}

/* Return the result of conn.poll(), a new reference, or NULL with an exception set.
   Store its value in *code: POLL_OTHER if it is not a known one. */
static PyObject *
poll_connection(State *state, PyObject *conn, int *code)
{
    PyObject *result = PyDict_GET_SIZE(state->polls)
                           ? poll_otherwise(state, conn)
                           : call_connection(state, conn, state->own_poll, state->poll);

    *code = POLL_OTHER;
    if (result && PyLong_Check(result)) {
        int overflow;
        long value = PyLong_AsLongAndOverflow(result, &overflow);
        if (!overflow && value >= POLL_OK && value <= POLL_WRITE) {
            *code = (int)value;
        }
    }
    return result;
}

/* Let the hub run. For a greenlet of the plain type, hub.switch() would only switch to
   the hub's greenlet, so switch directly if that is running. The entry in the caller's
   frame holds the set, which holds the hub. Return the value that was passed with the
   switch back, or NULL with an exception set. */
static PyObject *
switch_from(Set *set, PyObject *current)
{
    PyGreenlet *hub = (PyGreenlet *)set->greenlet;

    if (Py_IS_TYPE(current, set->plain) && PyGreenlet_ACTIVE(hub)) {
        return PyGreenlet_Switch(hub, NULL, NULL);
    }
    return PyObject_CallNoArgs(set->switch_);
}

/* Let the hub run, with the entry's waiter set. Return 0, or -1 with an exception set:
   that of the switch, unless the loop cannot be released either. */
static int
switch_to_hub(State *state, Entry *entry)
{
    Set *set = entry->epoll_set;
    PyObject *result;
    int status;

    entry->waiter = (PyObject *)PyGreenlet_GetCurrent();
    if (!entry->waiter) {
        return -1;
    }
    set->waiting++;
    result = switch_from(set, entry->waiter);
    /* Any greenlet may switch back: poll() shows whether it was too early. */
    Py_CLEAR(entry->waiter);
    set->waiting--;
    status = result ? 0 : -1;
    Py_XDECREF(result);
    if (release(state, set) < 0) {
        status = -1;
    }
    return status;
}

/* Make the kernel's set report a known state. Return 0, or -1 with errno set. */
static int
set_events(Entry *entry, int code)
{
    int set = entry->epoll_set->epoll_fd;
    struct epoll_event event = {
        .events = code == POLL_READ ? EPOLLIN : EPOLLOUT,
        .data.fd = entry->fd,
    };

    if (epoll_ctl(set, EPOLL_CTL_ADD, entry->fd, &event) == 0) {
        return 0;
    }
    return errno == EEXIST ? epoll_ctl(set, EPOLL_CTL_MOD, entry->fd, &event) : -1;
}

/* Make the kernel's set report the state that poll() has asked for. Return 0, or -1 with
   an exception set, also if another greenlet waits for the connection. Python does what is
   unusual. */
static int
change(State *state, Entry *entry, PyObject *wanted, int code)
{
    PyObject *arguments[] = {(PyObject *)entry->epoll_set, (PyObject *)entry, wanted};
    PyObject *result;

    if (code != POLL_OTHER && !entry->waiter && is_placed(state, entry) &&
        set_events(entry, code) == 0) {
        entry->state = code;
        return 0;
    }
    result = PyObject_VectorcallMethod(state->change, arguments, 3, NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Wait until the entry's socket has the state that poll() has asked for. Return 0, or -1
   with an exception set.

   No Python code may run between the checks and the switch: a destructor or a signal
   handler may let the loop run, which removes a socket that no greenlet waits for. */
static int
wait_once(State *state, Entry *entry, PyObject *wanted, int code)
{
    Set *set = entry->epoll_set;

    while (code != entry->state || entry->waiter || !set->held) {
        int status = code != entry->state || entry->waiter
                         ? change(state, entry, wanted, code)
                         : call_method_with(set->hub, state->hold, (PyObject *)set);
        if (status < 0) {
            return -1;
        }
    }
    return switch_to_hub(state, entry);
}

static inline int
is_writable(int fd)
{
    struct pollfd asked = {.fd = fd, .events = POLLOUT};

    return poll(&asked, 1, 0) > 0;
}

/* Make the entry the one of the socket that its connection has now: libpq may have changed
   to another one, also to one of the same number. Return 0, or -1 with an exception set. */
static int
follow(State *state, PyObject *conn, Entry *entry)
{
    PyObject *fd = call_connection(state, conn, state->own_fileno, state->fileno);
    long number = fd ? PyLong_AsLong(fd) : -1;
    int status = number == -1 && PyErr_Occurred() ? -1 : 0;

    entry->state = 0; /* so that change() asks the kernel */
    if (status == 0 && number != entry->fd) {
        PyObject *arguments[] = {(PyObject *)entry->epoll_set, (PyObject *)entry, conn};
        PyObject *result = PyObject_VectorcallMethod(state->follow, arguments, 3, NULL);
        status = result ? 0 : -1;
        Py_XDECREF(result);
    }
    Py_XDECREF(fd);
    return status;
}

/* The same as wait_once() while a connection is opened. libpq takes the socket for
   connected when it is polled. So return only when it can be written, since any greenlet
   may have switched back. (To poll early for a read is harmless.) */
static int
wait_connecting(State *state, PyObject *conn, Entry *entry, PyObject *wanted, int code)
{
    if (follow(state, conn, entry) < 0) {
        return -1;
    }
    if (code != POLL_WRITE) {
        return wait_once(state, entry, wanted, code);
    }
    while (!is_writable(entry->fd)) {
        if (wait_once(state, entry, wanted, code) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Wait until poll() returns POLL_OK. *wanted is its last result; its reference is stolen.
   Return 0, or -1 with an exception set. */
static int
wait_until_ok(State *state, PyObject *conn, Entry *entry, PyObject *wanted, int code)
{
    while (code != POLL_OK) {
        int status = entry->attempt
                         ? wait_connecting(state, conn, entry, wanted, code)
                         : wait_once(state, entry, wanted, code);
        Py_DECREF(wanted);
        if (status < 0) {
            return -1;
        }
        wanted = poll_connection(state, conn, &code);
        if (!wanted) {
            return -1;
        }
    }
    Py_DECREF(wanted);
    if (entry->attempt) {
        entry->epoll_set->ended++;
        Py_CLEAR(entry->attempt);
    }
    return 0;
}

/* Return the entry of a connection in this thread's set, a new reference. Return NULL
   without an exception if there is none, or with one set after an error. */
static Entry *
find_here(State *state, PyObject *conn)
{
    PyObject *fd = call_connection(state, conn, state->own_fileno, state->fileno);
    Entry *entry;

    if (!fd) {
        return NULL;
    }
    entry = get_entry(state, fd);
    Py_DECREF(fd);
    if (!entry || entry->attempt || !is_of(entry, conn) ||
        entry->epoll_set->thread != PyThreadState_GetID(PyThreadState_Get())) {
        return NULL;
    }
    Py_INCREF(entry);
    return entry;
}

/* Ask Python for the entry. Return as find_here() does. NULL without an exception means
   that Python has done the whole wait. */
static Entry *
find_elsewhere(State *state, Wait *self, PyObject *conn, PyObject *wanted,
               PyObject *timeout)
{
    PyObject *entry =
        PyObject_CallFunctionObjArgs(self->find_entry, conn, wanted, timeout, NULL);

    if (entry && entry != Py_None && !Py_IS_TYPE(entry, state->entry_type)) {
        PyErr_Format(PyExc_TypeError, "expected an Entry, not %R", entry);
        Py_CLEAR(entry);
    }
    if (entry == Py_None) {
        Py_CLEAR(entry);
    }
    return (Entry *)entry;
}

/* Call failed() with the exception that is set. Then raise it again, or wait again. */
static PyObject *
handle_failure(Wait *self, PyObject *conn, Entry *entry)
{
    PyObject *raised = take_raised();
    PyObject *again, *result = NULL;

    again = PyObject_CallFunctionObjArgs(self->failed, conn, entry, raised, NULL);
    if (again == Py_True) {
        result = PyObject_CallOneArg((PyObject *)self, conn);
    }
    else if (again) {
        raise_again(Py_NewRef(raised));
    }
    Py_DECREF(raised);
    Py_XDECREF(again);
    return result;
}

/* Return the same as Python's time.monotonic(). */
static double
monotonic(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static PyObject *
wait_for(State *state, Wait *self, PyObject *conn, PyObject *timeout)
{
    int code;
    PyObject *result = NULL;
    PyObject *wanted = poll_connection(state, conn, &code);
    Entry *entry = NULL;

    if (!wanted || code == POLL_OK) {
        Py_XDECREF(wanted);
        if (!wanted) {
            return NULL;
        }
        Py_RETURN_NONE;
    }
    if (timeout == Py_None && code != POLL_OTHER) {
        entry = find_here(state, conn);
    }
    if (!entry && !PyErr_Occurred()) {
        entry = find_elsewhere(state, self, conn, wanted, timeout);
    }
    if (!entry) {
        Py_DECREF(wanted);
        if (PyErr_Occurred()) {
            return NULL;
        }
        Py_RETURN_NONE;
    }
    if (!entry->waiter) { /* otherwise change() will raise */
        entry->since = monotonic();
    }
    if (wait_until_ok(state, conn, entry, wanted, code) == 0) {
        result = Py_NewRef(Py_None);
    }
    else {
        result = handle_failure(self, conn, entry);
    }
    Py_DECREF(entry);
    return result;
}

static PyObject *
wait_call(Wait *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"conn", "timeout", NULL};
    PyObject *module = PyType_GetModule(Py_TYPE(self));
    PyObject *conn, *timeout = Py_None;

    if (!module) {
        return NULL;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:wait", names, &conn, &timeout)) {
        return NULL;
    }
    return wait_for(PyModule_GetState(module), self, conn, timeout);
}

/* Call it with the arguments of a vectorcall, in a tuple and a dictionary. */
static PyObject *
wait_call_packed(Wait *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *positional = PyTuple_New(count), *keywords = PyDict_New();
    PyObject *result = NULL;
    int status = positional && keywords ? 0 : -1;

    for (Py_ssize_t i = 0; status == 0 && i < count; i++) {
        PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
    }
    for (Py_ssize_t i = 0; status == 0 && names && i < PyTuple_GET_SIZE(names); i++) {
        status = PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, i), args[count + i]);
    }
    if (status == 0) {
        result = wait_call(self, positional, keywords);
    }
    Py_XDECREF(positional);
    Py_XDECREF(keywords);
    return result;
}

/* psycopg2 passes only the connection; the caller holds it during the call. */
static PyObject *
wait_vectorcall(Wait *self, PyObject *const *args, size_t flags, PyObject *names)
{
    PyObject *module;

    if (names || PyVectorcall_NARGS(flags) != 1) {
        return wait_call_packed(self, args, PyVectorcall_NARGS(flags), names);
    }
    module = PyType_GetModule(Py_TYPE(self));
    return module ? wait_for(PyModule_GetState(module), self, args[0], Py_None) : NULL;
}

static int
wait_traverse(Wait *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->dict);
    Py_VISIT(self->find_entry);
    Py_VISIT(self->failed);
    return 0;
}

static int
wait_clear(Wait *self)
{
    Py_CLEAR(self->dict);
    Py_CLEAR(self->find_entry);
    Py_CLEAR(self->failed);
    return 0;
}

static void
wait_dealloc(Wait *self)
{
    PyObject_GC_UnTrack(self);
    if (self->weakrefs) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    wait_clear(self);
    free_object((PyObject *)self);
}

/* The repr of a function, since the callback in Python is a function. */
static PyObject *
wait_repr(Wait *self)
{
    PyObject *module = PyType_GetModule(Py_TYPE(self));
    PyObject *name, *text;

    if (!module) {
        return NULL;
    }
    name = PyObject_GetAttr((PyObject *)self,
                            ((State *)PyModule_GetState(module))->qualname);
    if (!name) { /* functools.wraps() has not set it yet */
        PyErr_Clear();
        return PyUnicode_FromFormat("<wait callback at %p>", self);
    }
    text = PyUnicode_FromFormat("<function %S at %p>", name, self);
    Py_DECREF(name);
    return text;
}

/* As for a function: as an attribute of a class it becomes a method. */
static PyObject *
wait_bind(PyObject *self, PyObject *instance, PyObject *Py_UNUSED(owner))
{
    if (!instance || instance == Py_None) {
        return Py_NewRef(self);
    }
    return PyMethod_New(self, instance);
}

/* Pickle it as a function: by its name, which functools.wraps() has set. */
static PyObject *
wait_reduce(Wait *self, PyObject *Py_UNUSED(ignored))
{
    return PyObject_GetAttrString((PyObject *)self, "__qualname__");
}

static PyMethodDef wait_methods[] = {
    {"__reduce__", (PyCFunction)wait_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef wait_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Wait, vectorcall), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(Wait, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Wait, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef wait_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot wait_slots[] = {
    {Py_tp_call, wait_call},
    {Py_tp_repr, wait_repr},
    {Py_tp_descr_get, wait_bind},
    {Py_tp_dealloc, wait_dealloc},
    {Py_tp_traverse, wait_traverse},
    {Py_tp_clear, wait_clear},
    {Py_tp_methods, wait_methods},
    {Py_tp_members, wait_members},
    {Py_tp_getset, wait_getset},
    {0, NULL},
};

static PyType_Spec wait_spec = {
    .name = "psycogreen._wait._speedups.Wait",
    .basicsize = sizeof(Wait),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = wait_slots,
};

PyDoc_STRVAR(make_wait_doc,
"make_wait(find_entry, failed)\n--\n\n"
"Return the wait callback: the loop that waits for queries. See pure.py.");

static PyObject *
make_wait(PyObject *module, PyObject *args)
{
    State *state = PyModule_GetState(module);
    PyObject *find_entry, *failed;
    Wait *self;

    if (!PyArg_ParseTuple(args, "OO:make_wait", &find_entry, &failed)) {
        return NULL;
    }
    self = PyObject_GC_New(Wait, state->wait_type);
    if (!self) {
        return NULL;
    }
    self->vectorcall = (vectorcallfunc)wait_vectorcall;
    self->dict = NULL;
    self->weakrefs = NULL;
    self->find_entry = Py_NewRef(find_entry);
    self->failed = Py_NewRef(failed);
    PyObject_GC_Track(self);
    return (PyObject *)self;
}


/* ---- the module ------------------------------------------------------------ */

/* Make a type with a base, or without (NULL); if it is public, add it to the module. */
static PyTypeObject *
add_type(PyObject *module, PyType_Spec *spec, PyTypeObject *base, int is_public)
{
    PyTypeObject *type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, (PyObject *)base);

    if (type && is_public && PyModule_AddType(module, type) < 0) {
        Py_CLEAR(type);
    }
    return type;
}

static int
add_names(State *state)
{
    struct {
        PyObject **place;
        const char *name;
    } names[] = {
        {&state->poll, "poll"},     {&state->fileno, "fileno"},
        {&state->hold, "hold"},     {&state->release, "release"},
        {&state->change, "change"}, {&state->follow, "follow"},
        {&state->place, "place"},
        {&state->check, "check"},   {&state->remove, "remove"},
        {&state->handle_error, "handle_error"},
        {&state->qualname, "__qualname__"},
    };

    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        *names[i].place = PyUnicode_InternFromString(names[i].name);
        if (!*names[i].place) {
            return -1;
        }
    }
    return 0;
}

/* Return the C function of a psycopg2 method without arguments, which its type owns.
   Return NULL without an exception if it is no such method, or with one set. */
static PyCFunction
own_method(PyObject *type, PyObject *name)
{
    PyObject *found = PyObject_GetAttr(type, name);
    PyCFunction function = NULL;

    if (found && Py_IS_TYPE(found, &PyMethodDescr_Type) &&
        ((PyMethodDescrObject *)found)->d_method->ml_flags == METH_NOARGS) {
        function = ((PyMethodDescrObject *)found)->d_method->ml_meth;
    }
    Py_XDECREF(found);
    return function;
}

/* Find the C functions that poll psycopg2's connections. Return 0, or -1 with an exception
   set. Without them, the methods are called as Python calls them. */
static int
find_own_methods(State *state)
{
    PyObject *extensions = PyImport_ImportModule("psycopg2.extensions");
    PyObject *type =
        extensions ? PyObject_GetAttrString(extensions, "connection") : NULL;

    Py_XDECREF(extensions);
    if (!type) {
        return -1;
    }
    if ((state->own_poll = own_method(type, state->poll)) &&
        (state->own_fileno = own_method(type, state->fileno))) {
        state->connection_type = (PyTypeObject *)Py_NewRef(type);
    }
    Py_DECREF(type);
    return PyErr_Occurred() ? -1 : 0;
}

/* Get greenlet's C API. Return 0, or -1 with an exception set, also if it is an older
   one, which has fewer functions. */
static int
import_greenlet(void)
{
    PyObject *module = PyImport_ImportModule("greenlet");
    PyObject *version = module ? PyObject_GetAttrString(module, "__version__") : NULL;
    const char *text = version ? PyUnicode_AsUTF8(version) : NULL;

    if (text && atoi(text) < 2) {
        PyErr_Format(PyExc_ImportError, "greenlet %s is older than 2.0", text);
    }
    else if (text) {
        PyGreenlet_Import();
    }
    Py_XDECREF(module);
    Py_XDECREF(version);
    return PyErr_Occurred() ? -1 : 0;
}

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);

    if (import_greenlet() < 0 || add_names(state) < 0 ||
        find_own_methods(state) < 0 ||
        !(state->set_type = add_type(module, &set_spec, NULL, 1)) ||
        !(state->entry_type = add_type(module, &entry_spec, &_PyWeakref_RefType, 1)) ||
        !(state->wait_type = add_type(module, &wait_spec, NULL, 0)) ||
        !(state->entries = PyDict_New()) ||
        !(state->polls = PyDict_New()) ||
        !(state->forget = PyObject_GetAttrString(module, "forget")) ||
        PyModule_AddObjectRef(module, "entries", state->entries) < 0 ||
        PyModule_AddObjectRef(module, "polls", state->polls) < 0) {
        return -1;
    }
    return PyModule_AddIntMacro(module, CHECK_INTERVAL);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->set_type);
    Py_VISIT(state->entry_type);
    Py_VISIT(state->wait_type);
    Py_VISIT(state->connection_type);
    Py_VISIT(state->entries);
    Py_VISIT(state->polls);
    Py_VISIT(state->forget);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->set_type);
    Py_CLEAR(state->entry_type);
    Py_CLEAR(state->wait_type);
    Py_CLEAR(state->connection_type);
    Py_CLEAR(state->entries);
    Py_CLEAR(state->polls);
    Py_CLEAR(state->forget);
    Py_CLEAR(state->poll);
    Py_CLEAR(state->fileno);
    Py_CLEAR(state->hold);
    Py_CLEAR(state->release);
    Py_CLEAR(state->change);
    Py_CLEAR(state->follow);
    Py_CLEAR(state->place);
    Py_CLEAR(state->check);
    Py_CLEAR(state->remove);
    Py_CLEAR(state->handle_error);
    Py_CLEAR(state->qualname);
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
}

static PyMethodDef methods[] = {
    {"forget", forget, METH_O, forget_doc},
    {"make_wait", make_wait, METH_VARARGS, make_wait_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "psycogreen._wait._speedups",
    .m_doc = "The fast path of a wait, in C. Its twin in Python is pure.py.",
    .m_size = sizeof(State),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
