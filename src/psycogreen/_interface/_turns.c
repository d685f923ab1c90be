/* The turns on connections, in C. Its twin in Python is turns_pure.py.

   Every query takes a turn and gives it back. So a turn that nobody else waits for must
   be cheap: it is a node in a hash table, found by the connection's address. psycopg2's
   methods take the turn here; psycogreen's own, in Python, take it in sharing.py.

   All functions hold the GIL, and call no Python code between the first read of the table
   and the last change of it. So no other thread, destructor or signal handler sees a
   partial change.
*/

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdint.h>
#include <unistd.h>

/* See _wait/_speedups.c: only the part of the API that is the same since 2.0 is used. */
#include <greenlet/greenlet.h>

#include "../_wait/_raised.h"

/* A greenlet or thread that waits for its turn. */
typedef struct Waiter {
    struct Waiter *next;
    void *caller;
    int bell; /* a descriptor to write to when it has the turn; open meanwhile */
} Waiter;

typedef struct Turn {
    struct Turn *next; /* in the same bucket */
    PyObject *conn;    /* borrowed: its owner and those that wait hold it */
    void *owner;       /* a greenlet, borrowed: it lives as long as its call */
    Waiter *queue;
} Turn;

#define BUCKETS 1024

static Turn *table[BUCKETS];
static Turn *spare; /* nodes that are not in use, linked */

/* The connections for which fit() was called: borrowed references, which are only compared.
   If another connection has taken its place, fit() is called again. */
static PyObject *fitted[BUCKETS];

static PyObject *on_taken; /* see configure() */
static PyObject *fit;
static PyObject *identify; /* or NULL */


/* ---- the table -------------------------------------------------------------- */

static inline size_t
place_in_table(PyObject *conn)
{
    /* Objects lie 16 bytes apart at least. */
    return ((uintptr_t)conn >> 4) % BUCKETS;
}

static inline Turn **
bucket_of(PyObject *conn)
{
    return &table[place_in_table(conn)];
}

static inline Turn *
find(PyObject *conn)
{
    Turn *turn = *bucket_of(conn);

    while (turn && turn->conn != conn) {
        turn = turn->next;
    }
    return turn;
}

/* Give a turn that nobody has to *owner*. Return 0, or -1 with an exception set. */
static inline int
add(PyObject *conn, void *owner)
{
    Turn **bucket = bucket_of(conn), *turn = spare;

    if (turn) {
        spare = turn->next;
    }
    else if (!(turn = PyMem_Malloc(sizeof(Turn)))) {
        PyErr_NoMemory();
        return -1;
    }
    *turn = (Turn){*bucket, conn, owner, NULL};
    *bucket = turn;
    return 0;
}

static inline void
remove_turn(Turn *turn)
{
    Turn **place = bucket_of(turn->conn);

    while (*place != turn) {
        place = &(*place)->next;
    }
    *place = turn->next;
    turn->next = spare;
    spare = turn;
}


/* ---- turns ------------------------------------------------------------------ */

/* Return the caller where greenlet cannot tell it: while Python ends, when only
   destructors run. */
static void *
caller_at_exit(void)
{
    static char last;

    if (identify || !PyErr_ExceptionMatches(PyExc_RuntimeError)) {
        return NULL;
    }
    PyErr_Clear();
    return &last;
}

/* Return the calling greenlet, borrowed: it lives as long as it runs. With an identify
   function, return the number that it gives. Return NULL with an exception set. */
static inline void *
caller(void)
{
    PyObject *found = identify ? PyObject_CallNoArgs(identify)
                               : (PyObject *)PyGreenlet_GetCurrent();
    void *me = found && identify ? PyLong_AsVoidPtr(found) : found;

    if (!found) {
        return caller_at_exit();
    }
    Py_DECREF(found);
    return me;
}

/* End the turn of *me*. Do nothing if *me* has no turn, which happens if a fork has
   removed it. Raise nothing, and keep an exception that is set. */
static inline void give_turn(PyObject *conn, void *me);

/* Call fit(), with the turn taken. Return 1, or -1 with an exception set and without the
   turn. */
static int Py_NO_INLINE
make_fit(PyObject *conn, void *me)
{
    PyObject *result;

    /* Set it first: unfit() may be called meanwhile. */
    fitted[place_in_table(conn)] = conn;
    result = PyObject_CallOneArg(fit, conn);
    if (!result) {
        give_turn(conn, me);
        return -1;
    }
    Py_DECREF(result);
    return 1;
}

/* Take the turn, and call fit() if *fits*. Return 1 if the turn was taken, 0 if it is the
   caller's already, -1 with an exception set. */
static inline int
take_turn(PyObject *conn, void *me, int fits)
{
    Turn *turn = find(conn);
    PyObject *result;
    int mine;

    if (!turn) {
        if (add(conn, me) < 0) {
            return -1;
        }
        return !fits || fitted[place_in_table(conn)] == conn ? 1 : make_fit(conn, me);
    }
    mine = turn->owner == me;
    result = PyObject_CallFunction(on_taken, "OO", conn, mine ? Py_True : Py_False);
    if (!result) {
        return -1;
    }
    Py_DECREF(result);
    return !mine;
}

/* Give the turn to the first in the queue, and wake it. */
static void Py_NO_INLINE
hand_over(Turn *turn)
{
    static const uint64_t one = 1; /* what an eventfd takes; a pipe takes anything */
    Waiter *first = turn->queue;

    turn->queue = first->next;
    turn->owner = first->caller;
    /* It never blocks: nobody else writes there. */
    if (write(first->bell, &one, sizeof(one)) < 0) {
        perror("psycogreen: cannot wake a greenlet that waits for a connection");
    }
    PyMem_Free(first);
}

static inline void
give_turn(PyObject *conn, void *me)
{
    Turn *turn = find(conn);

    if (!turn || turn->owner != me) {
        return;
    }
    if (turn->queue) {
        hand_over(turn);
    }
    else {
        remove_turn(turn);
    }
}

/* Return the link in the queue that points to *me*, or the last one. */
static Waiter **
place_of(Turn *turn, void *me)
{
    Waiter **place = &turn->queue;

    while (*place && (*place)->caller != me) {
        place = &(*place)->next;
    }
    return place;
}


/* ---- turns, for Python ------------------------------------------------------ */

PyDoc_STRVAR(take_doc,
"take(conn, *, fits=True)\n--\n\n"
"Take the turn on *conn*; wait until it is free. The caller may have it already. Call\n"
"*fit* of `configure` only if *fits*.");

static PyObject *
take(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "fits", NULL};
    void *me = caller();
    PyObject *conn;
    int fits = 1;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$p:take", names, &conn, &fits)) {
        return NULL;
    }
    if (!me || take_turn(conn, me, fits) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(has_doc,
"has(conn)\n--\n\nReturn whether the caller has the turn on *conn*.");

static PyObject *
has(PyObject *Py_UNUSED(module), PyObject *conn)
{
    void *me = caller();
    Turn *turn = find(conn);

    return me ? PyBool_FromLong(turn && turn->owner == me) : NULL;
}

PyDoc_STRVAR(give_doc,
"give(conn)\n--\n\n"
"Give back the turn that `take` has taken. Do nothing if it is not the caller's.");

static PyObject *
give(PyObject *Py_UNUSED(module), PyObject *conn)
{
    void *me = caller();

    if (!me) {
        return NULL;
    }
    give_turn(conn, me);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(enqueue_doc,
"enqueue(conn, bell)\n--\n\n"
"Take the turn on *conn* if it is free; return whether the caller has it.\n\n"
"Otherwise put the caller into the queue. The descriptor *bell* is written to when the\n"
"caller must call this again.");

static PyObject *
enqueue(PyObject *Py_UNUSED(module), PyObject *args)
{
    void *me = caller();
    PyObject *conn;
    Waiter **place;
    Turn *turn;
    int bell;

    if (!me || !PyArg_ParseTuple(args, "Oi:enqueue", &conn, &bell)) {
        return NULL;
    }
    turn = find(conn);
    if (!turn && add(conn, me) < 0) {
        return NULL;
    }
    if (!turn || turn->owner == me) {
        Py_RETURN_TRUE;
    }
    place = place_of(turn, me);
    if (!*place) {
        if (!(*place = PyMem_Malloc(sizeof(Waiter)))) {
            return PyErr_NoMemory();
        }
        **place = (Waiter){NULL, me, bell};
    }
    Py_RETURN_FALSE;
}

PyDoc_STRVAR(dequeue_doc,
"dequeue(conn)\n--\n\n"
"Leave the queue for the turn on *conn*; if the caller has the turn, give it back.");

static PyObject *
dequeue(PyObject *Py_UNUSED(module), PyObject *conn)
{
    void *me = caller();
    Turn *turn = find(conn);
    Waiter **place, *waiter;

    if (!me) {
        return NULL;
    }
    if (turn && *(place = place_of(turn, me))) {
        waiter = *place;
        *place = waiter->next;
        PyMem_Free(waiter);
    }
    else {
        give_turn(conn, me);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(queued_doc,
"queued()\n--\n\nReturn how many greenlets and threads wait for their turn.");

static PyObject *
queued(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    Py_ssize_t count = 0;

    for (Turn **bucket = table; bucket < table + BUCKETS; bucket++) {
        for (Turn *turn = *bucket; turn; turn = turn->next) {
            for (Waiter *waiter = turn->queue; waiter; waiter = waiter->next) {
                count++;
            }
        }
    }
    return PyLong_FromSsize_t(count);
}

PyDoc_STRVAR(forget_doc,
"forget()\n--\n\nForget all turns and queues, in a child that was just forked.");

static PyObject *
forget(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    for (Turn **bucket = table; bucket < table + BUCKETS; bucket++) {
        while (*bucket) {
            Waiter *waiter = (*bucket)->queue, *next;
            for (; waiter; waiter = next) {
                next = waiter->next;
                PyMem_Free(waiter);
            }
            remove_turn(*bucket);
        }
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(unfit_doc,
"unfit(number=None)\n--\n\n"
"Call *fit* at the next turn on the connection of that `id`, or on each.");

static PyObject *
unfit(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *number = Py_None;
    void *conn;

    if (!PyArg_ParseTuple(args, "|O:unfit", &number)) {
        return NULL;
    }
    if (number == Py_None) {
        memset(fitted, 0, sizeof(fitted));
        Py_RETURN_NONE;
    }
    conn = PyLong_AsVoidPtr(number);
    if (!conn && PyErr_Occurred()) {
        return NULL;
    }
    if (fitted[place_in_table(conn)] == conn) {
        fitted[place_in_table(conn)] = NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(configure_doc,
"configure(on_taken, fit, identify=None)\n--\n\n"
"Set the functions that `take` uses.\n\n"
"*on_taken* is called if the turn is not free: with the connection, and whether the\n"
"caller has the turn itself. It waits for the turn, or raises. *fit* is called with a\n"
"connection at its first turn, and at the first after `unfit`, but not for a turn that a\n"
"method of the connection itself takes. *identify* returns a number for the caller where\n"
"that is not a greenlet.");

static PyObject *
configure(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *waiting, *fitting, *identifying = Py_None;

    if (!PyArg_ParseTuple(args, "OO|O:configure", &waiting, &fitting, &identifying)) {
        return NULL;
    }
    Py_XSETREF(on_taken, Py_NewRef(waiting));
    Py_XSETREF(fit, Py_NewRef(fitting));
    Py_XSETREF(identify, identifying == Py_None ? NULL : Py_NewRef(identifying));
    Py_RETURN_NONE;
}


/* ---- psycopg2's methods ----------------------------------------------------- */

/* Whose connection's turn a method takes: it is called on the connection, on one of its
   cursors, or on a cursor that takes the turn only if it is named. A cursor without a
   name has received its rows already. */
enum { OF_CONNECTION, OF_CURSOR, OF_NAMED_CURSOR };

/* A method is replaced by a descriptor of the same kind with the same flags, so that a
   call costs no more than before, except for the turn. */
typedef struct {
    PyObject *original; /* the descriptor; NULL if this place is free */
    PyObject *on_error;
    PyCFunction function;
    PyMethodDef definition; /* of the new descriptor */
    int whose;
} Method;

/* psycopg2 has 20 of them. */
#define METHODS 24

static Method methods[METHODS];

/* Offsets in the structure of a cursor, from its member descriptors. */
static Py_ssize_t connection_of_cursor;
static Py_ssize_t name_of_cursor;

static inline int
is_named(PyObject *cursor)
{
    return *(char **)((char *)cursor + name_of_cursor) != NULL;
}

static inline PyObject *
connection_of(Method *method, PyObject *self)
{
    return method->whose == OF_CONNECTION
               ? self
               : *(PyObject **)((char *)self + connection_of_cursor);
}

static inline PyObject *
call_original(Method *method, PyObject *self, PyObject *args, PyObject *kwargs)
{
    if (method->definition.ml_flags & METH_KEYWORDS) {
        PyCFunctionWithKeywords function =
            (PyCFunctionWithKeywords)(void (*)(void))method->function;
        return function(self, args, kwargs);
    }
    /* The cursor's tp_iternext takes one argument and ignores the second one. */
    return method->function(self, args);
}

/* Call on_error with the exception of a method. The exception stays set, unless on_error
   raises another one. */
static void Py_NO_INLINE
complete(Method *method, PyObject *self)
{
    PyObject *raised = take_raised();
    PyObject *result =
        PyObject_CallFunctionObjArgs(method->on_error, self, raised, NULL);

    if (result) {
        Py_DECREF(result);
        raise_again(raised);
    }
    else {
        Py_DECREF(raised);
    }
}

/* Not inlined: a row that was received already needs no turn, and its path must not save
   registers for this function. */
static PyObject *Py_NO_INLINE
call_in_turn(Method *method, PyObject *self, PyObject *args, PyObject *kwargs)
{
    PyObject *conn = connection_of(method, self);
    PyObject *result = NULL;
    void *me;
    int taken;

    if (!conn) { /* the cursor is not initialised: psycopg2 raises the error */
        return call_original(method, self, args, kwargs);
    }
    if (!(me = caller())) {
        return NULL;
    }
    /* The cursor may get another connection, or be gone, while it waits. */
    Py_INCREF(conn);
    /* A connection's own methods send no large statement, and many connections are only
       closed. */
    taken = take_turn(conn, me, method->whose != OF_CONNECTION);
    if (taken >= 0) {
        result = call_original(method, self, args, kwargs);
        if (!result && PyErr_Occurred()) { /* without one, it was the last row */
            complete(method, self);
        }
    }
    if (taken > 0) {
        give_turn(conn, me);
    }
    Py_DECREF(conn);
    return result;
}

static inline PyObject *
call(Method *method, PyObject *self, PyObject *args, PyObject *kwargs)
{
    if (method->whose == OF_NAMED_CURSOR && !is_named(self)) {
        return call_original(method, self, args, kwargs);
    }
    return call_in_turn(method, self, args, kwargs);
}

/* A C function does not receive the method's descriptor. So each place has functions of
   its own, one for each way of passing arguments. */
#define FUNCTIONS(n)                                                        \
    static PyObject *call_##n(PyObject *self, PyObject *args)               \
    {                                                                       \
        return call(&methods[n], self, args, NULL);                         \
    }                                                                       \
    static PyObject *call_with_keywords_##n(PyObject *self, PyObject *args, \
                                            PyObject *kwargs)               \
    {                                                                       \
        return call(&methods[n], self, args, kwargs);                       \
    }
#define NAMES(n) {call_##n, call_with_keywords_##n},
#define EACH(DO)                                                              \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) \
    DO(12) DO(13) DO(14) DO(15) DO(16) DO(17) DO(18) DO(19) DO(20) DO(21)     \
    DO(22) DO(23)

EACH(FUNCTIONS)

static const struct {
    PyCFunction plain;
    PyCFunctionWithKeywords with_keywords;
} functions[METHODS] = {EACH(NAMES)};

/* Return a descriptor, a new reference, or NULL with an exception set. */
static PyObject *
new_descriptor(Method *method, int is_slot)
{
    PyDescrObject *original = (PyDescrObject *)method->original;
    int place = (int)(method - methods);
    PyMethodDef *definition;

    if (is_slot) {
        /* With the same base, type.__setattr__() sets the slot to the function. */
        PyWrapperDescrObject *wrapper = (PyWrapperDescrObject *)original;
        method->function = (PyCFunction)(void (*)(void))wrapper->d_wrapped;
        return PyDescr_NewWrapper(original->d_type, wrapper->d_base,
                                  (void *)(uintptr_t)functions[place].plain);
    }
    definition = ((PyMethodDescrObject *)original)->d_method;
    method->function = definition->ml_meth;
    method->definition = *definition;
    method->definition.ml_meth =
        definition->ml_flags & METH_KEYWORDS
            ? (PyCFunction)(void (*)(void))functions[place].with_keywords
            : functions[place].plain;
    return PyDescr_NewMethod(original->d_type, &method->definition);
}

static int
is_known_method(PyObject *descriptor)
{
    int flags;

    if (!Py_IS_TYPE(descriptor, &PyMethodDescr_Type)) {
        return 0;
    }
    flags = ((PyMethodDescrObject *)descriptor)->d_method->ml_flags;
    return flags == METH_NOARGS || flags == METH_VARARGS ||
           flags == (METH_VARARGS | METH_KEYWORDS);
}

PyDoc_STRVAR(taking_turn_doc,
"taking_turn(original, whose, on_error, slow)\n--\n\n"
"Return a descriptor that takes the turn and then does what *original* does.\n\n"
"*original* is a method of psycopg2's types, or its cursor's ``__next__``; *whose* is one\n"
"of the constants. *on_error* is called with the object and the exception of the method,\n"
"before the turn is given back. For any other object return *slow*, a function that does\n"
"the same.");

static PyObject *
taking_turn(PyObject *Py_UNUSED(module), PyObject *args)
{
    Method *method = methods;
    PyObject *original, *on_error, *slow;
    int whose, is_slot;

    if (!PyArg_ParseTuple(args, "OiOO:taking_turn", &original, &whose, &on_error,
                          &slow)) {
        return NULL;
    }
    is_slot = Py_IS_TYPE(original, &PyWrapperDescr_Type);
    if (!is_slot && !is_known_method(original)) {
        return Py_NewRef(slow);
    }
    /* A method that is replaced again has its place already. */
    while (method->original && method->original != original) {
        if (++method == methods + METHODS) {
            return Py_NewRef(slow);
        }
    }
    Py_XSETREF(method->original, Py_NewRef(original));
    Py_XSETREF(method->on_error, Py_NewRef(on_error));
    method->whose = whose;
    return new_descriptor(method, is_slot);
}


/* ---- large objects ----------------------------------------------------------- */

static destructor dealloc_of_lobject;

/* Destroy a large object. psycopg2 closes it, and takes the connection's lock for that. If
   somebody has the turn, and so may have the lock, this must not wait: it runs wherever
   the last reference goes. Then the server closes the large object, when the transaction
   ends. Without a connection, psycopg2 does nothing; its structure has the connection
   first, in all of psycopg2 2. */
static void
dealloc_lobject(PyObject *self)
{
    PyObject **conn = (PyObject **)(self + 1);

    if (*conn && find(*conn)) {
        Py_CLEAR(*conn);
    }
    dealloc_of_lobject(self);
}

/* Return 0, or -1 with an exception set. */
static int
guard_large_objects(PyObject *extensions)
{
    PyObject *type = PyObject_GetAttrString(extensions, "lobject");

    if (!type) {
        return -1;
    }
    /* Subclasses call what their base has at the time. */
    if (((PyTypeObject *)type)->tp_dealloc != dealloc_lobject) {
        dealloc_of_lobject = ((PyTypeObject *)type)->tp_dealloc;
        ((PyTypeObject *)type)->tp_dealloc = dealloc_lobject;
    }
    Py_DECREF(type);
    return 0;
}

PyDoc_STRVAR(guarded_doc,
"Return the factory of large objects itself: the destructor of all is replaced.");

static PyObject *
guarded(PyObject *Py_UNUSED(module), PyObject *factory)
{
    return Py_NewRef(factory);
}


/* ---- the module ------------------------------------------------------------- */

/* Py_T_STRING and Py_T_OBJECT have these names up to 3.11. */
enum { MEMBER_STRING = T_STRING, MEMBER_OBJECT = T_OBJECT };

/* Return the offset of a member of the cursor, or -1 with an exception set. */
static Py_ssize_t
offset_of(PyObject *cursor, const char *name, int type)
{
    PyObject *member = PyObject_GetAttrString(cursor, name);
    Py_ssize_t offset = -1;

    if (member && Py_IS_TYPE(member, &PyMemberDescr_Type) &&
        ((PyMemberDescrObject *)member)->d_member->type == type) {
        offset = ((PyMemberDescrObject *)member)->d_member->offset;
    }
    else if (member) {
        PyErr_Format(PyExc_ImportError, "unexpected member of psycopg2's cursor: %R",
                     member);
    }
    Py_XDECREF(member);
    return offset;
}

static int
module_exec(PyObject *module)
{
    PyObject *extensions, *cursor;

    PyGreenlet_Import();
    if (!_PyGreenlet_API) {
        return -1;
    }
    extensions = PyImport_ImportModule("psycopg2.extensions");
    if (!extensions) {
        return -1;
    }
    cursor = PyObject_GetAttrString(extensions, "cursor");
    if (!cursor || guard_large_objects(extensions) < 0) {
        Py_DECREF(extensions);
        Py_XDECREF(cursor);
        return -1;
    }
    Py_DECREF(extensions);
    connection_of_cursor = offset_of(cursor, "connection", MEMBER_OBJECT);
    name_of_cursor = PyErr_Occurred() ? -1 : offset_of(cursor, "name", MEMBER_STRING);
    Py_DECREF(cursor);
    if (PyErr_Occurred() || PyModule_AddIntMacro(module, OF_CONNECTION) < 0 ||
        PyModule_AddIntMacro(module, OF_CURSOR) < 0 ||
        PyModule_AddIntMacro(module, OF_NAMED_CURSOR) < 0) {
        return -1;
    }
    return 0;
}

static PyMethodDef module_methods[] = {
    {"take", (PyCFunction)(void (*)(void))take, METH_VARARGS | METH_KEYWORDS, take_doc},
    {"has", has, METH_O, has_doc},
    {"give", give, METH_O, give_doc},
    {"enqueue", enqueue, METH_VARARGS, enqueue_doc},
    {"dequeue", dequeue, METH_O, dequeue_doc},
    {"queued", queued, METH_NOARGS, queued_doc},
    {"unfit", unfit, METH_VARARGS, unfit_doc},
    {"forget", forget, METH_NOARGS, forget_doc},
    {"configure", configure, METH_VARARGS, configure_doc},
    {"taking_turn", taking_turn, METH_VARARGS, taking_turn_doc},
    {"guarded", guarded, METH_O, guarded_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "psycogreen._interface._turns",
    .m_doc = "The turns on connections, in C. Its twin is turns_pure.py.",
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__turns(void)
{
    return PyModuleDef_Init(&definition);
}
